"""Options that change what is left of a training are refused when it is continued."""

import copy
from pathlib import Path

import pytest

from lightning_overlock.errors import InputError
from lightning_overlock.runs.config import refuse_inexact

MADE_WITH = {
    "seed_everything": 42,
    "data": {
        "class_path": "ImageFolderDataModule",
        "init_args": {"root": "/data", "batch_size": 8, "num_workers": 2, "hflip": 0.5},
    },
    "trainer": {
        "accumulate_grad_batches": 1,
        "precision": "32-true",
        "gradient_clip_val": None,
        "max_epochs": 3,
        "limit_train_batches": None,
        "val_check_interval": None,
    },
    "ema": {"decay": 0.9, "warmup": False},
}
REFUSED = {
    "seed_everything": 7,
    "data.init_args.batch_size": 4,
    "data.init_args.hflip": 0.0,
    "trainer.accumulate_grad_batches": 2,
    "trainer.precision": "bf16-true",
    "trainer.gradient_clip_val": 1.0,
    "trainer.gradient_clip_algorithm": "value",
    "trainer.overfit_batches": 2,
    "trainer.sync_batchnorm": True,
    "ema.decay": 0.99,
    "ema.warmup": True,
}
ALLOWED = {
    "data.init_args.root": "/elsewhere",
    "data.init_args.num_workers": 0,
    "data.init_args.skip_corrupt": True,
    "data.init_args.train_json": "/elsewhere/train.json",
    "trainer.max_epochs": 9,
    "trainer.max_steps": 100,
    "trainer.max_time": "00:01:00:00",
    "trainer.limit_train_batches": 3,
    "trainer.val_check_interval": 2,
    "trainer.devices": 1,
}


def changed(name, value):
    config = copy.deepcopy(MADE_WITH)
    *path, key = name.split(".")
    part = config
    for step in path:
        part = part[step]
    part[key] = value
    return config


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_what_a_step_depends_on_is_refused(name, value):
    with pytest.raises(InputError) as refused:
        refuse_inexact(MADE_WITH, changed(name, value), Path("runs/a/checkpoints/last.ckpt"))
    said = str(refused.value)
    assert f"--{name.replace('init_args.', '')} " in said
    assert f"(now {value})" in said
    assert "--allow_changes true" in said
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(("name", "value"), ALLOWED.items(), ids=ALLOWED)
def test_where_the_data_are_and_where_a_part_of_a_run_ends_may_change(name, value):
    refuse_inexact(MADE_WITH, changed(name, value), Path("last.ckpt"))


def test_many_changes_are_three_lines():
    now = copy.deepcopy(MADE_WITH)
    for name, value in REFUSED.items():
        *path, key = name.split(".")
        part = now
        for step in path:
            part = part[step]
        part[key] = value
    with pytest.raises(InputError) as refused:
        refuse_inexact(MADE_WITH, now, Path("last.ckpt"))
    assert len(str(refused.value).splitlines()) == 3
    assert "…" in str(refused.value)
