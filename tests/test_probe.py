"""The facts of this machine, and those that files of another one hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from cookbook import probe
from cookbook.probe import Probe, cpu_limit


def test_the_facts_of_this_machine_are_collected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = Probe.collect()
    assert facts.python == sys.version_info[:3]
    assert facts.libraries["torch"] == torch.__version__.split("+")[0] or facts.libraries["torch"] == torch.__version__
    assert (facts.threads, facts.cuda_build, facts.cores) == (
        torch.get_num_threads(),
        torch.version.cuda,
        psutil.cpu_count(False),
    )
    assert (facts.profile, facts.cuda_visible_devices, facts.broken) == ("full", "", {})
    assert facts.data_error == "" and Path(facts.cache_folder).is_dir() and facts.cache_error == ""
    assert json.loads(json.dumps(facts.to_dict()))["threads"] == facts.threads


def test_what_is_wrong_becomes_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "fast")
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    monkeypatch.setitem(probe.LIBRARIES, "not-a-distribution", "not_a_module")
    facts = Probe.collect()
    assert facts.libraries["not-a-distribution"] is None and "not-a-distribution" not in facts.broken
    assert "'fast'" in facts.profile_error and "is missing" in facts.data_error


def test_a_cache_that_cannot_be_made_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "file" / "below"))
    facts = Probe.collect()
    assert facts.cache_error and str(tmp_path) in facts.cache_folder
    assert "into the cache" in facts.data_error


def test_a_library_that_cannot_be_imported_is_a_fact(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    text = "raise RuntimeError('operator torchvision::nms\\n does not exist')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(text)
    code = "from cookbook.probe import _import_error; print(_import_error('torchvision'), _import_error('json'))"
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(probe.__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "operator torchvision::nms does not exist \n", done.stderr


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_a_containers_quota_is_read_from_its_files(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit
