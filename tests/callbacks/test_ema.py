"""The average of the weights against timm's ModelEmaV3, and where it must and must not appear."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from shared import SaveAfterEpoch
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, TensorDataset

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask


def task():
    """A network with float and integer buffers (batch norm)."""
    return ClassificationTask(class_names=["a", "b"], backbone="test_resnet", lr=1e-2)


def loader(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        TensorDataset(
            torch.randn(24, 3, 32, 32, generator=generator).to(dtype), torch.arange(24) % 2
        ),
        8,
    )


def trainer(folder, *callbacks, **arguments):
    arguments = {"enable_checkpointing": False, **arguments}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **arguments,
    )


class Reference(Callback):
    """timm's average of the weights after every optimiser step, as timm's script keeps it."""

    def __init__(self, **arguments):
        self.arguments, self.steps = arguments, 0

    def on_train_start(self, trainer, pl_module):
        self.ema = ModelEmaV3(pl_module.model, **self.arguments)

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > self.steps:
            self.steps += 1
            self.ema.update(pl_module.model, step=self.steps)


class Seen(Callback):
    """Copies of the weights that training ends a step with and that validation sees."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(copy(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.validated.append(copy(pl_module))


def copy(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def strip(state):
    return {name.removeprefix("model."): value for name, value in state.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_timm(tmp_path, warmup):
    model, reference = task(), Reference(decay=0.9, use_warmup=warmup)
    trainer(tmp_path, EMA(0.9, warmup), reference, max_epochs=3, accumulate_grad_batches=2).fit(
        model, loader(), loader()
    )
    assert reference.steps == 6
    for name, expected in reference.ema.module.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], expected, msg=name)


def test_validation_sees_the_average_and_training_does_not(tmp_path):
    seed_everything(0, verbose=False)
    plain_model, seen_without = task(), Seen()
    trainer(tmp_path, seen_without, max_epochs=2).fit(plain_model, loader(), loader())
    seed_everything(0, verbose=False)
    model, seen, reference = task(), Seen(), Reference(decay=0.5)
    trainer(tmp_path, EMA(0.5), seen, reference, max_epochs=2).fit(model, loader(), loader())
    for with_average, without in zip(seen.trained, seen_without.trained, strict=True):
        assert_same(with_average, without)
    for name, expected in reference.ema.module.state_dict().items():
        torch.testing.assert_close(seen.validated[-1][name], expected, msg=name)
    assert_same(copy(model), seen.validated[-1])  # what trainer.test would see afterwards


def test_before_the_first_update_validation_sees_the_weights_themselves(tmp_path):
    """With batches accumulated over the epoch its validations come before any step."""
    model, seen = task(), Seen()
    trainer(
        tmp_path,
        EMA(0.9),
        seen,
        max_epochs=1,
        accumulate_grad_batches=3,
        val_check_interval=1,
        num_sanity_val_steps=0,
    ).fit(model, loader(), loader())
    after = [seen.validated[0], seen.validated[3]]  # of three batches each
    for found, trained in zip(after, seen.trained[:2], strict=True):
        assert_same(found, trained)


def test_without_a_decay_nothing_happens(tmp_path):
    model, seen = task(), Seen()
    run = trainer(tmp_path, EMA(), seen, max_epochs=1)
    run.fit(model, loader(), loader())
    assert_same(seen.validated[-1], seen.trained[-1])
    run.save_checkpoint(tmp_path / "plain.ckpt")
    saved = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert "current_model_state" not in saved
    assert_same(strip(saved["state_dict"]), seen.trained[-1])


class Interrupt(Callback):
    """Saves amid the second validation, interrupts it and saves again, as Ctrl-C handling does."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.folder / "amid.ckpt")
            raise ZeroDivisionError

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.folder / "after.ckpt")


@pytest.mark.parametrize("ema_first", [True, False])
def test_a_checkpoint_holds_average_and_weights_whenever_it_is_saved(tmp_path, ema_first):
    seen, reference = Seen(), Reference(decay=0.5)
    callbacks = [EMA(0.5), Interrupt(tmp_path)]
    if not ema_first:
        callbacks.reverse()
    run = trainer(tmp_path, *callbacks, seen, reference, max_epochs=2, num_sanity_val_steps=0)
    with pytest.raises(ZeroDivisionError):
        run.fit(task(), loader(), loader())
    for name in ("amid.ckpt", "after.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)
        assert_same(strip(saved["current_model_state"]), seen.trained[-1])
        for key, expected in reference.ema.module.state_dict().items():
            torch.testing.assert_close(strip(saved["state_dict"])[key], expected, msg=key)


def test_a_checkpoint_saved_when_training_has_ended_resumes_exactly(tmp_path):
    """Lightning's own callback leaves the average in both places there."""
    amid = SaveAfterEpoch(1, tmp_path / "amid.ckpt")
    seed_everything(0, verbose=False)
    run = trainer(tmp_path, EMA(0.9, True), amid, max_epochs=2)
    run.fit(task(), loader(), loader())
    run.save_checkpoint(tmp_path / "end.ckpt")

    def continued(path):
        model = task()
        trainer(tmp_path, EMA(0.9, True), max_epochs=4).fit(
            model, loader(), loader(), ckpt_path=path
        )
        return copy(model)

    assert_same(continued(tmp_path / "end.ckpt"), continued(tmp_path / "amid.ckpt"))
    seen = Seen()
    seed_everything(0, verbose=False)
    trainer(tmp_path, seen, max_epochs=2).fit(task(), loader(), loader())
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert_same(strip(saved["current_model_state"]), seen.trained[-1])


def test_whoever_loads_a_checkpoint_gets_the_average(tmp_path):
    model, reference = task(), Reference(decay=0.5)
    run = trainer(tmp_path, EMA(0.5), reference, max_epochs=1)
    run.fit(model, loader(), loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    evaluated, seen = task(), Seen()
    trainer(tmp_path, EMA(0.5), seen).validate(
        evaluated, loader(), ckpt_path=tmp_path / "run.ckpt", verbose=False
    )
    for name, expected in reference.ema.module.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], expected, msg=name)
        torch.testing.assert_close(seen.validated[-1][name], expected, msg=name)


def test_a_run_with_an_average_is_not_resumed_without(tmp_path):
    run = trainer(tmp_path, EMA(0.5), max_epochs=1)
    run.fit(task(), loader(), loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(InputError, match=r"run\.ckpt.*\n.*ema\.decay"):
        trainer(tmp_path, EMA(), max_epochs=2).fit(
            task(), loader(), loader(), ckpt_path=tmp_path / "run.ckpt"
        )


def test_a_run_without_an_average_can_start_one_when_resumed(tmp_path):
    run = trainer(tmp_path, EMA(), max_epochs=1)
    run.fit(task(), loader(), loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    model, seen = task(), Seen()
    ema = EMA(0.5)
    trainer(tmp_path, ema, seen, max_epochs=2).fit(
        model, loader(), loader(), ckpt_path=tmp_path / "run.ckpt"
    )
    first, second, third = seen.trained
    for name, found in copy(model).items():
        if found.is_floating_point():
            expected = 0.5 * (0.5 * first[name] + 0.5 * second[name]) + 0.5 * third[name]
            torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 99.99])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match=r"ema\.decay"):
        EMA(decay)


def test_warmup_without_a_decay_is_refused():
    with pytest.raises(InputError, match=r"ema\.warmup"):
        EMA(warmup=True)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_in_16_bits_the_average_is_that_of_float32(tmp_path, precision):
    """Against the float32 average of the same weights, which round to 8 bits."""
    model, seen = task(), Seen()
    data = loader(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    run = trainer(tmp_path, EMA(0.999), seen, max_epochs=4, precision=precision)
    run.fit(model, data, data)
    expected = {name: value.float() for name, value in seen.trained[0].items()}
    for weights in seen.trained[1:]:
        for name, value in weights.items():
            if value.is_floating_point():
                expected[name] = 0.999 * expected[name] + 0.001 * value.float()
            else:
                expected[name] = value
    run.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    for name, found in strip(saved["state_dict"]).items():
        if found.is_floating_point():
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-5, msg=name)
    # What is evaluated is the average, as the model's type has it; training goes on without.
    for name, found in copy(model).items():
        torch.testing.assert_close(found, expected[name].to(found.dtype), msg=name)
    assert_same(strip(saved["current_model_state"]), seen.trained[-1])
