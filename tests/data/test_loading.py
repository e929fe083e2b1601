"""Order, augmentation, sharding and resuming of the loaders."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.loaders import Loader, TrainLoader
from lightning_overlock.data.loading import (
    CorruptImage,
    EpochSampler,
    EvalBatches,
    Key,
    TrainBatches,
    as_lists,
    default_num_workers,
    global_seed,
    seeded,
)
from lightning_overlock.errors import InputError


class Numbers:
    """Items (index, three numbers drawn by the three libraries that augmentations draw from)."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> tuple[int, Tensor]:
        with seeded(self.seed, key.epoch, key.index):
            drawn = [random.random(), np.random.random(), torch.rand(()).item()]  # noqa: NPY002
        return key.index, torch.tensor(drawn, dtype=torch.float64)


class Broken(Numbers):
    """Numbers, some of which cannot be read."""

    def __init__(self, length: int, broken: set[int]) -> None:
        super().__init__(length)
        self.broken = broken

    def __getitem__(self, key: Key) -> tuple[int, Tensor]:
        if key.index in self.broken:
            raise CorruptImage(f"image {key.index} cannot be read")
        return super().__getitem__(key)


def train_loader(
    length: int = 20, batch_size: int = 4, workers: int = 0, seed: int = 3
) -> TrainLoader:
    sampler = EpochSampler(length, seed)
    return TrainLoader(
        Numbers(length, seed), TrainBatches(sampler, batch_size), num_workers=workers
    )


def epoch_of(loader: Loader, epoch: int) -> list[Any]:
    loader.batch_sampler.sampler.set_epoch(epoch)
    return list(loader)


def test_an_epoch_is_the_same_with_workers_and_without():
    alone, helped = train_loader(), train_loader(workers=2)
    for epoch in (0, 1, 0):  # the workers persist from epoch to epoch
        for (index, drawn), (index2, drawn2) in zip(
            epoch_of(alone, epoch), epoch_of(helped, epoch), strict=True
        ):
            assert torch.equal(index, index2)
            assert torch.equal(drawn, drawn2)
    helped.close()


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    def contents(seed: int, epoch: int) -> tuple[list[int], dict[int, tuple[float, ...]]]:
        batches = epoch_of(train_loader(seed=seed), epoch)
        order = [i for index, _ in batches for i in index.tolist()]
        return order, dict(
            zip(order, [tuple(d) for _, drawn in batches for d in drawn.tolist()], strict=True)
        )

    order, drawn = contents(seed=3, epoch=0)
    assert sorted(order) == list(range(20))
    for other_order, other_drawn in (contents(3, 1), contents(4, 0)):
        assert sorted(other_order) == list(range(20))
        assert other_order != order
        for index in order:  # each of the three libraries draws something else
            assert all(a != b for a, b in zip(drawn[index], other_drawn[index], strict=True))


def test_reading_leaves_the_global_random_generators_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    for workers in (0, 1):
        assert len(list(train_loader(workers=workers))) == 5
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected  # noqa: NPY002


def test_seeded_puts_the_generators_back_when_the_block_raises():
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    with pytest.raises(RuntimeError), seeded(1, 2, 3):
        raise RuntimeError
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_is_read_before_lightning_has_set_the_epoch(workers):
    # Lightning calls iter() in setup_data, set_epoch in on_advance_start, next() after both.
    expected = epoch_of(train_loader(), 7)
    loader = train_loader(workers=workers)
    iterator = iter(loader)
    loader.batch_sampler.sampler.set_epoch(7)
    assert torch.equal(next(iterator)[0], expected[0][0])
    iterator.close()
    loader.close()


@given(
    length=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_training_steps_are_full_disjoint_and_the_same_on_any_number_of_processes(
    length, batch_size, world_size, epoch
):
    def steps(batch_size: int, world_size: int) -> list[list[Key]]:
        sampler = EpochSampler(length, seed=2)
        sampler.set_epoch(epoch)
        ranks = [list(TrainBatches(sampler, batch_size, r, world_size)) for r in range(world_size)]
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)
        return [[key for batch in step for key in batch] for step in zip(*ranks, strict=True)]

    if length < batch_size * world_size:
        with pytest.raises(InputError, match=rf"has {length} images.*\n.*{length // world_size}"):
            steps(batch_size, world_size)
        return
    shared = steps(batch_size, world_size)
    assert len(shared) == length // (batch_size * world_size)
    keys = [key for step in shared for key in step]
    assert len(set(keys)) == len(keys)
    assert {key.epoch for key in keys} == {epoch}
    assert shared == steps(batch_size * world_size, 1)


@given(length=st.integers(1, 200), batch_size=st.integers(1, 70), world_size=st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_evaluation_sees_each_image_once_in_equally_many_batches(length, batch_size, world_size):
    if length < world_size:
        with pytest.raises(InputError, match=rf"{length} image.*{world_size} processes"):
            EvalBatches(length, batch_size, 0, world_size)
        return
    ranks = [EvalBatches(length, batch_size, r, world_size) for r in range(world_size)]
    batches = [list(batches) for batches in ranks]
    assert [len(b) for b in batches] == [len(batches[0])] * world_size == [len(r) for r in ranks]
    indices = [key.index for share in batches for batch in share for key in batch]
    assert indices == list(range(length))  # in order, too: predictions can be concatenated
    sizes = {len(batch) for share in batches for batch in share}
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2 if batch_size == 1 else 0)


@given(
    upright=st.lists(st.integers(0, 1), min_size=1, max_size=120),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_grouped_steps_have_images_of_one_group_but_for_the_last_few(
    upright, batch_size, world_size, epoch
):
    groups, step = np.array(upright), batch_size * world_size
    if len(groups) < step:
        return

    def steps(batch_size: int, world_size: int) -> list[list[int]]:
        sampler = EpochSampler(len(groups), seed=2)
        sampler.set_epoch(epoch)
        ranks = [
            list(TrainBatches(sampler, batch_size, r, world_size, groups=groups))
            for r in range(world_size)
        ]
        return [[k.index for batch in step for k in batch] for step in zip(*ranks, strict=True)]

    shared = steps(batch_size, world_size)
    assert len(shared) == len(groups) // step
    indices = [index for one in shared for index in one]
    assert len(set(indices)) == len(indices)
    pure = sum(count // step for count in np.bincount(groups))
    assert all(len(set(groups[one])) == 1 for one in shared[:pure])
    assert shared == steps(step, 1)  # however many processes share a step
    # Nothing is lost but what does not fill the last step, and each group keeps its shuffled order.
    sampler = EpochSampler(len(groups), seed=2)
    sampler.set_epoch(epoch)
    for group in range(2):
        of_group = [index for index in sampler if groups[index] == group]
        assert [i for one in shared[:pure] for i in one if groups[i] == group] == of_group[
            : len(of_group) // step * step
        ]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_of_different_sizes_come_as_lists(workers):
    class Growing(Numbers):
        def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Any]]:
            return torch.full((key.index,), 1.5), {"index": key.index, "names": ["a"] * key.index}

    loader = Loader(Growing(3), EvalBatches(3, 2), collate=as_lists, num_workers=workers)
    batches = list(loader)
    loader.close()
    assert [[len(image) for image in images] for images, _ in batches] == [[0, 1], [2]]
    assert batches[1][1] == [{"index": 2, "names": ["a", "a"]}]


def test_an_input_error_in_a_worker_arrives_with_its_own_message():
    for workers in (0, 1):
        sampler = EpochSampler(8, 0)
        loader = TrainLoader(Broken(8, {5}), TrainBatches(sampler, 4), num_workers=workers)
        with pytest.raises(CorruptImage) as caught:
            list(loader)
        assert str(caught.value) == "image 5 cannot be read"
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_corrupt_images_and_warns_once(workers):
    loader = TrainLoader(
        Broken(12, {2, 3}),
        TrainBatches(EpochSampler(12, 0), 4),
        num_workers=workers,
        skip_corrupt=True,
    )
    with pytest.warns(UserWarning, match=r"2 unreadable image\(s\) skipped: image \d .*; image \d"):
        batches = list(loader)
    indices = sorted(i for index, _ in batches for i in index.tolist())
    assert indices == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 11]
    epoch_of(loader, 1)  # no second warning of the same files (a warning would be an error)
    loader.close()


def test_the_warning_comes_before_the_last_batch_because_lightning_asks_for_no_more():
    loader = TrainLoader(Broken(8, {1}), TrainBatches(EpochSampler(8, 0), 4), skip_corrupt=True)
    iterator = iter(loader)
    with pytest.warns(UserWarning, match="image 1"):
        next(iterator), next(iterator)


def test_an_epoch_that_is_broken_off_still_warns():
    loader = TrainLoader(
        Broken(8, {0, 1, 2, 3}), TrainBatches(EpochSampler(8, 0), 4), skip_corrupt=True
    )
    iterator = iter(loader)
    next(iterator)
    with pytest.warns(UserWarning, match="unreadable"):
        iterator.close()


def test_evaluation_leaves_corrupt_images_out():
    loader = Loader(Broken(9, {2, 3, 4, 5}), EvalBatches(9, 3), skip_corrupt=True)
    with pytest.warns(UserWarning, match="4 unreadable"):
        batches = list(loader)
    assert [index.tolist() for index, _ in batches] == [[0, 1], [6, 7, 8]]


@pytest.mark.parametrize("workers", [0, 1])
def test_prediction_leaves_out_whatever_cannot_be_read_and_keeps_the_reasons(workers):
    loader = Loader(
        Broken(9, {2, 3, 4, 5}), EvalBatches(9, 3), num_workers=workers, skip_unreadable=True
    )
    for _ in range(2):  # counted anew in every pass
        batches = list(loader)
        assert [index.tolist() for index, _ in batches] == [[0, 1], [6, 7, 8]]
        assert loader.unreadable == [f"image {index} cannot be read" for index in (2, 3, 4, 5)]
    loader.close()


def test_a_training_set_without_a_readable_image_says_so():
    loader = TrainLoader(
        Broken(4, {0, 1, 2, 3}), TrainBatches(EpochSampler(4, 0), 2), skip_corrupt=True
    )
    with pytest.raises(InputError, match=r"none of the 4 images can be read.*image \d cannot"):
        list(loader)


def test_the_number_of_workers_follows_cores_tasks_and_processes(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert default_num_workers(1) == 15
    assert default_num_workers(4) == 3
    assert default_num_workers(32) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert default_num_workers(4) == 1
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert default_num_workers(4) == 7
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(128), raising=False)
    assert default_num_workers(1) == 16


def test_the_seed_is_lightnings(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert global_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert global_seed() == 17


# With a trainer.


class NumbersModule(BaseDataModule):
    """Twenty numbers to train on, seven to validate on."""

    class_names = ("a", "b")

    def source(self, split: Split) -> Numbers:
        return Numbers(20 if split == "train" else 7, global_seed())


class Seen(LightningModule):
    """Records what it is given; every number seen leaves its mark on the one weight."""

    def __init__(self, interrupt_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.steps: list[tuple[int, int, tuple[int, ...], float]] = []
        self.interrupt_at = interrupt_at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        index, drawn = batch
        if (self.current_epoch, batch_idx) == self.interrupt_at:
            raise KeyboardInterrupt
        self.steps.append(
            (self.current_epoch, batch_idx, tuple(index.tolist()), drawn.sum().item())
        )
        return (self.weight * drawn.sum() + self.weight**2).sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveOnInterrupt(Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    interrupt_handler = signal.getsignal(signal.SIGINT)

    def run(
        module: Seen,
        epochs: int,
        *,
        workers: int = 0,
        batch_size: int = 4,
        ckpt_path: str | None = None,
        callbacks: tuple[Callback, ...] = (),
        **options: Any,
    ) -> Trainer:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            **{"devices": 1, **options},
        )
        data = NumbersModule(batch_size, num_workers=workers)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
        return trainer

    yield run
    signal.signal(signal.SIGINT, interrupt_handler)  # Lightning ignores SIGINT after Ctrl-C


@pytest.mark.parametrize("workers", [0, 2])
def test_two_epochs_and_two_more_are_four(fit, tmp_path, workers):
    whole, half, rest = Seen(), Seen(), Seen()
    fit(whole, 4)
    trainer = fit(half, 2, workers=workers)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(rest, 4, workers=workers, ckpt_path=str(tmp_path / "half.ckpt"))
    assert half.steps + rest.steps == whole.steps
    assert rest.weight.item() == whole.weight.item() != 0


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("when", ["on_train_epoch_end", "on_validation_end"])
def test_checkpoints_of_an_epochs_end_go_on_with_the_next_epoch(fit, tmp_path, when):
    whole, rest = Seen(), Seen()
    checkpoint = ModelCheckpoint(
        tmp_path,
        filename="{epoch}",
        save_top_k=-1,
        save_on_train_epoch_end=when == "on_train_epoch_end",
    )
    fit(whole, 3, callbacks=(checkpoint,))
    fit(rest, 3, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert rest.steps == [step for step in whole.steps if step[0] > 0]
    assert rest.weight.item() == whole.weight.item()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_inside_an_epoch_goes_on_with_the_next_batch(fit, tmp_path, workers):
    whole, rest = Seen(), Seen()
    checkpoint = ModelCheckpoint(
        tmp_path, filename="{epoch}-{step}", every_n_train_steps=3, save_top_k=-1
    )
    fit(whole, 3, callbacks=(checkpoint,))
    fit(rest, 3, workers=workers, ckpt_path=str(tmp_path / "epoch=1-step=9.ckpt"))
    assert rest.steps == whole.steps[9:]
    assert rest.weight.item() == whole.weight.item()


def test_ctrl_c_inside_a_step_repeats_that_step(fit, tmp_path):
    whole, first, rest = Seen(), Seen(interrupt_at=(1, 2)), Seen()
    fit(whole, 3)
    path = str(tmp_path / "interrupted.ckpt")
    with pytest.raises(SystemExit):  # what Lightning makes of Ctrl-C
        fit(first, 3, callbacks=(SaveOnInterrupt(path),))
    fit(rest, 3, ckpt_path=path)
    assert first.steps + rest.steps == whole.steps
    assert rest.weight.item() == whole.weight.item()


def test_going_on_inside_an_epoch_with_other_batches_is_refused(fit, tmp_path):
    path = str(tmp_path / "interrupted.ckpt")
    with pytest.raises(SystemExit):  # what Lightning makes of Ctrl-C
        fit(Seen(interrupt_at=(1, 2)), 3, callbacks=(SaveOnInterrupt(path),))
    with pytest.raises(InputError, match=r"middle of an epoch.*images per step 4 \(now 5\)"):
        fit(Seen(), 3, batch_size=5, ckpt_path=path)


def test_a_checkpoint_from_before_images_were_grouped_goes_on_inside_an_epoch():
    def loader(groups: np.ndarray | None) -> TrainLoader:
        batches = TrainBatches(EpochSampler(8, 0), 2, position=lambda: 1, groups=groups)
        return TrainLoader(Numbers(8), batches)

    old = {"images": 8, "seed": 0, "images per step": 2}
    loader(None).load_state_dict(old)
    with pytest.raises(InputError, match=r"middle of an epoch with groups of images 0 \(now 1\)"):
        loader(np.zeros(8, int)).load_state_dict(old)


def test_other_batches_are_fine_at_the_end_of_an_epoch(fit, tmp_path):
    fit(Seen(), 1).save_checkpoint(tmp_path / "one.ckpt")
    rest = Seen()
    fit(rest, 2, batch_size=5, ckpt_path=str(tmp_path / "one.ckpt"))
    assert [step[:2] for step in rest.steps] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_batches_can_be_looked_at_after_training(fit):
    trainer = fit(Seen(), 1)
    assert len(list(trainer.datamodule.train_dataloader())) == 5


def test_a_callback_may_look_at_all_batches_during_training(fit):
    class Look(Callback):
        seen = 0

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            self.seen = len(list(trainer.datamodule.train_dataloader()))

    look = Look()
    fit(Seen(), 1, callbacks=(look,))
    assert look.seen == 5


def test_overfitting_repeats_the_same_images(fit):
    module = Seen()
    fit(module, 3, overfit_batches=2)
    assert {step[2] for step in module.steps} == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert len(module.steps) == 6


def test_limited_epochs_start_anew_with_persistent_workers(fit):
    limited, helped = Seen(), Seen()
    fit(limited, 3, limit_train_batches=2)
    fit(helped, 3, workers=2, limit_train_batches=2)
    assert limited.steps == helped.steps
    assert [step[:2] for step in limited.steps] == [(e, b) for e in range(3) for b in range(2)]


def test_bad_numbers_are_named():
    with pytest.raises(InputError, match="batch_size: found 0"):
        NumbersModule(0)
    with pytest.raises(InputError, match="num_workers: found -1"):
        NumbersModule(1, num_workers=-1)


class Both(Seen):
    """Writes down what one of two processes was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.validated: list[int] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validated += batch[0].tolist()
        # The processes meet in every batch: this hangs unless they have equally many.
        self.log("val/sum", batch[0].double().sum(), on_step=True, sync_dist=True)

    def on_fit_end(self) -> None:
        content = {"steps": self.steps, "validated": self.validated}
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(content))


def test_two_processes_train_on_parts_of_each_step_and_validate_each_image_once(fit, tmp_path):
    options = {"devices": 2, "strategy": "ddp_fork", "num_sanity_val_steps": 0}
    fit(Both(tmp_path), 2, batch_size=2, **options)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert sorted(first["validated"] + second["validated"]) == sorted(2 * list(range(7)))
    assert len(first["steps"]) == len(second["steps"]) == 10
    sampler = EpochSampler(20, seed=11)
    for (epoch, batch, one, _), (_, _, other, _) in zip(
        first["steps"], second["steps"], strict=True
    ):
        sampler.set_epoch(epoch)
        assert one + other == list(sampler)[4 * batch : 4 * batch + 4]
