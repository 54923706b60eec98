"""environment.yml asks conda for what pyproject.toml asks pip for, with the same bounds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[2]
PIP_NAMES = {"pytorch": "torch"}  # by conda's name, where the two differ
CONDA_ONLY = {"python", "pip"}


def environment() -> dict[str, Any]:
    """Return the parsed environment.yml."""
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def pyproject() -> dict[str, Any]:
    """Return the parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def name_in(line: str) -> str:
    """Return the name at the start of a requirement in either syntax."""
    return re.split("[<>=!~ ]", line)[0]


def conda_lines() -> list[str]:
    """Return the lines for conda."""
    return [line for line in environment()["dependencies"] if isinstance(line, str)]


def pip_lines() -> list[str]:
    """Return the lines for pip."""
    (section,) = [entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict)]
    return section


def bounds_in_pyproject() -> dict[str, str]:
    """Return the version specifier of every dependency, extra and build requirement by canonical name."""
    data = pyproject()
    extras = [line for lines in data["project"]["optional-dependencies"].values() for line in lines]
    lines = [*data["project"]["dependencies"], *extras, *data["build-system"]["requires"]]
    return {canonicalize_name(Requirement(line).name): str(Requirement(line).specifier) for line in lines}


def bounds_in_environment() -> dict[str, str]:
    """Return the same of environment.yml, under pip's names."""
    bounds = {}
    for line in conda_lines():
        name = name_in(line)
        if name not in CONDA_ONLY:
            bounds[canonicalize_name(PIP_NAMES.get(name, name))] = str(MatchSpec(line).version)
    for line in pip_lines():
        if not line.startswith("-"):
            bounds[canonicalize_name(name_in(line))] = str(Requirement(line).specifier)
    return bounds


def test_names_and_bounds_are_those_of_pyproject() -> None:
    assert bounds_in_environment() == bounds_in_pyproject()


def test_nothing_is_listed_twice() -> None:
    names = [name_in(line) for line in conda_lines() + pip_lines() if not line.startswith("-")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("line", conda_lines())
def test_conda_can_parse_each_line(line: str) -> None:
    assert str(MatchSpec(line)).split()[0] == name_in(line)


def test_python_is_one_version_that_the_package_supports() -> None:
    """A range would leave the choice to Binder, which then takes an interpreter that is too old."""
    (python,) = [line for line in conda_lines() if name_in(line) == "python"]
    assert python == "python=3.12"
    (bound,) = Requirement("x" + pyproject()["project"]["requires-python"]).specifier
    assert Version("3.12") >= Version(bound.version)


def test_the_checkout_itself_is_installed_editable_by_pip() -> None:
    assert pip_lines()[-1] == "-e ."
    assert "pip" in conda_lines(), "conda wants pip named where a pip section follows"


def test_the_only_channel_is_conda_forge() -> None:
    assert environment()["channels"] == ["conda-forge"]
    assert environment()["name"] == pyproject()["project"]["name"]
