"""Distillation: losses in float64, a teacher that is frozen and saved nowhere, exact resuming."""

import math

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from shared import SaveAfterEpoch, quiet_trainer, write_checkpoint
from timm.data import create_transform

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.data import DigitsDataModule
from lightning_overlock.data.normalisation import Normalisation
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask
from lightning_overlock.tasks.distillation import (
    feature_loss,
    load_teacher,
    logit_loss,
)
from lightning_overlock.tasks.load import load

CONFIG = {
    "model": {"class_path": "lightning_overlock.tasks.ClassificationTask"},
    "data": {"class_path": "lightning_overlock.data.DigitsDataModule", "init_args": {}},
}


def digits():
    return DigitsDataModule(batch_size=8, image_size=32, num_workers=0)


def student(teacher, **options):
    seed_everything(1, verbose=False)
    return ClassificationTask(
        digits().class_names, backbone="test_convnext", teacher=str(teacher), lr=1e-2, **options
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint of a network that has learned nothing, but says something."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    torch.manual_seed(7)
    task = ClassificationTask(digits().class_names, backbone="test_convnext2")
    with torch.no_grad():
        task.model.head.fc.weight.normal_(std=3)
    write_checkpoint(path, task, digits(), CONFIG)
    return path


def fit(task, folder, epochs=1, ckpt_path=None, callbacks=()):
    seed_everything(1, verbose=False)
    trainer = quiet_trainer(
        folder, max_epochs=epochs, limit_train_batches=3, limit_val_batches=1,
        callbacks=list(callbacks), use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, digits(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_losses_are_those_of_float64():
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=(2, 6, 5)) * 3

    def shares(logits, temperature):
        found = np.exp(logits / temperature)
        return found / found.sum(1, keepdims=True)

    for temperature in (1.0, 3.0, 0.5):
        p, q = shares(other, temperature), shares(own, temperature)
        expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
        found = logit_loss(torch.tensor(own), torch.tensor(other), temperature)
        assert float(found) == pytest.approx(expected, rel=1e-5)
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
    expected = 1 - ((own * other).sum(1) / lengths).mean()
    found = feature_loss(torch.tensor(own), torch.tensor(other).float())
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(logit_loss(torch.tensor(own), torch.tensor(own).float(), 2.0)) < 1e-6


@pytest.mark.parametrize("mean_and_std", [(0.5, 0.25), ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))])
def test_normalisation_is_read_off_a_transform(mean_and_std):
    mean, std = (x if isinstance(x, tuple) else (x,) * 3 for x in mean_and_std)
    found = Normalisation.of(create_transform(48, mean=mean, std=std))
    assert found.mean.flatten().tolist() == pytest.approx(mean, abs=1e-6)
    assert found.std.flatten().tolist() == pytest.approx(std, abs=1e-6)
    digit = Normalisation.of(digits().image_transform({}))
    pixels = torch.rand(2, 3, 8, 8)
    given = (pixels - digit.mean.float()) / digit.std.float()
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(digit.to_other(given, found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("weight", "features"), [(0.3, 0.7), (0.0, 2.0)])
def test_the_loss_of_a_step_is_that_of_float64(teacher, tmp_path, weight, features):
    task = student(teacher, teacher_weight=weight, teacher_features=features, label_smoothing=0.0)
    fit(task, tmp_path)  # a trained map
    task.log = lambda *_, **__: None
    images, labels = next(iter(digits().val_dataloader()))
    task.eval()  # without drop path
    found = float(task.training_step((images, labels), 0).detach())

    model, other = task.model.double(), load(teacher).model.double()
    x = images.double()
    # Digits' own normalisation is the teacher's, too.
    logits, targets = model(x), other(x)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    if weight:
        p, q = (targets / 3).softmax(1), (logits / 3).softmax(1)
        kl = (p * (p / q).log()).sum(1).mean()
        expected = (1 - weight) * expected + weight * 9 * kl
    if features:
        own = model.forward_head(model.forward_features(x), pre_logits=True)
        wanted = other.forward_head(other.forward_features(x), pre_logits=True)
        linear = task.distillation.feature_map.double()
        mapped = own @ linear.weight.T + linear.bias
        cosine = (mapped * wanted).sum(1) / (mapped.norm(dim=1) * wanted.norm(dim=1))
        expected = expected + features * (1 - cosine).mean()
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_teacher_is_frozen_and_in_no_file(teacher, tmp_path):
    before = {name: value.clone() for name, value in load(teacher).model.state_dict().items()}
    task = student(teacher, teacher_features=1.0)
    path = tmp_path / "a.ckpt"
    trainer = fit(task, tmp_path, callbacks=[EMA(0.5), SaveAfterEpoch(0, path)])
    (found,) = task.distillation._teacher
    assert not found.model.training
    assert all(torch.equal(before[n], v) for n, v in found.model.state_dict().items())
    assert not any(weight.requires_grad for weight in found.model.parameters())
    content = torch.load(path, weights_only=True)
    extra = {"distillation.feature_map.weight", "distillation.feature_map.bias"}
    plain = set(ClassificationTask(digits().class_names, backbone="test_convnext").state_dict())
    for entry in ("state_dict", "current_model_state"):
        assert set(content[entry]) == plain | extra
    optimised = sum(len(group["params"]) for group in trainer.optimizers[0].param_groups)
    assert optimised == len(list(task.model.parameters())) + 2
    groups = trainer.optimizers[0].param_groups
    assert groups[-1]["lr"] == pytest.approx(max(group["lr"] for group in groups))
    state = trainer.optimizers[0].state[task.distillation.feature_map.weight]
    assert float(state["exp_avg"].abs().sum()) > 0


def test_a_checkpoint_needs_its_teacher_no_more(teacher, tmp_path):
    gone = tmp_path / "gone.ckpt"
    gone.write_bytes(teacher.read_bytes())
    task = student(gone, teacher_features=1.0)
    fit(task, tmp_path)
    write_checkpoint(tmp_path / "student.ckpt", task, digits(), CONFIG)
    gone.unlink()
    found = load(tmp_path / "student.ckpt")
    assert found.distillation is None
    images = torch.zeros(2, 3, 32, 32)
    torch.testing.assert_close(found(images), task.eval()(images))
    trainer = quiet_trainer(tmp_path, limit_val_batches=1)
    trainer.validate(found, digits(), verbose=False)
    assert "val/top1" in trainer.callback_metrics


def test_a_continued_run_ends_in_the_same_weights(teacher, tmp_path):
    options = {"teacher_features": 0.5, "teacher_weight": 0.4}
    whole = student(teacher, **options)
    path = tmp_path / "first.ckpt"
    fit(whole, tmp_path, epochs=2, callbacks=[EMA(0.5), SaveAfterEpoch(0, path)])
    second = student(teacher, **options)
    fit(second, tmp_path, epochs=2, ckpt_path=path, callbacks=[EMA(0.5)])
    expected = whole.state_dict()
    assert "distillation.feature_map.weight" in expected
    for name, value in second.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_half_precision(teacher, tmp_path):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        task = student(teacher, teacher_dtype=dtype)
        trainer = fit(task, tmp_path)
        (found,) = task.distillation._teacher
        assert next(found.model.parameters()).dtype == getattr(torch, dtype)
        losses[dtype] = float(trainer.callback_metrics["train/teacher_loss"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]


def test_classes_are_matched_by_their_names(tmp_path):
    names = digits().class_names[::-1]
    torch.manual_seed(3)
    other = ClassificationTask(names, backbone="test_convnext")
    data = digits()
    data.class_names = names
    write_checkpoint(tmp_path / "reversed.ckpt", other, data, CONFIG)
    task = student(tmp_path / "reversed.ckpt")
    fit(task, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    logits, _ = task.distillation.teach(images)
    torch.testing.assert_close(logits, other.eval()(images).flip(1), atol=1e-4, rtol=1e-4)


def test_a_timm_model_of_features_with_an_image_size_of_its_own(tmp_path):
    """As DINOv3's are: no classifier, another normalisation; here one that takes 160 px only."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    task = student(
        "test_vit", teacher_init_from=str(tmp_path / "weights.pth"), teacher_weight=0.0,
        teacher_features=1.0,
    )  # fmt: skip
    trainer = fit(task, tmp_path)
    assert 0 < float(trainer.callback_metrics["train/feature_loss"]) < 2
    assert "train/teacher_loss" not in trainer.callback_metrics
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    given = digits().image_transform({})(image)[None]
    _, found = task.distillation.teach(given)
    config = timm.data.resolve_model_data_config(model)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    size = config["input_size"][1:]
    assert size == (160, 160)
    large = torch.nn.functional.interpolate(
        (pixels - mean) / std, size, mode="bilinear", antialias=True
    )
    expected = model.forward_head(model.forward_features(large), pre_logits=True)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_an_overview_is_trained_on_labels_beside_a_teacher(teacher, tmp_path):
    seed_everything(1, verbose=False)
    task = ClassificationTask(
        digits().class_names, backbone="test_overlock", teacher=str(teacher), teacher_features=1.0
    )
    trainer = fit(task, tmp_path)
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))
    assert float(trainer.callback_metrics["train/feature_loss"]) > 0
    assert task.model.overview_head is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.ckpt", "does not exist"),
        ("runs/nowhere", "neither a checkpoint, nor"),
        ("test_convnxt", "Did you mean 'test_convnext"),
    ],
)
def test_what_is_no_teacher_is_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        fit(student(given), tmp_path)


def test_other_classes_are_refused(teacher, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_convnext").state_dict(), weights)
    with pytest.raises(InputError, match="has 1000 classes, the data 10"):
        fit(student("test_convnext", teacher_init_from=str(weights)), tmp_path)
    found = load_teacher(str(teacher), None)
    assert found.class_names == digits().class_names
    names = ["one", *digits().class_names[1:]]
    task = ClassificationTask(names, backbone="test_convnext", teacher=str(teacher))
    with pytest.raises(InputError, match="does not know 1 of the 10 classes, such as 'one'"):
        fit(task, tmp_path)


def test_options_that_do_nothing_are_told():
    names = digits().class_names
    with pytest.raises(InputError, match="both 0"):
        ClassificationTask(names, backbone="test_convnext", teacher="x", teacher_weight=0.0)
    with pytest.warns(UserWarning, match="teacher_temperature 2.0 changes nothing"):
        ClassificationTask(names, backbone="test_convnext", teacher_temperature=2.0)
    with pytest.raises(InputError, match="teacher_weight"):
        ClassificationTask(names, backbone="test_convnext", teacher="x", teacher_weight=1.5)
