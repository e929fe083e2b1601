"""The release's heads in ours, against mmdetection's and mmsegmentation's definitions."""

from types import SimpleNamespace

import numpy as np
import openmmlab
import pytest
import torch
from openmmlab import mask_rcnn_shapes, upernet_shapes
from torchvision.models.detection.image_list import ImageList

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.export.detector import ExportedDetector
from lightning_overlock.heads.fcn import FCNHead
from lightning_overlock.heads.geometry import AlignedRoIAlign, paste_masks
from lightning_overlock.heads.mask_rcnn import mask_rcnn
from lightning_overlock.heads.release import released_heads
from lightning_overlock.heads.upernet import UPerHead
from lightning_overlock.tasks import DetectionTask, SegmentationTask
from lightning_overlock.tasks.segmentation import Segmenter

BACKBONE = "test_overlock"
THREE = ["one", "two", "three"]
# A short side of 7 times 32: the level of stride 64 is a pixel wider than the image.
SHORT, LONG = 224, 400
WIDTHS = dict(width=16, box_width=32, mask_width=8)
DETECTOR = dict(
    backbone=BACKBONE,
    geometry="mmdetection",
    min_size=[SHORT],
    max_size=LONG,
    fpn_width=16,
    box_head_width=32,
    mask_head_width=8,
    proposals=60,
    detections_per_image=40,
)
SEGMENTER = dict(backbone=BACKBONE, decoder_width=16, auxiliary_width=8)


def values(shapes, seed=0):
    """Random weights of which logits of about one come, float32."""
    random = np.random.RandomState(seed)
    state = {}
    for name, shape in shapes.items():
        value = random.standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            value = np.int64(7)
        elif name.endswith("running_var"):
            value = 0.5 + random.random_sample(shape)
        elif name.endswith("weight") and len(shape) > 1:
            value *= 1.4 / np.prod(shape[1:]) ** 0.5
        elif name.endswith("bn.weight"):
            value = 1 + 0.2 * value
        else:
            value *= 0.3
        state[name] = torch.tensor(value if value.dtype == np.int64 else np.float32(value))
    return state


def backbone_entries(overview):
    """A backbone's entries as a released dense model has them."""
    torch.manual_seed(0)
    features = DenseFeatures(BACKBONE, overview=overview)
    theirs = {"norms": "extra_norm", "overview_norm": "extra_norm.4"}
    theirs |= {"overview_proj": "h_proj.0", "overview_scale": "h_proj.1"}
    state = {}
    for name, value in features.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"backbone.{theirs[part]}.{rest}" if part in theirs else name] = value
    return features.channels, state


def file_of(path, entries):
    """Write a file as mmcv's runner does with `save_best`."""
    meta = {"CLASSES": tuple(THREE), "hook_msgs": {"best_score": np.float64(0.5)}}
    torch.save({"meta": meta, "state_dict": entries, "optimizer": {"state": {}}}, path)
    return str(path)


def double(state):
    return {name: value.double() for name, value in state.items()}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector from a released file, in float64, and the heads in that file."""
    channels, entries = backbone_entries(overview=True)
    heads = values(mask_rcnn_shapes(channels, 3, **WIDTHS))
    path = tmp_path_factory.mktemp("released") / "maskrcnn.pth"
    task = DetectionTask(THREE, init_from=file_of(path, entries | heads), **DETECTOR)
    task.load_initial_weights()
    network = task.model.double().eval()
    image = torch.rand(3, 180, 231, generator=torch.Generator().manual_seed(0)).double()
    mean, std = (
        torch.tensor(value, dtype=torch.float64)[:, None, None]
        for value in (network.transform.image_mean, network.transform.image_std)
    )
    seen = openmmlab.resized((image - mean) / std, SHORT, LONG)
    with torch.no_grad():
        maps = network.backbone.features(openmmlab.padded(seen))
        levels = network.backbone.fpn({str(i): x for i, x in enumerate(maps)})
    state = double(heads)
    expected = openmmlab.pyramid(state, maps)
    return SimpleNamespace(
        network=network,
        state=state,
        image=image,
        size=tuple(seen.shape[1:]),
        levels=levels,
        expected=expected,
    )


def test_every_entry_of_a_detector_has_its_place():
    with torch.device("meta"):
        network = mask_rcnn(DenseFeatures("overlock_t", overview=True), 80)
        shapes = mask_rcnn_shapes(network.backbone.features.channels, 80)
        found = released_heads({name: torch.empty(shape) for name, shape in shapes.items()})
    assert set(found) == set(shapes)
    own = {n: v.shape for n, v in network.state_dict().items() if ".features." not in n}
    assert {name: value.shape for name, value in found.values()} == own


def test_every_entry_of_a_segmenter_has_its_place():
    with torch.device("meta"):
        features = DenseFeatures("overlock_t")
        heads = UPerHead(features.channels, 150), FCNHead(features.channels[2], 150)
        network = Segmenter(features, *heads)
        shapes = upernet_shapes(features.channels, 150)
        found = released_heads({name: torch.empty(shape) for name, shape in shapes.items()})
    assert set(found) == set(shapes)
    own = {n: v.shape for n, v in network.state_dict().items() if not n.startswith("features.")}
    assert {name: value.shape for name, value in found.values()} == own


def test_a_segmenters_logits_are_those_of_mmsegmentation(tmp_path, caplog):
    channels, entries = backbone_entries(overview=False)
    heads = values(upernet_shapes(channels, 3, 16, 8))
    path = file_of(tmp_path / "upernet.pth", entries | heads)
    task = SegmentationTask(THREE, init_from=path, **SEGMENTER)
    with caplog.at_level("INFO"):
        task.load_initial_weights()
    assert "Initial weights" in caplog.text
    assert "Not used" not in caplog.text
    assert "New" not in caplog.text
    network = task.model.double().eval()
    state = double(heads)
    with torch.no_grad():
        maps = network.maps(torch.rand(2, 3, 100, 164).double())
        logits, auxiliary = network.decoder(maps), network.auxiliary(maps[2])
    assert logits.std() > 0.1
    close(logits, openmmlab.upernet(state, maps))
    close(auxiliary, openmmlab.fcn(state, maps))


def test_pyramid_logits_deltas_and_proposals_are_those_of_mmdetection(detector):
    with torch.no_grad():
        logits, deltas = detector.network.rpn.head(list(detector.levels.values()))
        images = ImageList(torch.zeros(1, 3, 224, 288).double(), [detector.size])
        proposals, _ = detector.network.rpn(images, detector.levels)
    for ours, theirs in zip(detector.levels.values(), detector.expected, strict=True):
        close(ours, theirs)
    outputs = openmmlab.rpn_outputs(detector.state, detector.expected)
    for level, (expected_logits, expected_deltas) in enumerate(outputs):
        close(logits[level][0].permute(1, 2, 0).reshape(-1), expected_logits)
        close(deltas[level][0].permute(1, 2, 0).reshape(-1, 4), expected_deltas)
    expected = openmmlab.proposals(detector.state, detector.expected, detector.size, 60)
    assert len(expected) > 30
    close(proposals[0], expected)


def test_boxes_shrink_and_grow_by_the_same_limit(detector):
    random = torch.Generator().manual_seed(0)
    boxes = torch.rand(50, 4, generator=random).double() * 90
    boxes[:, 2:] += boxes[:, :2]
    deltas = torch.randn(50, 4, generator=random).double() * 40
    assert (deltas[:, 2:].abs() / 5 > 4.2).any()
    for part, stds in (
        (detector.network.rpn, (1.0, 1.0, 1.0, 1.0)),
        (detector.network.roi_heads, (0.1, 0.1, 0.2, 0.2)),
    ):
        found = part.box_coder.decode_single(deltas, boxes)
        found = torch.minimum(found.clamp(min=0), found.new_tensor([200, 100, 200, 100]))
        close(found, openmmlab.decode(boxes, deltas, stds, (100, 200)))


@pytest.mark.parametrize("side", [7, 14])
def test_regions_of_all_sizes_are_pooled_as_in_mmdetection(side):
    random = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(1, 2, 512 // r, 640 // r, generator=random).double() for r in (4, 8, 16, 32)
    ]
    corners = torch.tensor([[-9.0, -3], [0, 0], [3.3, 7.7], [100, 200.5], [600, 490]]).double()
    sides = torch.tensor(
        [[0.4, 0.7], [12, 31], [111.9, 112.2], [112, 112], [230, 260.6], [700, 600]]
    )
    boxes = torch.cat(
        [torch.cat((corner, corner + s.double()))[None] for corner in corners for s in sides]
    )
    assert {openmmlab.level_of(box) for box in boxes.tolist()} == {0, 1, 2, 3}
    named = {str(level): x for level, x in enumerate(maps)}
    # Two images, the second without a box and the third with one.
    three = {name: torch.cat((x, x, x.flip(1))) for name, x in named.items()}
    found = AlignedRoIAlign(side)(three, [boxes, boxes[:0], boxes[7:8]], None)
    close(found[:-1], openmmlab.pooled(maps, boxes, side))
    close(found[-1], openmmlab.pooled([x.flip(1) for x in maps], boxes[7:8], side)[0])


def test_scores_deltas_and_masks_of_regions_are_those_of_mmdetection(detector):
    heads, state = detector.network.roi_heads, detector.state
    random = torch.Generator().manual_seed(0)
    regions = torch.randn(9, 16, 7, 7, generator=random).double()
    large = torch.randn(9, 16, 14, 14, generator=random).double()
    with torch.no_grad():
        logits, deltas = heads.box_predictor(heads.box_head(regions))
        masks = heads.mask_predictor(heads.mask_head(large))
    scores, expected = openmmlab.box_outputs(state, regions)
    close(logits.softmax(1), torch.cat((scores[:, -1:], scores[:, :-1]), 1))
    close(deltas.reshape(9, 4, 4)[:, 1:], expected)
    close(masks[:, 1:], openmmlab.mask_logits(state, large))


def test_masks_lie_in_their_boxes_as_in_mmdetection():
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 28, 28, generator=random).double()
    boxes = [
        [0, 0, 40, 30],
        [3.2, 4.9, 17.1, 5.3],
        [-4, -8, 55, 44],
        [30.5, 9, 33, 29],
        [8, 8, 9, 9],
    ]
    boxes = torch.tensor(boxes).double()
    found = paste_masks(masks, boxes, (30, 40))
    for index in range(5):
        close(found[index], openmmlab.paste(masks[index], boxes[index], (30, 40)))
    assert paste_masks(masks[:0], boxes[:0], (30, 40)).shape == (0, 30, 40)


def test_detections_in_a_small_image_are_those_of_mmdetection(detector):
    with torch.no_grad():
        (found,) = detector.network([detector.image])
    original = tuple(detector.image.shape[1:])
    expected = openmmlab.detections(
        detector.state, detector.expected, detector.size, original, 60, 40
    )
    boxes, scores, labels, masks = expected
    assert len(boxes) > 20
    assert len(labels.unique()) > 1
    close(found["boxes"], boxes)
    close(found["scores"], scores)
    assert torch.equal(found["labels"] - 1, labels)
    close(found["masks"][:, 0], masks)
    assert 0.01 < (masks > 0.5).double().mean() < 0.99
    assert torch.equal(found["masks"][:, 0] > 0.5, masks > 0.5)


def test_the_exported_detector_has_the_same_geometry(detector):
    height, width = detector.size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).double()
    assert min(height, width) == SHORT  # so that nothing is resized
    with torch.no_grad():
        (expected,) = detector.network([image[0]])
        exported = ExportedDetector(detector.network).double().eval()
        boxes, scores, labels, masks = exported(image)
    # Values of 32 bits on the way: mean, standard deviation.
    torch.testing.assert_close(boxes, expected["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(scores, expected["scores"], rtol=0, atol=1e-5)
    assert torch.equal(labels, expected["labels"])
    torch.testing.assert_close(masks, expected["masks"][:, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, (800, 1067)),
        (426, 640, (800, 1202)),
        (375, 1242, (402, 1333)),
        (7, 9, (800, 1029)),
    ],
)
def test_sides_are_resized_to_the_nearest_pixel(detector, height, width, size):
    transform = detector.network.transform
    short, long = transform.min_size, transform.max_size
    try:
        transform.min_size, transform.max_size = (800,), 1333
        image, _ = transform.resize(torch.zeros(3, height, width))
    finally:
        transform.min_size, transform.max_size = short, long
    assert tuple(image.shape[1:]) == size


def test_classifiers_of_other_classes_are_new_and_said_so(tmp_path, caplog):
    channels, entries = backbone_entries(overview=True)
    heads = values(mask_rcnn_shapes(channels, 80, **WIDTHS))
    path = file_of(tmp_path / "maskrcnn.pth", entries | heads)
    task = DetectionTask(THREE, init_from=path, **DETECTOR)
    with caplog.at_level("INFO"):
        task.load_initial_weights()
    said = dict(line.split(": ", 1) for line in caplog.text.splitlines() if ": " in line)
    ((_, unused),) = [item for item in said.items() if item[0].endswith("Not used")]
    ((_, new),) = [item for item in said.items() if item[0].endswith("New")]
    assert unused == "roi_head.bbox_head (4), roi_head.mask_head (2)"
    assert new == "roi_heads.box_predictor (4), roi_heads.mask_predictor (2)"
    assert torch.equal(task.model.rpn.head.cls_logits.bias, heads["rpn_head.rpn_cls.bias"])
    assert torch.equal(
        task.model.roi_heads.box_head.fc7.weight, heads["roi_head.bbox_head.shared_fcs.1.weight"]
    )


def test_faster_rcnn_takes_all_but_the_masks_head_and_tells_of_another_geometry(tmp_path, caplog):
    channels, entries = backbone_entries(overview=True)
    heads = values(mask_rcnn_shapes(channels, 3, **WIDTHS))
    path = file_of(tmp_path / "maskrcnn.pth", entries | heads)
    options = DETECTOR | {"masks": False, "geometry": "torchvision"}
    task = DetectionTask(THREE, init_from=path, **options)
    with caplog.at_level("INFO"):
        task.load_initial_weights()
    assert "Not used: roi_head.mask_head (12)" in caplog.text
    assert "New" not in caplog.text
    assert "model.geometry mmdetection" in caplog.text
