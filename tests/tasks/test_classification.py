"""Losses, targets, metrics and predictions of classification, computed again by hand."""

import csv

import numpy as np
import pytest
import torch
from shared import quiet_trainer
from sklearn.metrics import log_loss, top_k_accuracy_score
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask
from lightning_overlock.tasks.drawing import draw_class

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def task(backbone="test_overlock", **arguments):
    return ClassificationTask(class_names=CLASSES, backbone=backbone, **arguments)


def batch(count=4, size=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.arange(count) % len(CLASSES)


def training_loss(model, images, labels):
    model.log = lambda *args, **kwargs: None  # there is no trainer
    return model.training_step((images, labels), 0)


def cross_entropy(logits, targets):
    """Mean over images of - sum over classes of target * log probability."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return -(targets * np.log(exponentials / exponentials.sum(1, keepdims=True))).sum(1).mean()


def test_the_loss_is_that_of_both_heads_against_smoothed_targets():
    model = task(overview_weight=0.3, label_smoothing=0.2).double().eval()
    images, labels = batch(dtype=torch.float64)
    targets = np.eye(len(CLASSES))[labels] * 0.8 + 0.2 / len(CLASSES)
    with torch.no_grad():
        main, overview = (logits.numpy() for logits in model.model.forward_overview(images))
    expected = cross_entropy(main, targets) + 0.3 * cross_entropy(overview, targets)
    assert training_loss(model, images, labels).item() == pytest.approx(expected, rel=1e-12)


def test_mixed_soft_targets_meet_both_heads(monkeypatch):
    model = task(mixup=0.8, label_smoothing=0.1).double().eval()
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.3)
    images, labels = batch(dtype=torch.float64)
    one_hot = np.eye(len(CLASSES))[labels] * 0.9 + 0.1 / len(CLASSES)
    targets = 0.3 * one_hot + 0.7 * one_hot[::-1]
    mixed = 0.3 * images + 0.7 * images.flip(0)
    with torch.no_grad():
        main, overview = (logits.numpy() for logits in model.model.forward_overview(mixed))
    expected = cross_entropy(main, targets) + 0.4 * cross_entropy(overview, targets)
    found = training_loss(model, images, labels).item()
    assert found == pytest.approx(expected, rel=1e-6)  # timm makes float32 targets


def test_the_soft_target_loss_is_that_of_timm():
    model = task("test_resnet", mixup=0.8).eval()
    images, labels = batch()
    mixed, targets = model.mix(images.clone(), labels)
    model.mix = lambda *args: (mixed, targets)
    expected = SoftTargetCrossEntropy()(model(mixed), targets)
    torch.testing.assert_close(training_loss(model, images, labels), expected)


def test_cutmix_pastes_a_box_and_weighs_the_labels_by_its_area(monkeypatch):
    model = task("test_resnet", cutmix=1.0, label_smoothing=0.0)
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.75)  # a box of half the side
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: 2)  # centred at (2, 2)
    images, labels = batch()
    mixed, targets = model.mix(images.clone(), labels)
    expected = images.clone()
    expected[:, :, :10, :10] = images.flip(0)[:, :, :10, :10]  # 2 - 8 is cut off at 0
    torch.testing.assert_close(mixed, expected)
    kept = 1 - 100 / 32**2
    one_hot = torch.eye(len(CLASSES))[labels]
    torch.testing.assert_close(targets, kept * one_hot + (1 - kept) * one_hot.flip(0))


@pytest.mark.parametrize(("switch", "is_cutmix"), [(0.0, False), (1.0, True)])
def test_the_switch_chooses_between_mixup_and_cutmix(switch, is_cutmix):
    model = task("test_resnet", mixup=0.8, cutmix=1.0, mixup_switch_prob=switch)
    images, labels = batch()
    mixed, _ = model.mix(images.clone(), labels)
    pasted = (mixed == images) | (mixed == images.flip(0))
    assert bool(pasted.all()) == is_cutmix


def test_a_batch_is_left_alone_as_often_as_asked():
    model = task("test_resnet", mixup=0.8, mixup_prob=0.0)
    images, labels = batch()
    mixed, _ = model.mix(images.clone(), labels)
    assert torch.equal(mixed, images)


def test_mixing_an_odd_batch_is_refused():
    with pytest.raises(InputError, match="batch of 5"):
        task("test_resnet", mixup=0.8).mix(*batch(5))


@pytest.mark.parametrize(
    ("arguments", "has_head"),
    [
        ({}, True),
        ({"overview_weight": 0.0}, False),
        ({"backbone_args": {"dds": False}}, False),
        ({"backbone": "test_convnext"}, False),
    ],
)
def test_every_parameter_gets_a_gradient(arguments, has_head):
    """What DDP needs: the overview head is there only if its loss counts."""
    model = task(**arguments).train()
    assert any("overview_head" in name for name, _ in model.named_parameters()) == has_head
    training_loss(model, *batch()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_those_of_scikit_learn_over_uneven_batches(tmp_path, stage):
    model = task("test_convnext")
    images, labels = batch(19)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    run = quiet_trainer(tmp_path)
    evaluate = run.validate if stage == "val" else run.test
    (found,) = evaluate(model, loader, verbose=False)
    model.eval()
    with torch.no_grad():
        probabilities = model(images).double().softmax(1).numpy()
    names = range(len(CLASSES))
    assert found == pytest.approx(
        {
            f"{stage}/loss": log_loss(labels, probabilities, labels=names),
            f"{stage}/top1": top_k_accuracy_score(labels, probabilities, k=1, labels=names),
            f"{stage}/top5": top_k_accuracy_score(labels, probabilities, k=5, labels=names),
        },
        rel=1e-5,
    )
    assert 0 < found[f"{stage}/top5"] < 1


def test_metrics_start_anew_with_every_validation(tmp_path):
    model = task("test_convnext")
    images, labels = batch(8)
    first = DataLoader(TensorDataset(images, labels), batch_size=8)
    run = quiet_trainer(tmp_path)
    alone = run.validate(model, first, verbose=False)
    run.validate(model, DataLoader(TensorDataset(*batch(5)), batch_size=8), verbose=False)
    assert run.validate(model, first, verbose=False) == alone


def test_top5_of_three_classes_counts_all_three(tmp_path):
    model = ClassificationTask(class_names=["a", "b", "c"], backbone="test_convnext")
    loader = DataLoader(TensorDataset(batch()[0], torch.tensor([0, 1, 2, 0])), batch_size=4)
    (found,) = quiet_trainer(tmp_path).validate(model, loader, verbose=False)
    assert found["val/top5"] == 1


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:3]])
def test_predictions_csv_has_the_likeliest_classes_of_every_item(tmp_path, classes):
    model = ClassificationTask(class_names=classes, backbone="test_convnext")
    images, _ = batch(5)
    items = ["a.png", "b, c.png", "d/e.png", 'f"g.png', "hé.png"]
    loader = DataLoader(list(zip(images, items, strict=True)), batch_size=2)
    run = quiet_trainer(tmp_path / "run")
    for _ in range(2):  # the second time replaces the first
        run.predict(model, loader)
    with (tmp_path / "run" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    count = min(5, len(classes))
    ranks = range(1, count + 1)
    assert header == ["item", *(f"class{r}" for r in ranks), *(f"probability{r}" for r in ranks)]
    assert [row[0] for row in rows] == items
    model.eval()
    with torch.no_grad():
        probabilities = model(images).double().softmax(1).numpy()
    for row, expected in zip(rows, probabilities, strict=True):
        order = expected.argsort()[::-1][:count]
        assert row[1 : 1 + count] == [classes[index] for index in order]
        assert np.array(row[1 + count :], float) == pytest.approx(expected[order], abs=1e-6)


def test_bf16_trains_to_finite_weights_with_a_float32_loss(tmp_path):
    model = task(mixup=0.8)
    loader = DataLoader(TensorDataset(*batch(8)), batch_size=4)
    quiet_trainer(tmp_path, max_epochs=1, precision="bf16-mixed", log_every_n_steps=1).fit(
        model, loader, loader
    )
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert training_loss(model, *batch()).dtype == torch.float32


def test_the_likeliest_class_is_written_on_each_image(monkeypatch):
    monkeypatch.setattr(
        "lightning_overlock.tasks.classification.draw_class", lambda image, words: words
    )
    model = task("test_convnext").eval()
    logits = torch.tensor([[0.0, 3, 1, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 0, 9]])
    monkeypatch.setattr(model.model, "forward", lambda images: logits)
    assert model.draw(batch(2)[0]) == ["bee", "gnu"]


@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_the_class_can_be_read_on_dark_and_bright_images(ground):
    image = torch.full((3, 48, 48), ground)
    image[:, 40:, 40:] = 1 - ground  # or there would be no range to stretch
    drawn = draw_class(image, "bee")
    empty = draw_class(image, "")
    corner = drawn[:, 2:16, 2:24]
    assert int(corner.max()) > 200
    assert int(corner.min()) < 50
    assert ((drawn != empty).any(0).sum()) > 20


def test_validation_before_training_does_no_harm(tmp_path):
    model = task("test_convnext")
    loader = DataLoader(TensorDataset(*batch(4)), batch_size=2)
    quiet_trainer(tmp_path).validate(model, loader, verbose=False)
    quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1).fit(
        model, loader, loader
    )
