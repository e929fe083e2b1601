import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import timm
import torch
import worker_steps
from torch import nn

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.bench import measure, models, operations, report
from lightning_overlock.bench.command import run
from lightning_overlock.bench.options import (
    CONTMIX_BACKENDS,
    DEPTHWISE_BACKENDS,
    DTYPE_NAMES,
    KERNELS,
    read_options,
)
from lightning_overlock.bench.worker import Worker
from lightning_overlock.errors import InputError
from lightning_overlock.layers.dilated_reparam import BRANCHES, DilatedReparamConv
from lightning_overlock.ops.contmix.operator import contmix, contmix_backend
from lightning_overlock.ops.depthwise.operator import depthwise_backend


def bench(arguments):
    return run(read_options(arguments))


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def test_parameters_that_are_shared_count_once():
    tied = nn.Linear(3, 3, bias=False)
    assert measure.parameter_count(nn.Sequential(tied, nn.Linear(3, 2), tied)) == 9 + 8


def test_multiply_adds_equal_the_count_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 5)
    )
    weight = model[0].weight
    # 8x8 outputs of 8 filters with 3*3*3 taps, then a 512x5 matrix.
    assert measure.multiply_adds(model, (3, 16, 16)) == 8 * 8 * 8 * 27 + 512 * 5
    assert model.training
    assert model[0].weight is weight
    assert model[1].num_batches_tracked == 0


def test_multiply_adds_do_not_depend_on_the_backend_of_contmix():
    model = timm.create_model("test_overlock")
    found = measure.multiply_adds(model, (3, 64, 64))
    with contmix_backend.force("unfold"):
        assert measure.multiply_adds(model, (3, 64, 64)) == found


def test_multiply_adds_of_a_published_model():
    # The ConvNeXt paper (arXiv 2201.03545, table 1) prints 4.5 G.
    with torch.device("meta"):
        model = timm.create_model("convnext_tiny")
    assert measure.multiply_adds(model) == pytest.approx(4.5e9, rel=0.02)


def test_steps_are_timed_interleaved_and_the_median_is_taken(monkeypatch):
    clock, calls = [0.0], []
    durations = {"a": iter([9, 1, 9, 2, 9, 3, 9, 50, 9, 2, 9, 2]), "b": iter([9, 4] * 9)}
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def step(name):
        calls.append(name)
        clock[0] += next(durations[name])

    medians = measure.time_interleaved({"a": lambda: step("a"), "b": lambda: step("b")}, seconds=85)
    assert "".join(calls) == "aabb" * 6
    assert medians == {"a": 2, "b": 4}  # neither the runs that warm up (9) nor a disturbance (50)


def test_at_least_three_rounds_are_measured():
    calls = []
    measure.time_interleaved({"a": lambda: calls.append(1)}, seconds=0)
    assert len(calls) == 2 * 3


@linux
def test_peak_memory_is_what_the_step_needs_at_its_highest():
    # In a process of its own: free chunks that other tests leave in the heap change the peak.
    with Worker("a model", worker_steps.make, "whole") as process:
        for step in ("grow", "shrink"):
            process.ask(step, worker_steps.run)
        peak = process.ask("grow", measure.peak_memory)
    assert peak == pytest.approx(128 * measure.MIB, rel=0.05)


@linux
def test_peak_memory_is_not_hidden_by_memory_freed_before():
    def step():
        for _ in range(64):  # blocks too small for a mapping of their own
            torch.ones(measure.MIB // 8).sum()

    many = [torch.ones(measure.MIB // 64) for _ in range(512)]  # 32 MiB in small blocks
    del many
    small = measure.peak_memory(lambda: None)
    assert small is not None
    assert small < measure.MIB
    assert measure.peak_memory(lambda: [torch.ones(measure.MIB // 64) for _ in range(512)]) > (
        24 * measure.MIB
    )
    step()


def test_steps_run_in_their_mode_and_leave_no_gradient():
    modes = []

    class Model(nn.Linear):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model, x = Model(3, 2), torch.randn(4, 3)
    measure.inference_step(model, x)()
    measure.training_step(model, x)()
    assert modes == [(False, False), (True, True)]
    assert model.weight.grad is None


def test_figures_are_printed_with_their_ratio_to_the_first_row_of_the_size():
    rows = [
        {"size": "a", "backend": "x", "time ms": 8.0, "peak MiB": 200.0},
        {"size": "a", "backend": "y", "time ms": 2.0, "peak MiB": 50.0},
        {"size": "b", "backend": "x", "time ms": 3.0, "peak MiB": None},
    ]
    assert report.markdown(rows).splitlines()[2:] == [
        "| a | x | 8 | 200 |",
        "| a | y | 2 (4x) | 50 (0.25x) |",  # four times as fast, a quarter of the memory
        "| b | x | 3 | - |",
    ]


@pytest.mark.slow
def test_models_are_compared_side_by_side(tmp_path, capsys):
    arguments = ["test_overlock", "test_convnext", "--size", "64x96", "--batch-size", "2"]
    files = {"json": tmp_path / "rows.json", "markdown": tmp_path / "rows.md"}
    outputs = [x for kind, path in files.items() for x in (f"--{kind}", str(path))]
    more = ["--seconds", "0.01", "--inference-form", "--contmix-backend", "unfold"]
    assert bench([*arguments, *outputs, *more]) == 0
    ((title, rows),) = json.loads(files["json"].read_text()).items()
    assert "batch 2, 64x96 px" in title
    assert "a process each" in title
    assert [row["model"] for row in rows] == [
        "test_overlock",
        "test_overlock as built, unfold",
        "test_convnext",
    ]
    ours, unfold, other = rows
    built = sum(p.numel() for p in timm.create_model("test_overlock").parameters())
    assert ours["parameters M"] < unfold["parameters M"] == built / 1e6
    count = sum(p.numel() for p in timm.create_model("test_convnext").parameters())
    assert other["parameters M"] == count / 1e6
    for row in rows:
        assert row["inference images/s"] > row["training images/s"] > 0
    printed = capsys.readouterr().out
    for name in ("test_overlock as built, unfold", "test_convnext"):
        assert name in printed
        assert f"| {name} |" in files["markdown"].read_text()


def test_inference_form_has_fewer_parameters_and_training_can_be_left_out():
    setting = models.Setting(size=(64, 64), train=False)
    (training,) = models.bench_models(["test_overlock"], setting, seconds=0)
    setting = replace(setting, inference_form=True)
    (inference,) = models.bench_models(["test_overlock"], setting, seconds=0)
    assert inference["parameters M"] < training["parameters M"]
    assert "training images/s" not in inference


def test_features_are_measured_without_training(capsys):
    bench(["test_overlock", "--size", "64", "--features", "--seconds", "0.01"])
    printed = capsys.readouterr().out
    assert "features" in printed
    assert "training" not in printed


def test_operations_are_compared_over_sizes(tmp_path):
    path = tmp_path / "rows.json"
    sizes = ["--sizes", "1x7x7x5", "2x9x9x3", "--memory", "--memory-sizes", "1x12x4x3"]
    small = ["--seconds", "0.01", "--groups", "2", "--group-channels", "2"]
    assert bench(["--ops", *sizes, *small, "--json", str(path)]) == 0
    forms, memory = json.loads(path.read_text()).values()
    assert [(row["size"], row["backend"]) for row in forms] == [
        (size, backend)
        for size in ("1x7x7x5", "2x9x9x3")
        for backend in ("unfold", "dense", "strips", "auto")
    ]
    assert [row["backend"] for row in memory] == ["vmap", "one segment", "sequential"]
    for row in (*forms, *memory):
        assert row["forward + backward ms"] > 0
        assert row["forward ms"] > 0


@pytest.mark.slow
def test_depthwise_convolutions_are_compared_with_branches_and_merged(tmp_path):
    path = tmp_path / "rows.json"
    sizes = ["--depthwise-sizes", "1x4x9x8x7", "1x4x5x5x5"]
    options = ["--seconds", "0.001", "--dtype", "bfloat16", "--json", str(path)]
    assert bench(["--depthwise", *sizes, *options, "--device", "cpu"]) == 0
    ((title, rows),) = json.loads(path.read_text()).items()
    assert "bfloat16" in title
    assert "Triton: not measured" in title
    forms = ("conv, NCHW", "onednn, NCHW", "conv, channels-last", "onednn, channels-last")
    assert [(row["size"], row["backend"]) for row in rows] == [
        (f"{size} {kind}", backend)
        for size in ("1x4x9x8x7", "1x4x5x5x5")
        for kind in ("branches", "merged")
        for backend in forms
    ]


@pytest.fixture
def once(monkeypatch):
    """Run every step once instead of measuring it, and return what they gave."""
    results = []

    def run(step, device):
        results.append(step())
        return 1.0

    monkeypatch.setattr(models, "second_run", run)
    monkeypatch.setattr(
        models,
        "interleaved_medians",
        lambda asked, _: {name: ask() for name, ask in asked.items()},
    )
    monkeypatch.setattr(models, "peak_memory", lambda *_: None)
    return results


def test_a_row_with_depthwise_convolutions_on_a_backend_run_on_it(monkeypatch, once):
    backends = []
    forward = DilatedReparamConv.forward

    def watched(self, x):
        backends.append(depthwise_backend.forced)
        return forward(self, x)

    setting = models.Setting(size=(32, 32), train=False, depthwise_backend="conv")
    names = ["test_overlock", "test_overlock, depthwise conv", "test_convnext"]
    monkeypatch.setattr(DilatedReparamConv, "forward", watched)
    rows = models.bench_models(["test_overlock", "test_convnext", "test_overlock"], setting)
    assert [row["model"] for row in rows] == names
    quarter = len(backends) // 4  # of calls: to count and to run each of the two
    assert backends == [None] * 3 * quarter + ["conv"] * quarter
    assert quarter > 0
    assert len(once) == 3


def test_a_row_with_a_teacher_runs_it_once_in_every_training_step(monkeypatch, once):
    calls = []
    forward = timm.models.ConvNeXt.forward

    def watched(self, x):
        calls.append((x.dtype, self.training, torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(timm.models.ConvNeXt, "forward", watched)
    setting = models.Setting(
        batch_size=2,
        size=(32, 32),
        teacher="test_convnext",
        teacher_dtype="bfloat16",
        dtype="bfloat16",
    )
    rows = models.bench_models(["test_overlock"], setting)
    assert [row["model"] for row in rows] == [
        "test_overlock",
        "test_overlock, taught by test_convnext",
    ]
    assert rows[0]["parameters M"] == rows[1]["parameters M"]
    assert calls == [(torch.bfloat16, False, False)]
    assert len(once) == 4


def test_a_taught_step_has_half_its_loss_from_the_teacher():
    torch.manual_seed(0)
    student, teacher = (timm.create_model("test_convnext", num_classes=5).double() for _ in "ab")
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    own = student.train()(images).detach().float().numpy().astype(np.float64)
    with torch.no_grad():
        wanted = teacher.eval()(images).float().numpy().astype(np.float64)
    shares = scipy.special.softmax(wanted, axis=1)
    differences = scipy.special.log_softmax(wanted, axis=1) - scipy.special.log_softmax(own, axis=1)
    of_teacher = (shares * differences).sum(axis=1).mean()
    of_labels = -scipy.special.log_softmax(own, axis=1)[:, 0].mean()
    loss = measure.training_step(student, images, teacher, torch.float64)()
    assert loss.item() == pytest.approx((of_labels + of_teacher) / 2, rel=1e-5)
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_a_teacher_of_one_size_is_shown_that_size():
    student = timm.create_model("test_convnext", num_classes=5)
    teacher = timm.create_model("test_vit", num_classes=5)
    side = teacher.pretrained_cfg["input_size"][-1]
    seen = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    measure.training_step(student, torch.randn(2, 3, 32, 32), teacher, torch.float32)()
    assert seen == [side] != [32]


def test_models_run_under_autocast_to_the_dtype(once):
    setting = models.Setting(size=(32, 32), train=False, dtype="bfloat16")
    models.bench_models(["test_convnext"], setting)
    assert [x.dtype for x in once] == [torch.bfloat16]


def test_ceilings_count_both_directions_of_a_copy_and_both_operations_of_a_multiply_add(
    monkeypatch,
):
    def halves(steps, seconds, device):
        ((name, step),) = steps.items()
        step()
        return {name: 0.5}

    monkeypatch.setattr(measure, "time_interleaved", halves)
    assert measure.copy_bandwidth("cpu") == 2 * 2**22 * 4 / 0.5
    assert measure.matmul_rate("cpu", torch.bfloat16) == 2 * 512**3 / 0.5


def test_profile_stands_beside_the_models(tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.json"
    monkeypatch.setattr(models, "matmul_rate", lambda *_: 80e9)
    monkeypatch.setattr(models, "time_interleaved", lambda steps, *_: dict.fromkeys(steps, 1e-3))
    options = ["--size", "32", "--batch-size", "2", "--seconds", "0.001", "--device", "cpu"]
    assert bench(["test_convnext", "--profile", *options, "--json", str(path)]) == 0
    (_, (model,)), *profiles = json.loads(path.read_text()).items()
    assert [title.split(" by ")[0] for title, _ in profiles] == [
        "test_convnext, inference",
        "test_convnext, training",
    ]
    (title, (everything, *rows)), (_, (training, *_)) = profiles
    reached = everything["multiply-adds G"] / 1e-3
    share = f"{reached:.4g} G multiply-adds/s, {100 * reached / 40:.3g} % of the device's"
    assert title.split(": ")[1] == f"{share}; measured ceilings"
    assert re.search(r"copies at \S+ GB/s, products at 40 G multiply-adds/s$", title)
    assert everything["multiply-adds G"] == pytest.approx(2 * model["multiply-adds G"])
    assert training["multiply-adds G"] == pytest.approx(3 * everything["multiply-adds G"], rel=0.1)
    assert sum(row["share %"] for row in rows) == pytest.approx(100)
    assert "outside of operations" in capsys.readouterr().out


@linux
def test_strips_take_a_fifth_of_the_memory_of_unfold():
    value = torch.randn(1, 128, 50, 84, requires_grad=True)
    query = torch.randn(1, 64, 50, 84, requires_grad=True)
    tap_weights = torch.randn(1, 8, 8, 169, requires_grad=True)

    def peak(backend):
        def step():
            contmix(value, query, tap_weights, backend=backend).sum().backward()
            value.grad = query.grad = tap_weights.grad = None

        step()
        return measure.peak_memory(step)

    assert peak("strips") < peak("unfold") / 5


def test_the_names_that_are_typed_are_those_of_the_operations():
    """They are written twice so that `--help` needs no torch."""
    assert sorted(contmix_backend.names) == sorted(CONTMIX_BACKENDS)
    assert sorted(depthwise_backend.names) == sorted(DEPTHWISE_BACKENDS)
    assert set(models.DTYPES) == set(DTYPE_NAMES)
    assert sorted(BRANCHES) == sorted(KERNELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure: name timm models"),
        (["overlock_tt"], r"timm has no model 'overlock_tt'. Did you mean 'overlock_t'\?"),
        (["test_overlock", "--batchsize", "2"], r"--batchsize 2\. Did you mean '--batch-size'\?"),
        (["test_overlock", "--batch", "2"], "unrecognized arguments: --batch"),
        (
            ["test_overlock", "--batch-size", "0"],
            "--batch-size: found 0, expected a number",
        ),
        (["test_overlock", "--batch-size", "two"], "invalid int value: 'two'"),
        (["test_overlock", "--size", "big"], "--size big: expected pixels, such as 224 or"),
        (["test_overlock", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["test_overlock", "--contmix-backend", "shifts"], "invalid choice: 'shifts'"),
        (
            ["test_overlock", "--contmix-backend", "triton", "--device", "cpu"],
            "--contmix-backend triton: this backend needs",
        ),
        (
            ["test_overlock", "--depthwise-backend", "triton", "--device", "cpu"],
            "--depthwise-backend triton: this backend needs",
        ),
        (["test_overlock", "--sizes", "1x7x7x5"], "--sizes is of use with --ops only"),
        (["--ops", "--contmix-backend", "unfold"], "--contmix-backend is of use with NAME only"),
        (["--ops", "--sizes", "14x14"], "'14x14' is no size; expected BxHxWxK"),
        (["--ops", "--sizes", "1x7x7x9"], "the window must be odd and fit into the map"),
        (["--memory", "--memory-sizes", "1x10x4x3"], "10 tokens are no whole chunks"),
        (["--ops", "--profile"], "--profile is of use with NAME only"),
        (["--ops", "--compile"], "--compile is of use with --depthwise only"),
        (["--depthwise", "--depthwise-sizes", "1x4x9x7"], "no size; expected BxCxHxWxK"),
        (["--depthwise", "--depthwise-sizes", "1x4x9x9x6"], "the kernel must be one of"),
        (["test_overlock", "--features", "--train"], "--train needs logits"),
        (["test_overlock", "--teacher", "resnet81"], "timm has no model 'resnet81'"),
        (["--ops", "--teacher", "resnet18"], "--teacher is of use with NAME only"),
        (["test_overlock", "--teacher-dtype", "float16"], "is of use with --teacher only"),
        (
            ["test_overlock", "--teacher", "test_convnext", "--no-train"],
            "--teacher is about the training step, which --no-train leaves out",
        ),
        (["test_overlock", "--ops", "--sizes", "bad"], "--sizes: 'bad' is no size"),
        (
            ["test_overlock", "--memory", "--memory-sizes", "1x10x4x3"],
            "10 tokens are no whole chunks",
        ),
        (
            ["test_overlock", "--depthwise", "--depthwise-sizes", "1x4x9x9x6"],
            "the kernel must be one of",
        ),
        (["test_overlock", "--json", "same", "--markdown", "same"], "expected a file for each"),
        (["test_convnext", "--contmix-backend", "unfold"], "change nothing in test_convnext"),
        (
            ["test_overlock", "--json", "no/such/rows.json"],
            "rows.json: this file cannot be written: No",
        ),
    ],
)
def test_a_mistake_is_answered_in_at_most_three_lines(arguments, message, monkeypatch):
    def measured(*_, **__):
        raise AssertionError("something was measured")

    for module in (models, operations):
        for name in ("interleaved_medians", "time_interleaved"):
            monkeypatch.setattr(module, name, measured, raising=False)
    with pytest.raises(InputError, match=message) as error:
        bench(arguments)
    assert str(error.value).count("\n") <= 2
