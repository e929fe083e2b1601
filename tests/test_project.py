"""The project's own files: its dependencies in two places, its rooms, its metadata."""

import importlib
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import lightning_overlock

ROOT = Path(__file__).parent.parent


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_environment_names_the_dependencies_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert [d for d in pip if not d.startswith("--")] == project()["dependencies"]
    assert f"python{project()['requires-python']}" in conda
    assert "--editable ." in pip


def test_every_dependency_has_a_lower_bound():
    assert all(">=" in dependency for dependency in project()["dependencies"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", "1000")),
        ({"OMP_WAIT_POLICY": "passive"}, ("passive", "1000")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "0"}, ("PASSIVE", "0")),
    ],
)
def test_threads_wait_as_the_user_says_or_sleep_after_a_short_spin(given, expected, monkeypatch):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that both are restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    importlib.reload(lightning_overlock)
    assert tuple(os.environ.get(name) for name in names) == expected


def test_compromised_releases_of_lightning_are_excluded():
    (lightning,) = [d for d in project()["dependencies"] if d.startswith("lightning")]
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning


def test_version_is_that_of_the_changelog_or_unreleased():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(lightning_overlock.__version__)


def test_citation_names_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    numbers = [r["identifiers"][0]["value"] for r in citation["references"]]
    assert numbers == ["arXiv:2502.20087", "arXiv:2603.19567"]
