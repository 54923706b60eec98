"""`import cookbook` is quick and offers what its face promises."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import cookbook


def test_every_name_is_there_and_is_the_modules_own() -> None:
    for module, names in cookbook._HOMES.items():
        for name in names:
            assert getattr(cookbook, name) is getattr(importlib.import_module(module), name)
    assert set(cookbook.__all__) <= set(dir(cookbook))


def test_no_name_hides_a_module() -> None:
    """`from cookbook import x` would give the module once somebody had imported it."""
    for name in cookbook._HOME_OF:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"cookbook.{name}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        cookbook.nonsense  # noqa: B018 (the access is the test)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, cookbook; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
