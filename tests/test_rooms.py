"""The house's order, held on files: who may import whom."""

import ast
from pathlib import Path

import pytest

import lightning_overlock

PACKAGE = Path(lightning_overlock.__file__).parent
# Lowest room first; a room imports only from rooms above it in this list. ARCHITECTURE.md says what
# lives in each.
ROOMS = [
    "errors",
    "arguments",
    "ranges",
    "files",
    "yaml_files",
    "ops",
    "layers",
    "models",
    "data",
    "convert",
    "metrics",
    "backbones",
    "heads",
    "optim",
    "runs",
    "callbacks",
    "tables",
    "bench",
    "tasks",
    "export",
    "analysis",
    "robustness",
    "configs",
    "sweep",
    "cli",
    "__main__",
]
# The network is usable without the experiment, which knows it by timm's registry alone.
NETWORK = {"ops", "layers", "models"}
LOOK_INSIDE = {"analysis", "bench"}
# A layer of one line, which the release's dense models have on their overview.
LENT = {("backbones/features.py", "layers/conv_mlp.py")}
EXPERIMENT_ONLY = {"lightning", "torchmetrics", "jsonargparse", "optuna"}


def files():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(path):
    """What a file imports, as dotted names; an imported name counts as a module if it is one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name_of(path)} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def file_of(module):
    """The file of the package that a dotted name leads to; None for another package's."""
    package, *parts = module.split(".")
    if package != "lightning_overlock":
        return None
    while parts:
        path = PACKAGE.joinpath(*parts)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
        parts.pop()
    return PACKAGE / "__init__.py"


def imported(path):
    return {file_of(module) for module in modules(path)} - {None, path, PACKAGE / "__init__.py"}


@pytest.fixture(scope="module")
def arrows():
    return {path: imported(path) for path in files()}


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_file_stands_in_a_room_and_imports_only_rooms_below(path, arrows):
    assert room_of(path) in ROOMS, f"{name_of(path)} is in no room: add it to ROOMS"
    place = ROOMS.index(room_of(path))
    up = [name_of(other) for other in arrows[path] if ROOMS.index(room_of(other)) > place]
    assert not up, f"{name_of(path)} imports from above: {up}"


def test_no_circle_of_files(arrows):
    def reached(start):
        seen, queue = set(), [start]
        while queue:
            for other in arrows[queue.pop()] - seen:
                seen.add(other)
                queue.append(other)
        return seen

    assert [name_of(path) for path in arrows if path in reached(path)] == []


def test_the_two_wings_meet_in_timms_registry_only(arrows):
    crossing = {
        (name_of(path), name_of(other))
        for path, others in arrows.items()
        for other in others
        if room_of(path) not in NETWORK | LOOK_INSIDE and room_of(other) in NETWORK
    }
    assert crossing == LENT


@pytest.mark.parametrize("path", [p for p in files() if room_of(p) in NETWORK], ids=name_of)
def test_the_network_needs_no_trainer(path):
    assert not {module.split(".")[0] for module in modules(path)} & EXPERIMENT_ONLY


def test_files_stay_short():
    long = {
        name_of(path): lines
        for path in files()
        if room_of(path) != "models" and not path.name.startswith("triton")
        for lines in [len(path.read_text().splitlines())]
        if lines > (350 if room_of(path) == "sweep" else 450)
    }
    assert long == {}


def code_lines(function):
    """Lines of a function's statements, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize(
    "path", [p for p in files() if not p.name.startswith("triton")], ids=name_of
)
def test_functions_stay_short(path):
    long = {
        node.name: code_lines(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name != "__init__" and code_lines(node) > 60
    }
    assert long == {}
