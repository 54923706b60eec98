"""Installations that are missing, broken or there twice."""

from __future__ import annotations

import site
import sys
from pathlib import Path

import pytest

from cookbook.probe.software import Installation, data_error, import_error, installations, library_facts


def install(folder: Path, version: str, name: str = "torch") -> str:
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def test_every_torch_on_the_path_is_found_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = install(tmp_path / "user", "2.12.0"), install(tmp_path / "env", "2.15.0")
    install(tmp_path / "env", "0.30.0", "torchvision")
    install(tmp_path / "env", "2.9.1")
    monkeypatch.setattr(site, "getusersitepackages", lambda: first)
    found = installations("torch", [first, second, str(tmp_path / "absent"), first])
    assert found[0] == Installation("2.12.0", first, True)
    assert set(found[1:]) == {Installation("2.15.0", second), Installation("2.9.1", second)} and len(found) == 3
    assert installations("torch", [second, first])[-1].user_site
    assert installations("torch", [str(tmp_path)]) == ()


def test_one_folder_under_two_names_is_one_installation(tmp_path: Path) -> None:
    folder = install(tmp_path / "env", "2.15.0")
    (tmp_path / "link").symlink_to(folder)
    assert len(installations("torch", [folder, str(tmp_path / "link")])) == 1


def test_why_a_library_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out_of_order.py").write_text("raise RuntimeError('operator torchvision::nms\\n does not exist')\n")
    (tmp_path / "silent.py").write_text("raise OSError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_error("out_of_order") == "operator torchvision::nms does not exist"
    assert import_error("silent") == "OSError"
    assert import_error("no_such_module") == "No module named 'no_such_module'"
    assert import_error("json") == ""


def test_a_library_is_missing_broken_or_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "1.0", "halfway"))
    facts = library_facts({"pytest": "pytest", "halfway": "halfway", "absent-library": "absent_library"})
    assert facts["libraries"] == {"pytest": pytest.__version__, "halfway": "1.0", "absent-library": None}
    assert facts["broken"] == {"halfway": "No module named 'halfway'"}
    assert facts["torch_installations"] == installations("torch", sys.path)


@pytest.mark.parametrize(
    ("installed", "broken"),
    [({"torch": None, "torchvision": "1"}, {}), ({"torch": "1"}, {}), ({"torch": "1", "torchvision": "1"}, {"torch": "no"})],
)
def test_data_needs_torch_and_torchvision(installed: dict[str, str | None], broken: dict[str, str]) -> None:
    assert "without torch and torchvision" in data_error(installed, broken)
