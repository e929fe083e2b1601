"""`make gpu-check` where there is no GPU, and what it does with parts that fail."""

import json

import gpu_check
import pytest
import torch
from gpu_check import Part

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def python(text):
    return "-c", text


def table(report):
    """Outcome of each part."""
    rows = [line.split("|")[1:3] for line in report.splitlines() if line.startswith("| ")]
    return {name.strip(): outcome.strip() for name, outcome in rows}


def test_a_part_that_fails_or_hangs_costs_the_report_nothing_else(tmp_path, monkeypatch):
    made = [
        Part("right", python("print('nothing of this is shown')"), 20),
        Part("crashing", python("import os; print('before', flush=True); os.abort()"), 20),
        Part("hanging", python("import time; print('at it', flush=True); time.sleep(60)"), 1),
        Part("last", python("pass"), 20),
    ]
    monkeypatch.setattr(gpu_check, "parts", lambda gpu: made)
    assert gpu_check.main(["--folder", str(tmp_path)]) == 1
    report = (tmp_path / "report.md").read_text()
    found = table(report)
    assert (found["right"], found["last"]) == ("passed", "passed")
    assert (found["crashing"], found["hanging"]) == ("FAILED", "stopped after 1 s")
    assert "before" in report
    assert "at it" in report
    assert "nothing of this is shown" not in report
    assert f"- torch: {torch.__version__}" in report


def test_what_there_is_no_time_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "SECONDS", gpu_check.LEAST_SECONDS - 1)
    assert gpu_check.main(["--folder", str(tmp_path)]) == 0
    found = table((tmp_path / "report.md").read_text())
    assert found["ContMix"] == found["backends against float64"] == "skipped: the time is over"


def test_all_parts_together_stay_below_eight_minutes_or_are_cut_to_it():
    assert max(part.seconds for part in gpu_check.parts(True)) < gpu_check.SECONDS / 2
    names = [part.name for part in gpu_check.parts(True)]
    assert names == [part.name for part in gpu_check.parts(False)]
    assert len(set(names)) == len(names)


def test_figures_stand_beside_their_goals(tmp_path):
    speeds = ({"model": "overlock_t", "training images/s": 350.0, "inference images/s": 900.0},)
    speeds += ({"model": "overlock_t as built, unfold", "training images/s": 1.0},)
    speeds += ({"model": "convnext_tiny", "training images/s": 500.0, "inference images/s": 1e3},)
    (tmp_path / "models.json").write_text(json.dumps({"title": speeds}))
    operation = {"operation": "lightning_overlock::contmix_fused", "of the ceiling %": 40.0}
    profile = {"overlock_t, training by operation: 1": [{"operation": "all"}, operation]}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    inference, training, contmix = gpu_check.goals(tmp_path)
    assert inference["reached"] == 0.9
    assert (training["reached"], training["goal"]) == (0.7, 0.7)
    assert (contmix["reached"], contmix["goal"]) == (40, pytest.approx(33.3, abs=0.1))
    assert contmix["figure"].startswith("overlock_t, training: ")


@without_gpu
@pytest.mark.slow
def test_it_runs_to_its_end_without_a_gpu(tmp_path):
    asked = ["ContMix", "classification, bf16-mixed", "compile"]
    assert gpu_check.main(["--folder", str(tmp_path), "--only", *asked]) == 0
    report = (tmp_path / "report.md").read_text()
    found = table(report)
    assert found["compile"] == "skipped: there is no GPU"
    assert found["classification, bf16-mixed"] == found["ContMix"] == "passed"
    assert found["models"] == "skipped: not asked for"
    assert "\n## ContMix\n" in report
    assert "| 1x9x9x5 | unfold |" in report
    assert "Nothing was measured." in report
