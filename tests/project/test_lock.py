"""pyproject.toml, requirements.lock, and what the code imports and requires, say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cookbook.environment import OLDEST_TORCH, require_supported_torch
from cookbook.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {  # where the names differ
    "PIL": "pillow", "ignite": "pytorch-ignite", "rattler": "py-rattler", "yaml": "pyyaml", "zmq": "pyzmq",
}  # fmt: skip
EXTRAS_OF = {  # or the dependency groups; the rest of the package needs none
    "execution.py": ["docs"], "notebooks.py": ["docs"], "course.py": ["docs"], "deploy/openvino_format.py": ["formats"],
    "deploy/executorch_format.py": ["mobile"], "bench/peers.py": ["peers"], "bench/recipes.py": ["formats", "peers"],
}  # fmt: skip


@cache
def pyproject() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return the dependencies, and those of the extras and groups, by canonical name."""
    optional = {**pyproject()["project"]["optional-dependencies"], **pyproject()["dependency-groups"]}
    lines = [*pyproject()["project"]["dependencies"], *(line for extra in extras for line in optional[extra])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def locked() -> list[tuple[Requirement, list[str]]]:
    """Return what the lock pins, each with its hashes."""
    logical = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    entries = [line.split("--hash=") for line in logical.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(head.strip()), [tail.strip() for tail in hashes]) for head, *hashes in entries]


def test_every_dependency_is_locked_within_its_bounds() -> None:
    pins: dict[str, list[str]] = {}
    for requirement, _ in locked():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        pins.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    for name, requirement in requirements("lessons", "docs", "formats", "test").items():
        assert pins.get(name), f"{name} is not in requirements.lock: run 'make lock'"
        assert all(requirement.specifier.contains(version) for version in pins[name]), f"{name} is locked outside its bounds"
    assert pins.get("setuptools"), "the editable installation without build isolation needs setuptools"


def test_every_pin_has_sha256_hashes() -> None:
    assert len(locked()) > 100
    for requirement, hashes in locked():
        assert hashes, f"{requirement.name} has no hash"
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes)


def test_the_lock_holds_no_address_and_no_option() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in text
    assert " @ " not in text
    assert re.findall(r"^-.*", text, re.MULTILINE) == []


def test_every_bound_is_a_lower_bound() -> None:
    for name, requirement in requirements("lessons", "docs", "formats", "test", "mobile", "peers").items():
        assert [clause.operator for clause in requirement.specifier] == [">="], name


def imported_distributions(path: Path) -> set[str]:
    """Return the canonical names of the third-party distributions that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module).split(".")[0])
    beside = {sibling.stem for sibling in path.parent.glob("*.py")}  # helpers of the tests
    foreign = modules - set(sys.stdlib_module_names) - beside - {"cookbook"}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in foreign}


@pytest.mark.parametrize("path", sorted((ROOT / "cookbook").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_only_what_it_declares(path: Path) -> None:
    part = path.relative_to(ROOT / "cookbook").as_posix()
    assert imported_distributions(path) - requirements(*EXTRAS_OF.get(part, [])).keys() == set()


def test_tests_and_lessons_import_only_what_the_extras_declare() -> None:
    declared = requirements("lessons", "docs", "test").keys()
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "notebooks").rglob("*.py")]:
        assert imported_distributions(path) - declared == set(), path


def test_the_oldest_torch_in_code_is_the_bound_in_pyproject() -> None:
    (bound,) = requirements()["torch"].specifier
    assert (bound.operator, bound.version) == (">=", ".".join(map(str, OLDEST_TORCH)))


@pytest.mark.parametrize("version", ["2.10.1", "1.13.1+cu117", "2.9.0a0+git"])
def test_an_older_torch_is_refused_in_one_sentence(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UsageError, match=re.escape(version)) as refusal:
        require_supported_torch()
    assert str(refusal.value).count("\n") == 0
    assert "2.11" in str(refusal.value)


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+vendor", "2.15.0+cpu", "3.0.0", "2.100.0"])
def test_the_bound_and_anything_newer_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    refused = False
    try:
        require_supported_torch()
    except UsageError:
        refused = True
    assert not refused


def test_importing_the_package_with_an_older_torch_ends_in_that_sentence() -> None:
    code = "import torch; torch.__version__ = '2.10.0'; import cookbook.environment"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "torch 2.10.0 is too old" in result.stderr.strip().splitlines()[-1]
