"""Images, boxes, masks and label maps change together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from lightning_overlock.data import dense_transforms
from lightning_overlock.data.dense_transforms import (
    MEAN_COLOUR,
    PadTo,
    RandomRatioResize,
    RandomSizedCrop,
    RandomVariedCrop,
    detection_transform,
    segmentation_transform,
    to_float,
)
from lightning_overlock.data.loading import seeded


def scene(height: int, width: int, objects: int, seed: int) -> dict[str, torch.Tensor]:
    """Rectangles that cover nothing of one another's mask, each with a grey value of its own."""
    random = np.random.default_rng(seed)
    image = np.zeros((3, height, width), np.uint8)
    masks = np.zeros((objects, height, width), np.uint8)
    boxes = np.zeros((objects, 4), np.float32)
    for number in range(objects):
        left, right = sorted(random.choice(width + 1, 2, replace=False).tolist())
        top, bottom = sorted(random.choice(height + 1, 2, replace=False).tolist())
        image[:, top:bottom, left:right] = 20 * (number + 1)
        masks[number, top:bottom, left:right] = 1
        boxes[number] = left, top, right, bottom
    return {
        "image": tv_tensors.Image(torch.from_numpy(image)),
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width)
        ),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
    }


def assert_boxes_fit_masks(sample: dict[str, torch.Tensor], tolerance: float) -> None:
    assert sample["masks"].shape[-2:] == sample["image"].shape[-2:]
    for mask, box in zip(sample["masks"], sample["boxes"], strict=True):
        if mask.any():
            (found,) = masks_to_boxes(mask[None])
            found[2:] += 1
            assert (found - box).abs().max() <= tolerance
        else:
            assert min(box[2] - box[0], box[3] - box[1]) <= tolerance


@given(
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    objects=st.integers(1, 4),
    shortest=st.integers(1, 30),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_boxes_fit_masks_after_flips_and_crops(height, width, objects, shortest, seed):
    before = scene(height, width, objects, seed)
    with seeded(seed):
        flipped = detection_transform(1.0, False)(before)
        sample = RandomSizedCrop(shortest, 40)(flipped)
    assert torch.equal(flipped["image"], before["image"].flip(-1))
    assert torch.equal(flipped["boxes"][:, 0], width - before["boxes"][:, 2])
    for side, found in zip((height, width), sample["image"].shape[-2:], strict=True):
        assert min(shortest, side) <= found <= min(max(40, shortest), side)
    assert_boxes_fit_masks(sample, 0)
    # The uppermost object is where its grey value is.
    assert torch.equal(sample["masks"][-1].bool(), sample["image"][0] == 20 * objects)


@pytest.mark.parametrize("size", [(300, 400), (640, 480)])
def test_every_second_image_is_scaled_and_cropped_as_for_detr(size):
    sizes = []
    transform = detection_transform(0.5, True)
    for seed in range(20):
        with seeded(seed):
            sample = transform(scene(*size, 2, seed))
        assert_boxes_fit_masks(sample, 2.5)  # masks are resized by whole pixels
        sizes.append(tuple(sample["image"].shape[-2:]))
    cropped = [found for found in sizes if found != size]
    assert 4 <= len(cropped) <= 16
    assert all(384 <= side <= 600 for found in cropped for side in found)
    assert len(set(cropped)) > len(cropped) // 2


@pytest.mark.parametrize(
    ("before", "ratio", "after"),
    [
        ((480, 640), 1.0, (512, 683)),
        ((640, 480), 1.0, (683, 512)),
        ((100, 1000), 1.0, (205, 2048)),  # the long side is the limit
        ((512, 512), 2.0, (1024, 1024)),
        ((512, 2048), 0.5, (256, 1024)),
    ],
)
def test_images_are_resized_to_a_frame_times_the_ratio(before, ratio, after):
    resize = RandomRatioResize((2048, 512), (ratio, ratio))
    image, labels = resize(
        tv_tensors.Image(torch.zeros(3, *before, dtype=torch.uint8)),
        tv_tensors.Mask(torch.zeros(before, dtype=torch.uint8)),
    )
    assert tuple(image.shape[-2:]) == tuple(labels.shape) == after


def test_crops_avoid_places_with_one_class_only():
    labels = torch.full((64, 64), 255, dtype=torch.uint8)
    labels[:, :48] = 1
    labels[:32, :20] = 2
    crop = RandomVariedCrop((32, 32), 0.75)
    shares = []
    for seed in range(40):
        with seeded(seed):
            found = crop(tv_tensors.Mask(labels))
        assert found.shape == (32, 32)
        counts = torch.bincount(found[found != 255].long())
        shares.append(float(counts.max() / counts.sum()))
    # A crop at random has enough of class 2 only where its place is within 20 or so of a corner.
    anywhere = [
        torch.bincount(labels[top : top + 32, left : left + 32].flatten(), minlength=3)[1:3]
        for top in range(33)
        for left in range(33)
    ]
    by_chance = np.mean([bool(c.max() < 0.75 * c.sum()) for c in anywhere])
    assert by_chance < 0.3
    assert np.mean(np.array(shares) < 0.75) > 0.6


def test_what_is_missing_of_a_crop_is_the_mean_colour_and_ignored():
    image, labels = PadTo((6, 8))(
        tv_tensors.Image(torch.zeros(3, 4, 5)), tv_tensors.Mask(torch.zeros(4, 5).byte())
    )
    assert image.shape == (3, 6, 8)
    assert torch.equal(image[:, 5, 7], torch.tensor(MEAN_COLOUR))
    assert torch.equal(image[:, :4, 5], torch.tensor(MEAN_COLOUR)[:, None].expand(3, 4))
    assert not image[:, :4, :5].any()
    assert (labels == 255).sum() == 6 * 8 - 4 * 5
    assert not labels[:4, :5].any()


@given(height=st.integers(4, 80), width=st.integers(4, 80), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_label_maps_stay_on_their_pixels(height, width, seed):
    # Without resizing each pixel's value says what its label is.
    transform = segmentation_transform(
        crop_size=(32, 48),
        resize=(max(height, width), min(height, width)),
        ratio=(1.0, 1.0),
        largest_share=0.75,
        hflip=0.5,
        photometric=False,
    )
    values = torch.randint(0, 200, (height, width), generator=torch.Generator().manual_seed(seed))
    values = values.byte()
    with seeded(seed):
        image, labels = transform(
            tv_tensors.Image(values.expand(3, -1, -1).clone()), tv_tensors.Mask(values)
        )
    assert image.shape == (3, 32, 48)
    assert image.dtype == torch.float32
    inside = labels != 255
    assert inside.sum() == min(height, 32) * min(width, 48)
    assert torch.equal((image[0] * 255).round().byte()[inside], labels[inside])


def test_resized_label_maps_stay_on_their_objects():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:30, 20:50] = 200
    labels = tv_tensors.Mask((image[0] > 0).byte())
    transform = segmentation_transform((64, 64), (60, 40), (0.5, 2.0), 1.0, 0.5, False)
    for seed in range(20):
        with seeded(seed):
            found, marked = transform(tv_tensors.Image(image), labels)
        known = marked != 255
        agree = (found[0] > 100 / 255)[known] == marked[known].bool()
        assert agree.float().mean() > 0.93  # all but the edges


def test_colours_change_but_stay_near_and_labels_do_not():
    red = torch.zeros(3, 16, 16, dtype=torch.uint8)
    red[0] = 200
    labels = tv_tensors.Mask(torch.arange(256).reshape(16, 16).byte())
    transform = segmentation_transform((16, 16), (16, 16), (1.0, 1.0), 1.0, 0.0, True)
    colours = set()
    for seed in range(30):
        with seeded(seed):
            image, found = transform(tv_tensors.Image(red), labels)
        assert torch.equal(found, labels)
        assert image[0].mean() == image.mean((1, 2)).max()  # channels are not swapped
        colours.add(tuple(image[:, 0, 0].tolist()))
    assert len(colours) > 15


def test_the_same_seed_gives_the_same_sample():
    for transform in (detection_transform(0.5, True),):
        with seeded(1, 2, 3):
            one = transform(scene(400, 500, 3, 1))
        with seeded(1, 2, 3):
            two = transform(scene(400, 500, 3, 1))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_floats_are_plain_tensors_between_zero_and_one():
    image = to_float(tv_tensors.Image(torch.tensor([[0, 51, 255]], dtype=torch.uint8)))
    assert type(image) is torch.Tensor
    assert torch.allclose(image, torch.tensor([[0, 0.2, 1]]))
    assert dense_transforms.IGNORE == 255
