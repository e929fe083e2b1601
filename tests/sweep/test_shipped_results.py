"""The studies beside the published tables: what their networks had at the end of training."""

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

STUDIES = sorted((Path(__file__).parents[2] / "sweeps" / "results").glob("*/study.db"))


def trials(path, folder):
    copy = shutil.copy(path, folder / "study.db")  # reading makes files of its own beside it
    storage = f"sqlite:///{copy}"
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    return study.get_trials(states=[TrialState.COMPLETE])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_five_seeds_of_each_row_and_batch_norms_that_agree_at_the_end(path, tmp_path):
    seeds = {}
    for trial in trials(path, tmp_path):
        marks = trial.user_attrs
        seeds.setdefault(marks["row"], set()).add(marks["seed"])
        running = marks["metrics"].get("val_bn/top1_running")
        if running is not None:  # ConvNeur has no batch norms
            other = marks["metrics"]["val_bn/top1_reestimated"]
            assert running == pytest.approx(other, abs=0.0051), marks["folder"]
    assert seeds
    assert all(len(found) >= 5 for found in seeds.values())
