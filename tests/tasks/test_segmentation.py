"""Losses, metrics, inference and predictions of segmentation, computed again by hand."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from shared import quiet_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_overlock.errors import InputError
from lightning_overlock.heads import sliding_window
from lightning_overlock.heads.sliding_window import likeliest, slide
from lightning_overlock.tasks import SegmentationTask
from lightning_overlock.tasks.drawing import overlay

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def task(backbone="test_convnext", **arguments):
    torch.manual_seed(0)
    arguments = {"decoder_width": 8, "auxiliary_width": 8, "test_size": None} | arguments
    return SegmentationTask(class_names=CLASSES, backbone=backbone, **arguments)


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def labels(*sizes, seed=0):
    random = np.random.default_rng(seed)
    values = [0, 1, 2, 3, 4, 255]
    return [torch.from_numpy(random.choice(values, size)).long() for size in sizes]


def evaluation_loader(pictures, wanted, batch_size=2):
    pairs = list(zip(pictures, wanted, strict=True))
    return DataLoader(
        pairs,
        batch_size=batch_size,
        collate_fn=lambda items: [list(x) for x in zip(*items, strict=True)],
    )


def training_loss(model, pictures, wanted):
    """Return the loss and what is logged; there is no trainer."""
    logged = {}
    model.log = lambda *args, **kwargs: None
    model.log_dict = lambda values, **kwargs: logged.update(values)
    return model.training_step((pictures, wanted), 0), logged


class Pointwise(nn.Module):
    """A network that sees one pixel at a time; its logits have the size of the image."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(len(CLASSES), 3, generator=generator))

    def forward(self, pictures):
        return torch.einsum("kc,bchw->bkhw", self.weight, pictures)


def pointwise(**arguments):
    model = task(**arguments)
    model.model = Pointwise()
    return model.eval()


class TestLoss:
    @pytest.mark.parametrize("weights", [None, [0.1, 1.0, 2.0, 0.0, 1.0]])
    def test_is_the_mean_over_all_pixels_of_both_heads(self, weights):
        model = task("test_overlock", auxiliary_weight=0.3, class_weights=weights).double().eval()
        pictures = torch.stack(images((64, 96), (64, 96))).double()
        wanted = torch.stack(labels((64, 96), (64, 96)))
        loss, logged = training_loss(model, pictures, wanted)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        with torch.no_grad():
            maps = model.model.features((pictures - mean) / std)
            both = model.model.decoder(maps), model.model.auxiliary(maps[2])
            resized = [F.interpolate(x, (64, 96), mode="bilinear").numpy() for x in both]
        counted = wanted.numpy() != 255
        target = np.where(counted, wanted.numpy(), 0)
        losses = []
        for logits in resized:
            log_sum = np.log(np.exp(logits).sum(1))
            chosen = np.take_along_axis(logits, target[:, None], 1)[:, 0]
            of_class = np.array(weights or [1.0] * 5)[target]
            losses.append(((log_sum - chosen) * of_class * counted).mean())
        assert loss.item() == pytest.approx(losses[0] + 0.3 * losses[1], rel=1e-6)
        assert logged["train/decoder_loss"].item() == pytest.approx(losses[0], rel=1e-6)
        assert logged["train/auxiliary_loss"].item() == pytest.approx(losses[1], rel=1e-6)
        assert logged["train/loss"] is loss

    def test_of_a_batch_without_labels_is_nought_and_moves_nothing(self):
        model = task().train()
        wanted = torch.full((2, 64, 64), 255)
        loss, _ = training_loss(model, torch.stack(images((64, 64), (64, 64))), wanted)
        loss.backward()
        assert loss == 0
        assert all(parameter.grad.eq(0).all() for parameter in model.parameters())

    @pytest.mark.parametrize("backbone", ["test_overlock", "test_convneur", "resnet18"])
    @pytest.mark.parametrize(
        ("decoder", "weight"), [("upernet", 0.4), ("upernet", 0.0), ("semantic_fpn", 0.4)]
    )
    def test_reaches_every_parameter(self, backbone, decoder, weight):
        """What training on several processes needs."""
        model = task(backbone, decoder=decoder, auxiliary_weight=weight).train()
        assert (model.model.auxiliary is not None) == (weight > 0)
        wanted = torch.stack(labels((64, 64), (64, 64)))
        training_loss(model, torch.stack(images((64, 64), (64, 64))), wanted)[0].backward()
        missed = [name for name, value in model.named_parameters() if value.grad is None]
        assert missed == []


class TestInference:
    @pytest.mark.parametrize("backbone", ["test_overlock", "test_convneur", "test_resnet"])
    @pytest.mark.parametrize("decoder", ["upernet", "semantic_fpn"])
    def test_gives_labels_of_the_size_asked_for_whatever_the_image_s(self, backbone, decoder):
        model = task(backbone, decoder=decoder, test_flip=True, test_scales=(0.5, 1.0)).eval()
        sizes = [(45, 70), (64, 64), (33, 101), (64, 64)]
        with torch.no_grad():
            for wanted in (None, [(20, 21), (64, 64), (1, 3), (200, 5)]):
                found = model.predict_labels(images(*sizes), wanted)
                assert [tuple(x.shape) for x in found] == (wanted or sizes)
                assert all(x.dtype == torch.int64 and 0 <= x.min() <= x.max() < 5 for x in found)

    # mmcv's rescale_size for the scale (2048, 512), then up to a multiple of 32
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((512, 683), (512, 704)),
            ((683, 512), (704, 512)),
            ((300, 400), (512, 704)),
            ((1024, 1536), (512, 768)),
            ((400, 4000), (224, 2048)),
            ((512, 512), (512, 512)),
        ],
    )
    def test_sees_images_at_the_size_of_the_recipe(self, size, expected):
        model = task(test_size=512)
        seen = []
        model.forward = lambda x: seen.append(x.shape[-2:]) or torch.zeros(1, 5, 8, 8)
        model.predict_labels([torch.zeros(3, *size)])
        assert seen == [expected]

    def test_gives_an_image_alone_the_labels_that_it_has_in_a_batch(self):
        model = task().eval()
        pictures = images((64, 64), (32, 64), (64, 64))
        with torch.no_grad():
            together = model.predict_labels(pictures)
            alone = [model.predict_labels([picture])[0] for picture in pictures]
        # Sums in another order may decide a tie otherwise.
        for one, other in zip(together, alone, strict=True):
            assert (one != other).float().mean() < 0.01

    @pytest.mark.parametrize(("window", "stride"), [(64, 40), (64, 64), (32, 7), (512, 300)])
    def test_by_windows_of_a_pointwise_network_is_that_of_the_whole(self, window, stride):
        (picture,) = images((96, 160))
        model = pointwise()
        with torch.no_grad():
            slid, whole = slide(model, picture[None], 5, window, stride), model(picture[None])
        torch.testing.assert_close(slid, whole, rtol=1e-5, atol=1e-6)

    def test_by_windows_averages_where_they_overlap(self):
        numbers = iter(range(1, 4))

        def network(crop):
            return torch.full((1, 5, 8, 8), float(next(numbers)))

        found = slide(network, torch.zeros(1, 3, 32, 64), 5, 32, 16)[0, 0, 0]
        expected = np.repeat([1, 1.5, 2.5, 3], 16)  # windows at 0, 16 and 32
        assert found.tolist() == expected.tolist()

    def test_mirrored_leaves_a_symmetric_network_as_it_is(self):
        (picture,) = images((64, 96))
        plain, mirrored = pointwise(), pointwise(test_flip=True)
        with torch.no_grad():
            expected = plain.predict_labels([picture])[0]
            assert torch.equal(mirrored.predict_labels([picture])[0], expected)
        assert len(expected.unique()) > 1

    def test_of_several_views_takes_the_largest_mean_probability(self):
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(5, 8, 12, generator=generator) * 4 for _ in range(2)]
        views.append(torch.randn(5, 16, 24, generator=generator))
        found = likeliest(views, (31, 50))
        probabilities = [
            F.interpolate(view[None].double(), (31, 50), mode="bilinear")[0].softmax(0)
            for view in views
        ]
        expected = sum(probabilities).argmax(0)
        assert (found == expected).float().mean() > 0.999

    @pytest.mark.parametrize("size", [(31, 50), (8, 12), (5, 7)])
    def test_is_the_argmax_of_resized_logits_strip_by_strip(self, size, monkeypatch):
        view = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(sliding_window, "VALUES_AT_ONCE", 5 * size[1] * 3)
        expected = F.interpolate(view[None], size, mode="bilinear")[0].argmax(0)
        assert (likeliest([view], size) == expected).float().mean() > 0.999

    def test_scales_are_factors_on_the_size_of_the_image(self):
        model = task(test_size=64, test_scales=(0.5, 1.0, 1.75), test_flip=True)
        seen = []
        model.forward = lambda x: seen.append(tuple(x.shape[-2:])) or torch.zeros(1, 5, 8, 8)
        model.predict_labels([torch.zeros(3, 128, 256)])
        assert seen == [(32, 64)] * 2 + [(64, 128)] * 2 + [(128, 224)] * 2


def counted(predictions, targets):
    """IoU per class and pixel accuracy from plain counts."""
    predictions = np.concatenate([np.ravel(x) for x in predictions])
    targets = np.concatenate([np.ravel(x) for x in targets])
    predictions, targets = predictions[targets != 255], targets[targets != 255]
    iou = []
    for index in range(len(CLASSES)):
        a, b = predictions == index, targets == index
        iou.append((a & b).sum() / (a | b).sum() if (a | b).any() else np.nan)
    return np.array(iou), (predictions == targets).mean()


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_plain_counts_over_uneven_batches(tmp_path, stage, capsys):
    sizes = [(45, 70), (64, 64), (33, 101)]
    pictures, wanted = images(*sizes), [x.clamp(max=255) for x in labels(*sizes)]
    for label in wanted:
        label[label == 3] = 1  # a class that is not there
    model = task(boundary_metrics=True)
    model.model.decoder.classifier[-1].bias.data[3] = -1e6  # and never predicted
    model.model.decoder.classifier[-1].weight.data *= 100
    run = quiet_trainer(tmp_path)
    evaluate = run.validate if stage == "val" else run.test
    (found,) = evaluate(model, evaluation_loader(pictures, wanted), verbose=False)
    with torch.no_grad():
        predictions = model.eval().predict_labels(pictures)
    iou, accuracy = counted(predictions, wanted)
    assert np.isnan(iou).tolist() == [False, False, False, True, False]
    assert len(torch.cat([x.ravel() for x in predictions]).unique()) > 1
    assert found[f"{stage}/miou"] == pytest.approx(np.nanmean(iou), rel=1e-6)
    assert found[f"{stage}/pixel_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    extra = {"boundary_f1", "trimap_miou", "hausdorff"}
    assert found.keys() == {f"{stage}/{name}" for name in {"miou", "pixel_accuracy"} | extra}
    with (tmp_path / f"per_class_{stage}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == CLASSES
    assert [float(row["iou"] or "nan") for row in rows] == pytest.approx(iou, abs=1e-6, nan_ok=True)
    pixels = [sum(int((x == index).sum()) for x in wanted) for index in range(5)]
    assert [int(row["pixels"]) for row in rows] == pixels
    assert "elk" in capsys.readouterr().out


def test_metrics_start_anew_with_every_validation(tmp_path):
    model = task()
    first = evaluation_loader(images((40, 40)), labels((40, 40)))
    run = quiet_trainer(tmp_path)
    alone = run.validate(model, first, verbose=False)
    second = evaluation_loader(images((50, 40), seed=1), labels((50, 40), seed=1))
    run.validate(model, second, verbose=False)
    assert run.validate(model, first, verbose=False) == alone


def test_predictions_are_label_pngs_in_the_folders_of_their_images(tmp_path):
    model = task(save_overlays=True)
    pictures = images((40, 50), (33, 35))
    loader = evaluation_loader(pictures, ["a.jpg", "deep/er/b.png"])
    quiet_trainer(tmp_path).predict(model, loader)
    with torch.no_grad():
        expected = model.eval().predict_labels(pictures)
    for name, labels_of, picture in zip(("a", "deep/er/b"), expected, pictures, strict=True):
        path = tmp_path / "segmentation" / f"{name}.png"
        with Image.open(path) as file:
            assert file.mode == "L"
            assert np.array_equal(np.array(file), labels_of.numpy())
        with Image.open(path.with_suffix(".overlay.png")) as file:
            assert file.size == (picture.shape[2], picture.shape[1])


def test_drawings_are_overlays_of_what_is_predicted():
    model = task().eval()
    pictures = images((40, 50), (64, 33))
    with torch.no_grad():
        drawn = model.draw(pictures)
        predicted = model.predict_labels(pictures)
    for found, picture, labels_of in zip(drawn, pictures, predicted, strict=True):
        assert torch.equal(found, overlay(picture, labels_of, model.palette))
        assert (found.dtype, found.shape) == (torch.uint8, picture.shape)


def test_an_overlay_mixes_the_class_s_colour_and_leaves_ignored_pixels():
    image = torch.full((3, 2, 3), 0.5)
    drawn = overlay(image, torch.tensor([[0, 1, 255]] * 2), [(255, 0, 0), (0, 0, 200)])
    expected = [[0.4 * 128 + 0.6 * 255, 51, 51], [51, 51, 0.4 * 128 + 120], [128] * 3]
    assert np.allclose(drawn[:, 0].T.numpy(), expected, atol=1)


def test_a_tiny_set_is_learnt(tmp_path):
    """Left half and right half of two images, by their colours."""
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 64, 64) * 0.2
    wanted = torch.zeros(2, 64, 64, dtype=torch.int64)
    pictures[0, 0, :, 32:] += 0.8
    wanted[0, :, 32:] = 1
    pictures[1, 1, :32] += 0.8
    wanted[1, :32] = 2
    wanted[:, ::9] = 255
    model = task("test_resnet", lr=3e-3, dropout=0.0)
    train = DataLoader(list(zip(pictures, wanted, strict=True)), batch_size=2)
    val = evaluation_loader(list(pictures), list(wanted))
    run = quiet_trainer(tmp_path, max_epochs=30, check_val_every_n_epoch=30, log_every_n_steps=1)
    run.fit(model, train, val)
    assert run.callback_metrics["val/miou"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stride": 600, "inference": "slide"}, "model.stride is 600"),
        ({"test_scales": ()}, "test_scales is empty"),
        ({"test_scales": (1.0, 0.0)}, "model.test_scales: found 0.0, expected a number above 0"),
        ({"test_size": 0}, "model.test_size: found 0, expected a number of at least 1"),
        (
            {"test_size": 512, "test_max_size": 500},
            "max_size is 500, expected at least test_size, 512",
        ),
        ({"auxiliary_weight": -1}, "auxiliary_weight: found -1"),
        ({"class_weights": [1.0, 1.0]}, "expected 5 numbers of at least 0, in the order ant, bee"),
        ({"backbone": "vit_tiny_patch16_224"}, "maps at the reductions"),
        ({"backbone": "resnet19"}, "Did you mean 'resnet18'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        task(**arguments)


def test_more_classes_than_a_label_png_has_values_are_refused():
    with pytest.raises(InputError, match="255 classes"):
        SegmentationTask(class_names=[str(i) for i in range(255)], backbone="test_resnet")
