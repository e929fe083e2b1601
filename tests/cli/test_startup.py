"""What answers at once imports nothing heavy, and the backbones are registered all the same."""

import json
import subprocess
import sys
import textwrap

import pytest

HEAVY = {"torch", "timm", "lightning", "torchvision", "torchmetrics", "matplotlib", "sklearn"}
LINES = {
    "--help": 0,
    "--version": 0,
    "configs": 0,
    "bench --help": 0,
    "fitt": 2,
    "configs x": 2,
    "fit --config quickstrat": 2,
    "fit --config broken.yaml": 2,
    "fit --config quickstart stray": 2,
    "fit --config quickstart --model.lr": 2,
    "fit --config quickstart --name a/b": 2,
    "fit --ckpt_path last": 2,
    "validate": 2,
    "test --ckpt_path nowhere.ckpt": 2,
    "predict --ckpt_path .": 2,
    "bench": 2,
    "bench test_overlock --batch-size 0": 2,
    "robustness --help": 0,
    "robustness --ckpt_path x.ckpt": 2,
    "robustness --ckpt_path x.ckpt --data.imagenet_r nowhere": 2,
    "data --help": 0,
    "data convert --help": 0,
    "data convert voc --to coco --root nowhere --output out": 2,
    "data optimize nowhere --output out": 2,
    "bench test_overlock --json no/such/folder.json": 2,
}
COMMANDS = f"""
import json, sys
from lightning_overlock.cli.main import main
found = {{}}
for line in {list(LINES)}:
    code = main(line.split())
    found[line] = code, sorted({{name.partition(".")[0] for name in sys.modules}})
print("FOUND" + json.dumps(found))
"""


def python(code, *arguments, cwd=None):
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip


def test_what_needs_no_torch_does_without_it(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [\n")
    done = python(COMMANDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line, (code, modules) in json.loads(done.stdout.rpartition("FOUND")[2]).items():
        assert code == LINES[line], line
        assert not set(modules) & (HEAVY | {"optuna", "jsonargparse", "scipy", "pandas"}), line


def test_training_imports_neither_optuna_nor_scikit_learn():
    done = python(
        """
        import sys
        from lightning_overlock.cli import training
        print(*sys.modules)
        """
    )
    assert done.returncode == 0, done.stderr
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & {"optuna", "sklearn", "pandas", "psycopg", "statsmodels", "notebook"}
    assert not any("lightning_overlock.analysis" in name for name in done.stdout.split())
    assert "lightning_overlock.sweep" not in done.stdout.split()


@pytest.mark.slow  # five times the import of timm
@pytest.mark.parametrize(
    "imports",
    [
        "import timm, lightning_overlock",
        "import lightning_overlock, timm",
        "import timm.layers; from lightning_overlock import errors",
        "from lightning_overlock.models.overlock import OverLoCK; import timm",
        "from lightning_overlock.layers import ContMix; import timm",
        "from lightning_overlock.cli.main import main; import timm",
    ],
)
def test_timm_knows_the_backbones_once_both_are_imported(imports):
    code = f"{imports}; assert timm.is_model('overlock_t') and timm.is_model('convneur_m1')"
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_process_that_is_started_anew_knows_them_too(tmp_path):
    """As loaders' workers and further GPUs' processes are: nothing is inherited."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing
            import pickle

            import lightning_overlock
            import timm

            def count(model):
                return timm.is_model("overlock_t"), len(pickle.dumps(model))

            if __name__ == "__main__":
                model = timm.create_model("test_overlock")
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    known, size = pool.apply(count, (model,))
                assert known and size > 1000
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch():
    done = python("import sys, lightning_overlock; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
