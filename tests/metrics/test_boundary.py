"""Metrics of label maps on shapes whose scores are known, and against plain numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist, directed_hausdorff

from lightning_overlock.errors import InputError
from lightning_overlock.metrics.boundary import BoundaryF1, HausdorffDistance, TrimapIoU, class_iou


def square(top, left, side=20, size=60):
    """A square of class 1 on class 0."""
    labels = torch.zeros(size, size, dtype=torch.int64)
    labels[top : top + side, left : left + side] = 1
    return labels


def disc(radius, size=101):
    rows, columns = np.indices((size, size)) - size // 2
    return torch.from_numpy((np.hypot(rows, columns) <= radius).astype(np.int64))


def one_class(metric, prediction, target, index=1):
    """The score of one class, which the mean over classes hides."""
    metric.update(prediction, target)
    return (metric.total[index] / metric.count[index]).item()


def outline(mask):
    """Pixels of a mask with a pixel outside it, or the image's edge, among four neighbours."""
    inside = np.pad(mask, 1)
    within = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.argwhere(mask & ~within)


class TestClassIoU:
    def test_is_that_of_the_sets_of_pixels(self):
        random = np.random.default_rng(0)
        prediction, target = random.integers(0, 5, (2, 400))
        confusion = np.zeros((6, 6), np.int64)
        np.add.at(confusion, (target, prediction), 1)
        found = class_iou(torch.from_numpy(confusion)).numpy()
        for index in range(5):
            a, b = prediction == index, target == index
            assert found[index] == pytest.approx((a & b).sum() / (a | b).sum(), rel=1e-14)
        assert np.isnan(found[5])  # in neither


class TestBoundaryF1:
    def test_of_equal_maps_is_one(self):
        metric = BoundaryF1(3)
        metric.update(square(10, 10), square(10, 10))
        assert metric.compute() == 1

    @pytest.mark.parametrize("shift", [1, 2, 3, 7])
    def test_of_a_shifted_square_is_the_share_of_its_outline_within_the_tolerance(self, shift):
        metric = BoundaryF1(2, tolerance=2 / math.hypot(60, 60))
        found = one_class(metric, square(10, 10 + shift), square(10, 10))
        moved, wanted = (outline(square(10, left).numpy() == 1) for left in (10 + shift, 10))
        near = cdist(moved, wanted).min(1) <= 2
        # By symmetry precision and recall are equal, and so is their mean.
        assert found == pytest.approx(near.mean(), rel=1e-6)
        assert (found == 1) == (shift <= 2)

    def test_leaves_the_edge_of_the_image_out(self):
        """Halves of an image: the boundary is one column each."""
        left, right = square(0, 0, 60), square(0, 0, 60)
        left[:, 30:], right[:, 40:] = 0, 0
        metric = BoundaryF1(2, tolerance=5 / math.hypot(60, 60))
        metric.update(left, right)
        assert metric.compute() == 0

    def test_scores_a_missed_class_with_nought_and_a_map_of_one_class_with_one(self):
        missed = BoundaryF1(2)
        missed.update(torch.zeros(60, 60, dtype=torch.int64), square(10, 10))
        assert missed.compute() == 0
        whole = BoundaryF1(2)
        whole.update(torch.zeros(9, 9, dtype=torch.int64), torch.zeros(9, 9, dtype=torch.int64))
        assert whole.compute() == 1

    def test_is_not_moved_by_ignored_pixels(self):
        target, prediction = square(10, 10), square(10, 10)
        target[:, 40:] = 255
        prediction[20:40, 45:] = 1
        metric = BoundaryF1(2)
        metric.update(prediction, target)
        assert metric.compute() == 1


class TestTrimapIoU:
    def test_counts_the_band_and_nothing_else(self):
        """Two halves; the prediction's boundary is 2 columns off, the band is 3 wide each side."""
        target = torch.zeros(40, 40, dtype=torch.int64)
        target[:, 20:] = 1
        prediction = torch.zeros(40, 40, dtype=torch.int64)
        prediction[:, 22:] = 1
        prediction[:5, :10] = 1  # far from the boundary
        metric = TrimapIoU(2, width=2)  # columns 17..22
        metric.update(prediction, target)
        expected = (3 / 5 + 1 / 3) / 2
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)

    def test_of_a_band_as_wide_as_the_image_is_the_mean_iou(self):
        random = np.random.default_rng(0)
        prediction, target = torch.from_numpy(random.integers(0, 4, (2, 3, 15, 17)))
        metric = TrimapIoU(4, width=99)
        metric.update(prediction, target)
        iou = [
            ((prediction == c) & (target == c)).sum() / ((prediction == c) | (target == c)).sum()
            for c in range(4)
        ]
        assert metric.compute().item() == pytest.approx(np.mean(iou), rel=1e-6)

    def test_takes_a_transition_to_ignored_pixels_for_no_boundary(self):
        target = torch.zeros(20, 20, dtype=torch.int64)
        target[:, 10:] = 255
        metric = TrimapIoU(2)
        metric.update(torch.ones_like(target), target)
        assert metric.compute().isnan()

    def test_leaves_its_input_alone(self):
        target = square(10, 10)
        TrimapIoU(2, width=1).update(square(10, 10), target)
        assert torch.equal(target, square(10, 10))


class TestHausdorffDistance:
    @pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 7), (3, 4), (20, 20)])
    def test_of_a_shifted_square_is_the_length_of_the_shift(self, down, right):
        found = one_class(
            HausdorffDistance(2, percentile=100), square(10 + down, 10 + right), square(10, 10)
        )
        assert found == pytest.approx(math.hypot(down, right), rel=1e-6)

    def test_of_concentric_discs_is_the_difference_of_their_radii(self):
        for percentile in (95, 100):
            found = one_class(HausdorffDistance(2, percentile=percentile), disc(40), disc(25))
            assert found == pytest.approx(15, abs=0.8)  # outlines of whole pixels

    def test_of_a_stray_pixel_shows_in_the_maximum_and_not_in_the_percentile(self):
        stray = square(10, 10)
        stray[59, 59] = 1
        assert one_class(HausdorffDistance(2), stray, square(10, 10)) == 0
        found = one_class(HausdorffDistance(2, percentile=100), stray, square(10, 10))
        assert found == pytest.approx(math.hypot(30, 30), rel=1e-6)

    def test_of_a_class_in_one_map_only_is_the_diagonal(self):
        metric = HausdorffDistance(3)
        metric.update(square(0, 0) * 2, square(0, 0))
        assert metric.total.tolist() == pytest.approx([0, math.hypot(60, 60), math.hypot(60, 60)])

    @given(maps=arrays(np.bool_, (2, 9, 11)))
    @settings(max_examples=60, deadline=None)
    def test_is_scipy_s(self, maps):
        if not (maps[0].any() and maps[1].any()):
            return
        prediction, target = torch.from_numpy(maps.astype(np.int64))
        found = one_class(HausdorffDistance(2, percentile=100), prediction, target)
        a, b = map(outline, maps)
        expected = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
        assert found == pytest.approx(expected, rel=1e-6)


def metrics():
    return [BoundaryF1(4), TrimapIoU(4, width=2), HausdorffDistance(4)]


@given(
    prediction=arrays(np.int64, (3, 12, 13), elements=st.integers(0, 3)),
    target=arrays(np.int64, (3, 12, 13), elements=st.sampled_from([0, 1, 2, 3, 255])),
    garbage=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
def test_metrics_are_sums_over_images_and_blind_where_the_target_is_ignored(
    prediction, target, garbage
):
    prediction, target = torch.from_numpy(prediction), torch.from_numpy(target)
    for whole, first, second in zip(metrics(), metrics(), metrics(), strict=True):
        whole.update(prediction, target)
        disturbed = torch.where(target == 255, garbage, prediction)
        first.update(disturbed[:1], target[:1])
        for index in (1, 2):
            second.update(disturbed[index], target[index])
        for name in whole.metric_state:  # what processes add up
            merged = getattr(first, name) + getattr(second, name)
            torch.testing.assert_close(merged, getattr(whole, name), equal_nan=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrimapIoU(2, width=0), "width is 0"),
        (lambda: BoundaryF1(2, tolerance=0), "tolerance is 0"),
        (lambda: HausdorffDistance(2, percentile=101), "percentile is 101"),
    ],
)
def test_impossible_arguments_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
