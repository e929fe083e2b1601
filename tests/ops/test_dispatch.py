"""What "auto" means where backends are measured: with backends made for the test, on a CPU."""

import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.errors import InputError
from lightning_overlock.ops import choices as choices_module
from lightning_overlock.ops import dispatch, measure
from lightning_overlock.ops.choices import choices
from lightning_overlock.ops.contmix.operator import contmix
from lightning_overlock.ops.depthwise.operator import depthwise
from lightning_overlock.ops.dispatch import SETTING, Backends

SLOW, SLOWER = 0.002, 0.006


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def sleeping(seconds):
    def run(x):
        time.sleep(seconds)
        return x * 3

    return run


def raising(error):
    def run(x):
        raise error

    return run


def wrong_in_one_place(x):
    return x * 3 + torch.zeros_like(x).index_put_([torch.tensor([1])] * 4, torch.tensor(0.3).to(x))


MADE = {
    "safe": sleeping(SLOW),
    "fast": lambda x: x * 3,
    "slow": sleeping(SLOWER),
    "off": lambda x: x * 3 * 1.01,
    "off in one place": wrong_in_one_place,
    "off in the gradient": lambda x: WrongGradient.apply(x, 1.01) * 3,
    "rounded to half": lambda x: (x.bfloat16() * 3).to(x.dtype),
    "not a number": lambda x: x * float("nan"),
    "other shape": lambda x: (x * 3)[:1],
    "raising": raising(RuntimeError("no kernel image\nmore lines")),
    "out of memory": raising(torch.OutOfMemoryError("tried to allocate 80 GiB")),
}


class Operation:
    """An operation with the backends of the test; `ran` has what each call ran."""

    def __init__(self, *candidates):
        self.backends = Backends("made", *MADE)
        self.candidates = candidates
        self.ran = []

    def __call__(self, x):
        def run(name, x):
            self.ran.append(name)
            return MADE[name](x)

        chosen = self.backends.choose(
            dispatch.call_of([x]), {"maps": x.shape[0]}, lambda: self.candidates, run, [x]
        )
        self.timed = len(self.ran)
        self.ran.clear()
        self.chosen = chosen
        return MADE[chosen or "safe"](x)


@pytest.fixture(autouse=True)
def measuring(tmp_path, monkeypatch):
    """Measure on the CPU, and remember in a folder of the test."""
    monkeypatch.setenv(SETTING, "measure")
    monkeypatch.setenv("LIGHTNING_OVERLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image(count=4, dtype=torch.float32, grad=False):
    x = torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.requires_grad_(grad)


def in_a_new_process():
    """Forget what is in memory; files stay."""
    choices_module._choices.cache_clear()


class TestMeasured:
    @pytest.mark.parametrize(("candidate", "expected"), [("fast", "fast"), ("slow", "safe")])
    def test_the_fastest_is_taken_and_timed_once(self, candidate, expected):
        operation = Operation("safe", candidate)
        operation(image())
        assert operation.chosen == expected
        # Compared, warmed up, timed.
        assert operation.timed == 2 * (measure.REPETITIONS + 2)
        operation(image())
        assert (operation.chosen, operation.timed) == (expected, 0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(
        ("candidate", "reason"),
        [
            ("off", "its output is wrong by .*, where .* is the largest number"),
            ("off in one place", "its output is wrong by 0.3"),
            ("off in the gradient", "its gradient is wrong by"),
            ("not a number", "its output is wrong by nan"),
            ("other shape", "it raises RuntimeError: Mismatch in shape"),
            ("raising", "it raises RuntimeError: no kernel image$"),
            ("out of memory", "it raises OutOfMemoryError: tried to allocate 80 GiB$"),
        ],
    )
    def test_what_is_wrong_is_dropped_with_one_warning(self, candidate, reason, dtype):
        operation = Operation("safe", candidate)
        with pytest.warns(UserWarning, match=f"made does not take its backend '{candidate}'") as w:
            operation(image(dtype=dtype, grad=True))
        assert operation.chosen == "safe"
        assert len(w) == 1
        [(_, _, choice)] = choices(torch.device("cpu")).items()
        assert list(choice.dropped) == [candidate]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            operation(image(300, dtype, grad=True))
        assert operation.timed > 0
        assert re.search(reason, choice.dropped[candidate])

    def test_a_wrong_gradient_does_not_matter_where_none_is_asked_for(self):
        operation = Operation("safe", "off in the gradient")
        with torch.no_grad():
            operation(image(grad=True))
        assert operation.chosen == "off in the gradient"
        with pytest.warns(UserWarning, match="gradient is wrong by"):
            operation(image(grad=True))
        assert operation.chosen == "safe"

    def test_a_kind_of_call_is_its_type_layout_and_size_up_to_a_power_of_two(self):
        operation = Operation("safe", "fast")
        calls = [image(5), image(8), image(9), image(5).double()]
        calls += [image(5).contiguous(memory_format=torch.channels_last)]
        timed = [operation(x) is not None and operation.timed > 0 for x in calls]
        assert timed == [True, False, True, True, True]

    @pytest.mark.parametrize("x", [torch.zeros(2, 2, 3, 3), torch.full((2, 2, 3, 3), torch.inf)])
    def test_from_zeros_and_infinite_numbers_nothing_is_learnt(self, x):
        operation = Operation("safe", "off")
        operation(x)
        assert (operation.chosen, operation.timed) == (None, 1)
        with pytest.warns(UserWarning, match="'off'"):
            operation(torch.ones(2, 2, 3, 3))

    def test_where_the_safe_one_fails_nothing_is_remembered_and_it_is_left_soon(self, measuring):
        operation = Operation("out of memory", "fast")
        timed = []
        for _ in range(dispatch.ATTEMPTS + 2):
            operation(image())
            timed.append(operation.timed)
            assert operation.chosen is None
        assert timed == [1] * dispatch.ATTEMPTS + [0, 0]
        assert not measuring.exists()

    def test_a_product_may_be_as_coarse_as_products_of_float32_were_allowed_to_be(self):
        coarse = Operation("safe", "rounded to half")
        with pytest.warns(UserWarning, match="'rounded to half'"):
            coarse(image())
        torch.set_float32_matmul_precision("medium")
        try:
            coarse(image())
        finally:
            torch.set_float32_matmul_precision("highest")
        assert coarse.chosen == "rounded to half"

    def test_it_leaves_no_trace_in_a_training(self):
        """Draws, gradients, hooks of saved tensors, counted operations."""
        x = image(grad=True)
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        y = checkpoint(Operation("safe", "fast"), x, use_reentrant=False)
        assert torch.equal(torch.rand(1), expected)
        y.sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 3))

    def test_inference_mode_is_measured_too(self):
        operation = Operation("safe", "fast")
        with torch.inference_mode():
            operation(image())
        assert operation.chosen == "fast"


class TestNeverTimed:
    def never(self, *, known):
        operation = Operation("safe", "fast")
        if known:
            operation(image())
            assert operation.chosen == "fast"
        return operation, "fast" if known else None

    @pytest.mark.parametrize("known", [False, True])
    def test_under_deterministic_algorithms(self, known):
        operation, expected = self.never(known=known)
        torch.use_deterministic_algorithms(True)
        try:
            operation(image())
        finally:
            torch.use_deterministic_algorithms(False)
        assert (operation.chosen, operation.timed) == (expected, 0)

    @pytest.mark.parametrize("known", [False, True])
    def test_in_compiled_code(self, known, monkeypatch):
        if known:
            Operation("safe", "fast")(image())
        backends, timed = Backends("made", *MADE), []
        monkeypatch.setattr(dispatch, "measure", lambda *_: timed.append(1))

        def operation(x):
            chosen = backends.choose(
                dispatch.call_of([x]), {"maps": x.shape[0]}, lambda: ["safe"], None, [x]
            )
            return x * (2 if chosen == "fast" else 1)

        x = image()
        torch.compiler.reset()
        compiled = torch.compile(operation, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), x * (2 if known else 1))
        # What has any size is not narrowed to one class of sizes.
        x = image(7)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), x)
        assert not timed

    @pytest.mark.parametrize("known", [False, True])
    def test_in_an_export(self, known, monkeypatch):
        if known:
            Operation("safe", "fast")(image())
        backends, timed = Backends("made", *MADE), []
        monkeypatch.setattr(dispatch, "measure", lambda *_: timed.append(1))

        class Net(torch.nn.Module):
            def forward(self, x):
                chosen = backends.choose(
                    dispatch.call_of([x]), {"maps": x.shape[0]}, lambda: ["safe"], None, [x]
                )
                return x * (1 if chosen is None else 2)

        for strict in (False, True):
            program = torch.export.export(Net(), (image(),), strict=strict)
            assert torch.equal(program.module()(image()), image())
        assert not timed

    def test_while_operations_are_counted_or_traced(self):
        operation = Operation("safe", "fast")
        with FlopCounterMode(display=False):
            operation(image())
        assert (operation.chosen, operation.timed) == (None, 0)
        torch.func.vmap(operation)(image())
        assert (operation.chosen, operation.timed) == (None, 0)
        with warnings.catch_warnings(action="ignore"):  # that tracing is deprecated
            torch.jit.trace(lambda x: operation(x), image(), check_trace=False)
        assert (operation.chosen, operation.timed) == (None, 0)

    @pytest.mark.parametrize("setting", ["", "safe", "contmix=dense"])
    def test_on_a_cpu_unless_it_is_asked_for(self, setting, monkeypatch, measuring):
        monkeypatch.setenv(SETTING, setting)
        operation = Operation("safe", "fast")
        operation(image())
        assert (operation.chosen, operation.timed) == (None, 0)
        assert not measuring.exists()


class TestFile:
    def file(self, folder):
        Operation("safe", "fast")(image())
        [file] = folder.iterdir()
        in_a_new_process()
        return file

    def timed(self):
        in_a_new_process()
        operation = Operation("safe", "fast")
        operation(image())
        assert operation.chosen == "fast"
        return operation.timed > 0

    def test_a_later_process_remembers(self, measuring):
        self.file(measuring)
        assert not self.timed()

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda file: file.write_text(file.read_text()[:-20]),
            lambda file: file.write_bytes(b"\xff\xfe\x00"),
            lambda file: file.write_text("[" * 100_000),
            lambda file: file.write_text("null"),
            lambda file: file.write_text("{}"),
            lambda file: file.write_text(file.read_text().replace('"fast"', '"other"', 1)),
            lambda file: file.write_text(file.read_text().replace('"fast"', "7", 1)),
            lambda file: file.write_text(file.read_text().replace('"dropped": {}', '"dropped": 1')),
            lambda file: file.write_text(file.read_text().replace('"made"', '"another"')),
            lambda file: file.write_text(file.read_text().replace(torch.__version__, "2.0")),
            lambda file: (file.unlink(), file.mkdir()),
        ],
        ids=[
            *("torn", "binary", "deep", "null", "empty", "name", "number", "kind", "operation"),
            *("version", "folder"),
        ],
    )
    def test_what_is_no_file_of_ours_is_ignored(self, spoil, measuring):
        spoil(self.file(measuring))
        assert self.timed()

    @pytest.mark.parametrize("package", ["torch", "triton", "lightning_overlock"])
    def test_other_versions_measure_again(self, package, measuring, monkeypatch):
        self.file(measuring)
        of_this = choices_module.identity
        monkeypatch.setattr(
            choices_module, "identity", lambda device: of_this(device) | {package: "next"}
        )
        assert self.timed()
        assert len(list(measuring.iterdir())) == 2

    def test_a_place_that_cannot_be_written_is_no_obstacle(self, measuring):
        measuring.write_text("a file where the folder should be")
        operation = Operation("safe", "fast")
        operation(image())
        operation(image())
        assert (operation.chosen, operation.timed) == ("fast", 0)
        assert measuring.is_file()

    def test_nothing_is_left_of_a_write_that_fails(self, measuring):
        file = self.file(measuring)
        file.unlink()
        file.mkdir()
        (file / "content").touch()
        Operation("safe", "fast")(image())
        assert list(measuring.iterdir()) == [file]

    def test_what_another_process_wrote_meanwhile_is_kept(self, measuring):
        first = Operation("safe", "fast")
        first(image())
        [file] = measuring.iterdir()
        content = json.loads(file.read_text())
        content["choices"]["other"] = {"call": {"backend": "x", "milliseconds": {}, "dropped": {}}}
        file.write_text(json.dumps(content))
        first(image(300))
        written = json.loads(file.read_text())["choices"]
        assert len(written["made"]) == 2
        assert written["other"] == content["choices"]["other"]

    def test_it_is_in_the_users_cache_folder_unless_told(self, monkeypatch, tmp_path):
        monkeypatch.delenv("LIGHTNING_OVERLOCK_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert choices_module.cache_folder() == tmp_path / "lightning_overlock"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        expected = tmp_path / "home" / ".cache" / "lightning_overlock"
        assert choices_module.cache_folder() == expected


class TestOperations:
    """The package's own, where measuring is asked for on a CPU."""

    def test_contmix_chooses_between_its_plain_backends(self):
        value = torch.randn(1, 8, 9, 9)
        tap_weights = torch.randn(1, 2, 4, 25)
        found = contmix(value, value, tap_weights)
        torch.testing.assert_close(found, contmix(value, value, tap_weights, backend="dense"))
        [(operation, call, choice)] = choices(torch.device("cpu")).items()
        assert operation == "contmix"
        assert call == (
            "float32, NCHW, without gradients, window 5, heads of 4 and 4, taps no bias, "
            "positions no bias, maps <= 2, pixels <= 128, float32 products highest"
        )
        assert sorted(choice.milliseconds) == ["dense", "strips"]

    @pytest.mark.parametrize("autocast", [False, True])
    def test_depthwise_is_measured_with_the_types_of_the_call(self, autocast):
        x = torch.randn(1, 4, 6, 6, requires_grad=True)
        weights = [torch.randn(4, 1, 5, 5, requires_grad=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = depthwise(x, weights, bias=torch.randn(4))[0]
        assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
        [(operation, call, choice)] = choices(torch.device("cpu")).items()
        assert operation == "depthwise"
        types = "bfloat16+float32" if autocast else "float32"
        assert call.startswith(f"{types}, NCHW, with gradients, kernels 5/1, bias, maps <= 4")
        assert sorted(choice.milliseconds) == ["conv", "onednn"]
        assert not choice.dropped

    def test_the_environment_pins_a_backend(self, monkeypatch):
        monkeypatch.setenv(SETTING, "contmix=strips, depthwise=conv")
        assert Backends("contmix", "dense", "strips").resolve("auto") == "strips"
        assert Backends("contmix", "dense", "strips").resolve("dense") == "dense"
        with (made := Backends("contmix", "dense", "strips")).force("dense"):
            assert made.resolve("auto") == "dense"

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("contmix=fast", "found contmix=fast, expected one of dense, strips"),
            ("contmix", "found contmix=, expected one of dense, strips"),
            ("fastest", "found 'fastest' in 'fastest'"),
            ("contmix=dense,memory=x", "found 'memory' in"),
            ("Safe", "found 'Safe' in 'Safe'"),
        ],
    )
    def test_a_setting_that_makes_no_sense_is_told(self, setting, message, monkeypatch):
        monkeypatch.setenv(SETTING, setting)
        with pytest.raises(InputError, match=f"{SETTING}: {message}") as error:
            Backends("contmix", "dense", "strips").resolve("auto")
        assert str(error.value).count("\n") < 3


@pytest.mark.slow
def test_two_processes_take_the_choice_of_the_first(tmp_path):
    """Each alone would choose another backend."""
    script = Path(__file__).with_name("two_processes_choose.py")
    place = {SETTING: "measure", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            env=os.environ | place | {"LIGHTNING_OVERLOCK_CACHE": str(tmp_path / str(rank))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Both came; the second alone; their files disagree; deterministic, with nothing known.
    assert said == [["first", "second", "first", "None"], ["first", "second", "first", "None"]]
