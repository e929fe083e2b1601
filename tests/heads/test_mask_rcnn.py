"""Mask R-CNN's settings against mmdetection's 1x configuration, its losses and its sizes."""

import pytest
import torch

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.heads.mask_rcnn import mask_rcnn

TINY = dict(min_size=64, max_size=96, fpn_width=16, box_head_width=32, mask_head_width=8)


def scene():
    """Return two images of different sizes, one with two objects and one with none."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.rand(3, 60, 80, generator=generator),
        torch.rand(3, 50, 40, generator=generator),
    ]
    masks = torch.zeros(2, 60, 80, dtype=torch.uint8)
    masks[0, 5:40, 5:30] = 1
    masks[1, 20:50, 40:70] = 1
    empty = torch.zeros(0)
    targets = [
        {
            "boxes": torch.tensor([[5.0, 5, 30, 40], [40, 20, 70, 50]]),
            "labels": torch.tensor([2, 3]),
            "masks": masks,
        },
        {
            "boxes": empty.reshape(0, 4),
            "labels": empty.long(),
            "masks": torch.zeros(0, 50, 40, dtype=torch.uint8),
        },
    ]
    return images, targets


@pytest.fixture(scope="module")
def default():
    """The network as `coco_1x` has it, without memory for its weights."""
    with torch.device("meta"):
        return mask_rcnn(DenseFeatures("test_overlock", overview=True), 80)


def test_settings_are_those_of_mmdetections_1x_configuration(default):
    rpn, heads = default.rpn, default.roi_heads
    assert rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),) * 5
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert rpn.nms_thresh == 0.7
    matcher = rpn.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold) == (0.7, 0.3)
    sampler = rpn.fg_bg_sampler
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (256, 0.5)
    matcher = heads.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold) == (0.5, 0.5)
    sampler = heads.fg_bg_sampler
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)  # standard deviations .1 .1 .2 .2
    for pool, size in ((heads.box_roi_pool, 7), (heads.mask_roi_pool, 14)):
        assert pool.featmap_names == ["0", "1", "2", "3"]
        assert (pool.output_size, pool.sampling_ratio) == ((size, size), 0)
        assert (pool.canonical_scale, pool.canonical_level) == (224, 4)  # mmdetection: 56, 2
    transform = default.transform
    assert (transform.min_size, transform.max_size, transform.size_divisible) == ((800,), 1333, 32)


def test_heads_have_the_parameters_of_the_release(default):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    channels = [8, 16, 32, 40]
    assert count(default.backbone.fpn) == sum(c * 256 + 256 for c in channels) + 4 * (
        256 * 256 * 9 + 256
    )
    assert count(default.rpn) == 256 * 256 * 9 + 256 + 15 * 257
    fully_connected = 256 * 49 * 1024 + 1024 + 1024 * 1024 + 1024
    assert count(default.roi_heads.box_head) == fully_connected
    assert count(default.roi_heads.box_predictor) == 1025 * 81 * 5
    assert count(default.roi_heads.mask_head) == 4 * (256 * 256 * 9 + 256)
    assert count(default.roi_heads.mask_predictor) == 256 * 256 * 4 + 256 + 257 * 81


def test_images_are_normalised_as_the_backbone_wants_them():
    features = DenseFeatures(
        "test_resnet", {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)}}
    )
    network = mask_rcnn(features, 3, **TINY).eval()
    seen = []
    features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network([torch.ones(3, 64, 64)])
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor([0.9, 0.4, 0.175]))


@pytest.mark.parametrize(
    ("name", "masks", "geometry"),
    [
        ("test_overlock", True, "torchvision"),
        ("test_overlock", False, "mmdetection"),
        ("test_resnet", True, "mmdetection"),
        ("test_resnet", False, "torchvision"),
    ],
)
def test_losses_reach_every_parameter(name, masks, geometry):
    torch.manual_seed(0)
    network = mask_rcnn(DenseFeatures(name), 3, masks, geometry=geometry, **TINY)
    losses = network(*scene())
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert set(losses) == names | ({"loss_mask"} if masks else set())
    sum(losses.values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_detections_are_in_pixels_of_the_image_in_either_layout(layout):
    torch.manual_seed(0)
    network = mask_rcnn(
        DenseFeatures("test_overlock", overview=True), 3, score_threshold=0.0, **TINY
    )
    network.to(memory_format=layout)
    images, targets = scene()
    sum(network(images, targets).values()).backward()
    with torch.no_grad():
        found = network.eval()(images)
    for image, detections in zip(images, found, strict=True):
        height, width = image.shape[1:]
        boxes, count = detections["boxes"], len(detections["scores"])
        assert 0 < count <= 100
        assert detections["masks"].shape == (count, 1, height, width)
        assert set(detections["labels"].tolist()) <= {1, 2, 3}
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height


@pytest.mark.parametrize("geometry", ["torchvision", "mmdetection"])
def test_boxes_keep_their_bits_in_mixed_precision(geometry):
    """bfloat16 tells apart only every eighth pixel above 1024."""
    torch.manual_seed(0)
    network = mask_rcnn(
        DenseFeatures("test_resnet"), 3, score_threshold=0.0, geometry=geometry, **TINY
    ).eval()
    anchors = []
    network.rpn.anchor_generator.register_forward_hook(lambda part, args, out: anchors.append(out))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = network([torch.rand(3, 60, 80)])
    assert anchors[0][0].dtype == torch.float32
    assert found["boxes"].dtype == torch.float32
    rounded = found["boxes"].bfloat16().float()
    assert (rounded != found["boxes"]).double().mean() > 0.3


def test_it_learns_the_one_scene_it_is_shown():
    torch.manual_seed(0)
    network = mask_rcnn(DenseFeatures("test_resnet"), 3, roi_batch_size=32, anchor_scale=4, **TINY)
    images, targets = scene()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    first = last = None
    for _ in range(25):
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
        last = loss.item()
    assert last < first / 2
