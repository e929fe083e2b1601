"""The base task around a dense model: its recipe, its backbone's options, its initial weights."""

import pytest
import timm
import torch
from shared import quiet_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.callbacks.throughput import Throughput
from lightning_overlock.errors import InputError
from lightning_overlock.heads.fcn import FCNHead
from lightning_overlock.tasks import ClassificationTask
from lightning_overlock.tasks.base import BaseTask

# The task here is trained and predicts, and is not evaluated.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Network(nn.Module):
    def __init__(self, features, num_classes):
        super().__init__()
        self.features = features
        self.head = FCNHead(features.channels[2], num_classes, 8)

    def forward(self, images):
        return [self.head(self.features(image[None])[2]) for image in images]


class Task(BaseTask):
    """The least dense task: batches are lists of images of several sizes."""

    min_classes = 1

    def build_model(self, num_classes):
        features = DenseFeatures(self.backbone, self.hparams["backbone_args"])
        return Network(features, num_classes)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = [x.mean((2, 3)) for x in self.model(images)]
        # Every map takes part, so that each parameter has a gradient.
        extra = sum(m.mean() for image in images for m in self.model.features(image[None]))
        return F.cross_entropy(torch.cat(logits), torch.stack(labels)) + 0 * extra

    def predict_step(self, batch, batch_idx):
        return self.model(batch[0])


class Images(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        size = (32 + 8 * (index % 3), 48)
        return torch.rand(3, *size), torch.tensor(index % 2)


def loader():
    return DataLoader(
        Images(), 3, collate_fn=lambda rows: tuple(map(list, zip(*rows, strict=True)))
    )


def task(backbone="test_resnet", classes=("ant", "bee"), **arguments):
    return Task(class_names=list(classes), backbone=backbone, **arguments)


def rates(model, steps):
    return [model.learning_rate(step) for step in range(steps)]


def fitted(folder, epochs=3, **arguments):
    model = task(**arguments)
    run = quiet_trainer(folder, max_epochs=epochs)
    run.fit(model, loader())
    return model, run


def test_multistep_milestones_are_epochs_and_its_warmup_steps(tmp_path):
    model, run = fitted(
        tmp_path,
        lr=1.0,
        schedule="multistep",
        milestones=[1, 2.5],
        warmup_steps=2,
        warmup_factor=0.5,
    )
    assert rates(model, 12) == pytest.approx([0.5, 0.75, 1, 1] + 6 * [0.1] + 2 * [0.01])
    assert run.callback_metrics["lr"].item() == pytest.approx(0.01)


def test_poly_ends_with_the_run(tmp_path):
    model, _ = fitted(tmp_path, epochs=2, lr=0.8, schedule="poly", min_lr=0.0, warmup_steps=0)
    assert rates(model, 9) == pytest.approx([0.1 * left for left in (8, 7, 6, 5, 4, 3, 2, 1, 0)])


def test_images_of_lists_are_counted_and_the_norm_rule_holds(tmp_path, monkeypatch):
    counted = []
    hook = Throughput.on_train_epoch_end

    def note(self, *given):
        counted.append(self.images)
        hook(self, *given)

    monkeypatch.setattr(Throughput, "on_train_epoch_end", note)
    model, run = fitted(tmp_path, epochs=1, weight_decay=0.3)
    assert counted == [12]
    assert run.callback_metrics["train/images_per_second"] > 0
    (group,) = [g for g in run.optimizers[0].param_groups if g["weight_decay"] == 0]
    exempt = {id(p) for p in group["params"]}
    assert {id(p) for p in model.model.features.norms.parameters()} <= exempt
    assert not {id(p) for p in model.model.head.parameters()} & exempt


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"schedule": "multistep"}, "milestones"),
        ({"milestones": [3]}, "milestones"),
        ({"warmup_steps": 3, "warmup_epochs": 1}, "warmup_steps"),
        ({"warmup_factor": 2.0}, "warmup_factor"),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        task(**arguments)


def test_one_class_is_enough_where_the_task_says_so():
    assert task(classes=["ant"]).class_names == ["ant"]
    with pytest.raises(InputError, match="one class"):
        task(classes=[])


def test_options_of_the_backbone_reach_it_inside_the_network(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    model = task("test_overlock", compile=True, channels_last=True, grad_checkpointing=True)
    backbone = model.model.features.backbone
    assert model.timm_model is backbone
    assert model.data_config["input_size"] == (3, 64, 64)
    assert backbone.focus[0].grad_checkpointing
    assert backbone.stem[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert set(backbone.focus[0].blocks) <= set(compiled)
    plain = task("test_overlock")
    plain.load_state_dict(model.state_dict())
    images = [torch.rand(3, 64, 64)]
    torch.testing.assert_close(model.eval().model(images)[0], plain.eval().model(images)[0])


def raised_by_one(model):
    state = model.state_dict()
    return {k: v + 0.1 if v.is_floating_point() else v + 3 for k, v in state.items()}


@pytest.mark.parametrize("name", ["test_overlock", "test_resnet"])
def test_a_classifier_starts_a_dense_model_and_the_log_says_what_is_new(tmp_path, name, caplog):
    source = raised_by_one(timm.create_model(name))
    torch.save({"state_dict": source}, tmp_path / "w.pth")
    model = task(name, init_from=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO"):
        model.load_initial_weights()
    for key, value in model.timm_model.state_dict().items():
        assert torch.equal(value, source[key]), key
    head = "head." if name == "test_overlock" else "fc."
    assert f"Not used: {head}" in caplog.text
    assert "New: features.norms (8), head." in caplog.text


def test_a_checkpoint_of_a_classification_run_starts_a_dense_model(tmp_path):
    first = ClassificationTask(class_names=["a", "b", "c"], backbone="test_overlock")
    run = quiet_trainer(tmp_path, max_epochs=0)
    images = torch.utils.data.TensorDataset(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    run.fit(first, DataLoader(images, 2), DataLoader(images, 2))
    run.save_checkpoint(tmp_path / "run.ckpt")
    model = task("test_overlock", init_from=str(tmp_path / "run.ckpt"))
    model.load_initial_weights()
    source = first.model.state_dict()
    for key, value in model.timm_model.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_timms_weights_start_a_dense_model(tmp_path):
    source = raised_by_one(timm.create_model("test_resnet"))
    torch.save(source, tmp_path / "w.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    model = task(pretrained=True, backbone_args=overlay)
    model.load_initial_weights()
    assert torch.equal(model.timm_model.conv1[0].weight, source["conv1.0.weight"])


def test_a_dense_checkpoint_starts_one_with_other_classes(tmp_path, caplog):
    """All that fits is taken; the classifier of three classes is new."""
    first = task("test_overlock", classes="abc")
    source = raised_by_one(first.model)
    torch.save({"model": source}, tmp_path / "w.pth")
    second = task("test_overlock", init_from=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO"):
        second.load_initial_weights()
    new = {"head.classifier.1.weight", "head.classifier.1.bias"}
    for key, value in second.model.state_dict().items():
        if key not in new:
            assert torch.equal(value, source[key]), key
    assert "New: head.classifier (2)" in caplog.text


@pytest.mark.parametrize("kind", ["another network", "no weights"])
def test_a_wrong_file_is_an_input_error(tmp_path, kind):
    content = timm.create_model("test_convnext").state_dict()
    torch.save(content if kind == "another network" else {"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth") as raised:
        task("test_overlock", init_from=str(tmp_path / "w.pth")).load_initial_weights()
    assert str(raised.value).count("\n") <= 2
