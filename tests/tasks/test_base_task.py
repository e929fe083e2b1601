"""The recipe of every task against plain PyTorch, and what it does when things go wrong."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from shared import SaveAfterEpoch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_overlock.callbacks import throughput
from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask, base

CLASSES = ["ant", "bee", "cat", "dog"]


def images_and_labels(count, size=32):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(images, torch.arange(count) % len(CLASSES))


class Data(LightningDataModule):
    """Images in a fixed order; Lightning knows no loader of its own for predictions."""

    def __init__(self, count=24, batch_size=8, size=32):
        super().__init__()
        self.images = images_and_labels(count, size)
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(self.images, self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.images, self.batch_size)


def task(backbone="test_convnext", **arguments):
    return ClassificationTask(class_names=CLASSES, backbone=backbone, **arguments)


def trainer(folder, *callbacks, **arguments):
    arguments = {"max_epochs": 2, "enable_checkpointing": False, **arguments}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **arguments,
    )


class Watch(Callback):
    """Notes learning rates and weight decay of every optimiser step, and its gradient norm."""

    def __init__(self):
        self.rates = []
        self.norms = []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(self.note)

    def note(self, optimizer, args, kwargs):
        self.rates.append([(g["lr"], g["weight_decay"]) for g in optimizer.param_groups])
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())


def test_a_run_is_the_same_as_a_plain_loop_of_the_recipe(tmp_path):
    """Two accumulated batches a step, warm-up, cosine, cool-down, layer decay, clipping."""
    seed_everything(3, verbose=False)
    model = task(
        lr=2e-3,
        min_lr=1e-4,
        warmup_epochs=1,
        warmup_lr=1e-5,
        cooldown_epochs=1,
        weight_decay=0.3,
        layer_decay=0.7,
        label_smoothing=0.2,
    )
    plain = timm.create_model("test_convnext", num_classes=len(CLASSES))
    plain.load_state_dict(model.model.state_dict())
    plain.double()

    watch = Watch()
    trainer(
        tmp_path,
        watch,
        max_epochs=4,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        precision="64-true",
    ).fit(model, Data(count=24, batch_size=4))

    # By hand: three steps an epoch; 3 of warm-up, cosine to step 9, cool-down to 12.
    depth = {"stem": 0, "stages.0.blocks.0": 1, "head": 10}
    depth |= {"stages.1.downsample": 2, "stages.1.blocks.0": 2, "stages.1.blocks.1": 3}
    depth |= {"stages.2.downsample": 4} | {f"stages.2.blocks.{i}": 4 + i for i in range(4)}
    depth |= {"stages.3.downsample": 8, "stages.3.blocks.0": 8, "stages.3.blocks.1": 9}
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.3 if parameter.ndim > 1 else 0,
            "scale": 0.7 ** (10 - next(d for start, d in depth.items() if name.startswith(start))),
        }
        for name, parameter in plain.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    images, labels = images_and_labels(24).tensors
    step, rates = 0, []
    plain.train()
    for _ in range(4):
        for half in range(3):
            if step < 3:
                lr = 1e-5 + (2e-3 - 1e-5) * step / 3
            elif step < 9:
                lr = 1e-4 + (2e-3 - 1e-4) * 0.5 * (1 + math.cos(math.pi * step / 9))
            else:
                lr = 1e-4
            for batch in (2 * half, 2 * half + 1):
                part = slice(4 * batch, 4 * batch + 4)
                one_hot = F.one_hot(labels[part], 4) * 0.8 + 0.2 / 4
                loss = -(one_hot * plain(images[part].double()).log_softmax(1)).sum(1).mean()
                (loss / 2).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            # One group per layer and kind in the task, one per parameter here.
            kinds = {(g["scale"], g["weight_decay"]) for g in optimizer.param_groups}
            rates.append([(lr * scale, weight_decay) for scale, weight_decay in kinds])
            optimizer.step()
            optimizer.zero_grad()
            step += 1

    assert len(watch.rates) == 12
    for ours, expected in zip(watch.rates, rates, strict=True):
        assert np.array(sorted(ours)) == pytest.approx(np.array(sorted(expected)), rel=1e-9)
    for name, expected in plain.state_dict().items():
        found = model.model.state_dict()[name].double()
        torch.testing.assert_close(found, expected.double(), atol=1e-7, rtol=1e-6, msg=name)


def test_the_learning_rate_scales_with_the_images_of_a_step(tmp_path):
    watch = Watch()
    model = task(lr=1e-3, scale_lr_with_batch=True)
    trainer(tmp_path, watch, max_epochs=1, accumulate_grad_batches=3).fit(model, Data())
    assert watch.rates[0][0][0] == pytest.approx(1e-3 * 8 * 3 / 1024)


def test_a_loader_without_a_batch_size_cannot_scale_the_learning_rate(tmp_path):
    batches = [tuple(images_and_labels(8).tensors)]
    with pytest.raises(InputError, match="scale_lr_with_batch"):
        trainer(tmp_path, limit_val_batches=0).fit(task(scale_lr_with_batch=True), batches, batches)


def test_a_schedule_without_an_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="max_epochs or max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(task(), Data())


def test_a_cooldown_as_long_as_the_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="cooldown_epochs 2"):
        trainer(tmp_path, max_epochs=2).fit(task(cooldown_epochs=2), Data())


@pytest.mark.filterwarnings("ignore:.*bfloat16 support")
def test_gradients_are_clipped_under_bf16(tmp_path):
    watch = Watch()
    trainer(tmp_path, watch, precision="bf16-mixed", gradient_clip_val=0.01).fit(task(), Data())
    assert watch.norms == pytest.approx([0.01] * 6, rel=1e-2)
    free = Watch()
    trainer(tmp_path, free, precision="bf16-mixed").fit(task(), Data())
    assert min(free.norms) > 0.02


@pytest.mark.parametrize("backbone", ["test_overlock", "test_convnext"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, backbone):
    arguments = {
        "backbone": backbone,
        "backbone_args": {"drop_path_rate": 0.3, "drop_rate": 0.2},
        "mixup": 0.8,
        "cutmix": 1.0,
        "warmup_epochs": 1,
    }
    seed_everything(11, verbose=False)
    whole = task(**arguments)
    trainer(tmp_path, EMA(0.9), SaveAfterEpoch(1, tmp_path / "half.ckpt"), max_epochs=4).fit(
        whole, Data(count=16)
    )
    torch.rand(7)  # another state of the generators than then
    rest = task(**arguments)
    run = trainer(tmp_path, EMA(0.9), max_epochs=4)
    run.fit(rest, Data(count=16), ckpt_path=tmp_path / "half.ckpt")
    assert run.global_step == 8
    for name, expected in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], expected), name


def test_the_randomness_of_a_batch_depends_on_seed_epoch_batch_and_process(monkeypatch):
    def draw(seed, epoch, batch, rank):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        stub = SimpleNamespace(
            current_epoch=epoch,
            global_rank=rank,
            global_step=0,
            learning_rate=lambda step: 0.0,
            trainer=SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[])]),
            log=lambda *args, **kwargs: None,
        )
        base.BaseTask.on_train_batch_start(stub, None, batch)
        return torch.rand(1).item(), base.np.random.rand(), base.random.random()

    places = [(1, 2, 3, 0), (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    for kind in zip(*[draw(*place) for place in places], strict=True):
        assert len(set(kind)) == len(places)
    assert draw(*places[0]) == draw(*places[0])


def test_a_run_resumed_for_more_epochs_follows_the_longer_schedule_at_once(tmp_path):
    trainer(tmp_path, SaveAfterEpoch(1, tmp_path / "two.ckpt")).fit(task(lr=1.0), Data())
    watch = Watch()
    trainer(tmp_path, watch, max_epochs=4).fit(
        task(lr=1.0), Data(), ckpt_path=tmp_path / "two.ckpt"
    )
    expected = 1e-5 + (1 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 6 / 12))
    assert watch.rates[0][0][0] == pytest.approx(expected)


class PoisonedData(Data):
    """The third batch of the second epoch is not finite."""

    def train_dataloader(self):
        return self

    def __len__(self):
        return 3

    def __iter__(self):
        for index, (images, labels) in enumerate(super().train_dataloader()):
            bad = index == 2 and self.trainer.current_epoch == 1
            yield (images * torch.nan if bad else images), labels


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="keep", save_last=True)
    before = {}

    class Remember(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            before.update({n: v.clone() for n, v in pl_module.state_dict().items()})

    model = task(lr=1e-3, warmup_epochs=1)
    run = trainer(tmp_path, keep, Remember(), max_epochs=3, enable_checkpointing=True)
    with pytest.raises(InputError) as raised:
        run.fit(model, PoisonedData())
    message = str(raised.value)
    rate = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 5 / 9))
    assert "the loss is nan at step 5 (epoch 1)" in message
    assert f"learning rate {rate:.3g}" in message
    assert "model.lr" in message
    assert message.count("\n") <= 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name  # no step was taken with NaN gradients
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_nan_are_not_saved(tmp_path):
    model = task()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, Data())
    run.save_checkpoint(tmp_path / "good.ckpt")
    model.model.stem[0].bias.data[0] = torch.nan
    with pytest.raises(InputError, match=r"NaN at step 3 \(model.stem.0.bias\)"):
        run.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_throughput_counts_all_images_and_leaves_validation_out(tmp_path, monkeypatch):
    ticks = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(throughput, "time", clock)
    run = trainer(tmp_path, max_epochs=1, val_check_interval=1)
    run.fit(task(), Data())
    # One second passes from each reading of the clock to the next: three batches of 8 images.
    assert run.callback_metrics["train/images_per_second"] == 8


def test_metrics_that_are_promised_are_logged(tmp_path):
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task(lr=1e-3), Data())
    names = {"lr", "train/loss", "train/loss_step", "train/images_per_second"}
    assert set(run.callback_metrics) == names | {"val/loss", "val/top1", "val/top5"}
    assert task().monitor in run.callback_metrics
    expected = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 2 / 3))
    assert run.callback_metrics["lr"].item() == pytest.approx(expected)


# Building the network


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"'overlock_xxtt'.*Did you mean 'overlock_xxt'"):
        task("overlock_xxtt")


def test_a_name_with_the_tag_of_its_weights_is_a_backbone():
    assert task("test_resnet.r160_in1k").data_config["input_size"] == (3, 160, 160)


def test_a_misspelt_backbone_argument_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"drop_pth_rate.*Did you mean 'drop_path_rate'") as raised:
        task("test_overlock", backbone_args={"drop_pth_rate": 0.1})
    assert str(raised.value).count("\n") <= 2


def test_an_impossible_combination_of_switches_says_why():
    with pytest.raises(InputError, match="context_update=False needs dds=True"):
        task("test_overlock", backbone_args={"dds": False, "context_update": False})


@pytest.mark.parametrize("key", ["num_classes", "features_only", "pretrained", "overview_head"])
def test_what_the_task_decides_cannot_be_set_in_backbone_args(key):
    with pytest.raises(InputError, match=key):
        task("test_overlock", backbone_args={key: 1})


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(InputError, match="two classes"):
        ClassificationTask(class_names=["one"], backbone="test_resnet")


def test_backbone_args_reach_the_model_and_its_data_config():
    model = task(
        backbone_args={"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)}, "drop_rate": 0.25}
    )
    assert model.data_config["mean"] == (0.1, 0.2, 0.3)
    assert model.model.head.drop.p == 0.25


def test_an_image_that_is_too_small_is_an_input_error_at_the_first_batch(tmp_path):
    with pytest.raises(InputError, match=r"\(3, 16, 16\).*\n.*32x32") as raised:
        trainer(tmp_path).fit(task("test_overlock"), Data(size=16))
    assert "(3, 64, 64)" in str(raised.value)
    vit = task("vit_tiny_patch16_224", backbone_args={"depth": 1})
    with pytest.raises(InputError, match=r"no images of \(3, 32, 32\)"):
        trainer(tmp_path).fit(vit, Data())


def test_an_error_inside_a_network_that_gets_its_usual_size_keeps_its_traceback(monkeypatch):
    model = task("test_vit")
    monkeypatch.setattr(model.model, "forward", lambda images: images.no_such_thing)
    with pytest.raises(AttributeError):
        model(torch.zeros(1, 3, 160, 160))


def compile_eagerly(monkeypatch):
    """Leave code generation out of `Module.compile`; return the list of compiled modules."""
    compiled = []
    original = torch.nn.Module.compile

    def record(module):
        compiled.append(module)
        original(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", record)
    return compiled


def test_compiled_in_place_the_blocks_keep_their_keys_and_values(monkeypatch):
    compiled = compile_eagerly(monkeypatch)
    images = torch.randn(2, 3, 32, 32)
    plain, fast = task().eval(), task(compile=True).eval()
    assert list(plain.state_dict()) == list(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    names = {module: name for name, module in fast.model.named_modules()}
    found = {names[module] for module in compiled}
    assert {"stages.0.blocks.0", "stages.2.blocks.3", "stages.3.downsample"} <= found
    assert "" not in found
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(fast(images), plain(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
def test_overlock_stays_compiled_in_training_with_its_overview_and_in_evaluation(monkeypatch):
    """Torch gives a piece of code up after a few recompilations unless it is told otherwise, and
    each block has its own shapes and its own drop path rate."""
    compiled = compile_eagerly(monkeypatch)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    torch._dynamo.reset()
    model = task("test_overlock", backbone_args={"drop_path_rate": 0.3}, compile=True)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    names = {module: name for name, module in model.model.named_modules()}
    found = {names[module] for module in compiled}
    assert {"base.0.blocks.0", "overview.blocks.0", "focus.1.blocks.1"} <= found
    images, labels = images_and_labels(4).tensors
    model.log = lambda *args, **kwargs: None  # there is no trainer
    model.train().training_step((images, labels), 0).backward()
    with torch.no_grad():
        model.eval()(images)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2 * 8


def test_channels_last_reaches_the_feature_maps():
    model = task(channels_last=True)
    layouts = []
    model.model.stages[2].register_forward_hook(
        lambda module, args, output: layouts.append(
            output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()
        )
    )
    model(torch.randn(2, 3, 64, 64))
    assert layouts == [True]


def test_gradient_checkpointing_recomputes_and_changes_no_gradient():
    images, labels = images_and_labels(4).tensors
    plain, lean = task("test_overlock"), task("test_overlock", grad_checkpointing=True)
    lean.load_state_dict(plain.state_dict())
    calls = {"plain": 0, "lean": 0}
    for name, model in (("plain", plain), ("lean", lean)):
        model.train()
        model.model.focus[0].blocks[0].register_forward_pre_hook(
            lambda *args, name=name: calls.update({name: calls[name] + 1})
        )
        F.cross_entropy(model(images), labels).backward()
    assert calls == {"plain": 1, "lean": 2}
    for (name, a), (_, b) in zip(plain.named_parameters(), lean.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
