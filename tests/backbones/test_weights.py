"""Initial weights from every kind of file, and from files that have none."""

import argparse

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask

pytestmark = pytest.mark.usefixtures("workplace")  # `validate` writes its tables
TEN = [f"class{index}" for index in range(10)]


def task(backbone="test_overlock", classes=TEN, **arguments):
    return ClassificationTask(class_names=classes, backbone=backbone, **arguments)


def loaded(**arguments):
    model = task(**arguments)
    model.load_initial_weights()
    return model.model.state_dict()


@pytest.fixture(scope="module")
def source():
    """Weights of a model with 1000 classes, none of them as a new model has them."""
    model = timm.create_model("test_overlock")
    state = model.state_dict()
    return {k: v + 0.1 if v.is_floating_point() else v + 3 for k, v in state.items()}


def assert_loaded(found, source, new=("head.fc.weight", "head.fc.bias")):
    """All is from `source` except for `new` and the overview head."""
    for name, value in found.items():
        if name in new or name.startswith("overview_head."):
            assert name not in source or value.shape != source[name].shape
        else:
            assert torch.equal(value, source[name]), name


@pytest.mark.parametrize("kind", ["bare", "model", "state_dict", "ema", "ddp", "safetensors"])
def test_a_file_of_1000_classes_starts_a_task_of_10(tmp_path, source, kind, capsys):
    content = {
        "bare": source,
        "model": {"model": source, "epoch": 7},
        "state_dict": {"state_dict": source, "args": argparse.Namespace(lr=1)},
        "ema": {"state_dict": {"x": torch.zeros(1)}, "state_dict_ema": source},
        "ddp": {"state_dict": {f"module.{name}": value for name, value in source.items()}},
        "safetensors": source,
    }[kind]
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    (save_file if kind == "safetensors" else torch.save)(content, path)
    assert_loaded(loaded(init_from=str(path)), source)


def test_the_replaced_head_is_named(tmp_path, source, caplog):
    torch.save(source, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        loaded(init_from=str(tmp_path / "w.pth"))
    assert "New, for 10 classes" in caplog.text
    assert "head.fc.weight, head.fc.bias" in caplog.text
    assert str(tmp_path / "w.pth") in caplog.text


def test_with_as_many_classes_the_head_is_kept(tmp_path, source):
    torch.save(source, tmp_path / "w.pth")
    many = [str(index) for index in range(1000)]
    assert_loaded(loaded(init_from=str(tmp_path / "w.pth"), classes=many), source, new=())


def fit(folder, model, *callbacks, **arguments):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    loader = DataLoader(TensorDataset(images, torch.arange(8)), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        max_epochs=1,
        **arguments,
    )
    trainer.fit(model, loader, loader)
    return trainer


@pytest.mark.parametrize("overview_weight", [0.4, 0.0])
def test_a_checkpoint_of_this_package_gives_its_average(tmp_path, overview_weight):
    """With an overview head in the file or without, for a task that has one or none."""
    first = task(lr=0.1)
    fit(tmp_path, first, EMA(0.5)).save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    average = {k.removeprefix("model."): v for k, v in saved["state_dict"].items()}
    current = {k.removeprefix("model."): v for k, v in saved["current_model_state"].items()}
    assert not torch.equal(average["stem.0.conv.weight"], current["stem.0.conv.weight"])
    found = loaded(
        init_from=str(tmp_path / "run.ckpt"), classes=TEN[:4], overview_weight=overview_weight
    )
    assert any(name.startswith("overview_head.") for name in found) == (overview_weight > 0)
    for name, value in found.items():
        if value.shape == average[name].shape:
            assert torch.equal(value, average[name]), name
    assert found["head.fc.weight"].shape == (4, 32)


def test_a_file_without_the_overview_head_starts_a_task_that_has_one(tmp_path):
    fit(tmp_path, task(overview_weight=0.0)).save_checkpoint(tmp_path / "run.ckpt")
    found = loaded(init_from=str(tmp_path / "run.ckpt"))
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    for name, value in found.items():
        if not name.startswith("overview_head."):
            assert torch.equal(value, saved[f"model.{name}"]), name


def test_training_starts_from_the_file_and_a_checkpoint_needs_it_no_more(tmp_path, source):
    path = tmp_path / "w.pth"
    torch.save(source, path)
    model = task(init_from=str(path), lr=0.0, min_lr=0.0)
    trainer = fit(tmp_path, model)
    parameters = dict(model.model.named_parameters())
    for name, value in parameters.items():
        if not name.startswith(("head.fc", "overview_head.")):
            assert torch.equal(value, source[name]), name
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    path.unlink()
    again = ClassificationTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    images = DataLoader([(torch.zeros(3, 32, 32), "zero")])
    trainer.predict(again, images)
    resumed = task(init_from=str(path), lr=0.0, min_lr=0.0)
    trainer.predict(resumed, images, ckpt_path=tmp_path / "run.ckpt")
    for other in (again, resumed):
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_validation_without_a_checkpoint_uses_the_file(tmp_path, source):
    torch.save(source, tmp_path / "w.pth")
    model = task(init_from=str(tmp_path / "w.pth"))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])))
    trainer.validate(model, loader, verbose=False)
    assert_loaded(model.model.state_dict(), source)


def test_pretrained_takes_timm_weights_from_a_file(tmp_path, source):
    torch.save(source, tmp_path / "w.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    assert_loaded(loaded(pretrained=True, backbone_args=overlay), source)


def test_any_timm_model_starts_from_a_file(tmp_path):
    state = {k: v + 0.1 for k, v in timm.create_model("test_convnext").state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    assert_loaded(loaded(backbone="test_convnext", init_from=str(tmp_path / "w.pth")), state)


def wrong(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.pth", None, "no checkpoint file"),
        ("text.pth", b"# Read me\n", "no checkpoint"),
        ("text.safetensors", b"# Read me\n" * 9, "cannot be read"),
        ("empty.pth", b"", "no checkpoint"),
        ("number.pth", {"epoch": 3}, "holds no weights"),
        ("list.pth", [1, 2], "holds no weights"),
    ],
)
def test_a_file_without_weights_says_what_it_is(tmp_path, name, content, said):
    path = wrong(tmp_path / name, content)
    with pytest.raises(InputError, match=said) as raised:
        loaded(init_from=str(path))
    assert str(path) in str(raised.value)
    assert str(raised.value).count("\n") <= 2


def test_weights_of_another_network_name_the_first_differences(tmp_path, source):
    other = {k: v for k, v in source.items() if not k.startswith("stem.0.conv")}
    other["stem.9.weight"] = torch.zeros(3)
    other["base.0.blocks.0.norm.weight"] = torch.zeros(5)
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(InputError) as raised:
        loaded(init_from=str(tmp_path / "w.pth"))
    message = str(raised.value)
    assert "w.pth" in message
    assert "test_overlock" in message
    assert "1 missing (stem.0.conv.weight)" in message
    assert "1 unexpected (stem.9.weight)" in message
    assert "base.0.blocks.0.norm.weight is (5,) instead of (8,)" in message
    assert message.count("\n") <= 2


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit(tmp_path, task("test_convnext")).save_checkpoint(tmp_path / "run.ckpt")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    images = DataLoader([(torch.zeros(3, 32, 32), "zero")])
    with pytest.raises(InputError, match=r"run\.ckpt has test_convnext, this task") as raised:
        trainer.predict(task(), images, ckpt_path=tmp_path / "run.ckpt")
    assert "model.stem.0.conv.weight" in str(raised.value)


def test_pretrained_weights_that_do_not_exist_say_so(tmp_path):
    with pytest.raises(InputError, match="timm has no weights for test_overlock"):
        loaded(pretrained=True)
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "no.pth")}}
    with pytest.raises(InputError, match=r"no checkpoint file .*no\.pth"):
        loaded(pretrained=True, backbone_args=overlay)


def test_two_sources_of_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="pretrained and init_from"):
        task(pretrained=True, init_from=str(tmp_path / "w.pth"))
