"""Quotas, shared memory and settings, read from files and variables of another machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from cookbook.probe import limits
from cookbook.probe.limits import cpu_limit, settings, shared_memory


@pytest.mark.parametrize(
    ("files", "membership", "limit"),
    [
        ({}, "", None),
        ({"cpu.max": "max 100000\n"}, "", None),
        ({"cpu.max": "150000 100000\n"}, "", 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "", None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "", 4.0),
        ({"a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3.0),
        ({"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 2.0),
        ({"other/cpu.max": "50000 100000\n"}, "0::/a/b\n", None),
        ({"cpu/docker/1/cpu.cfs_quota_us": "250000\n", "cpu/docker/1/cpu.cfs_period_us": "100000\n"},
         "5:cpu,cpuacct:/docker/1\n4:memory:/docker/2\n", 2.5),
        ({"cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n"},
         "12:cpuset:/\n5:cpu,cpuacct:/job\n0::/job\n", 2.0),
        ({"cpu/else/cpu.cfs_quota_us": "100000\n", "cpu/else/cpu.cfs_period_us": "50000\n"}, "4:memory:/else\n", None),
    ],
)  # fmt: skip
def test_the_smallest_quota_above_this_process_counts(
    tmp_path: Path, files: dict[str, str], membership: str, limit: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert cpu_limit(tmp_path, tmp_path / "membership") == limit


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path, tmp_path / "absent") is None


def test_shared_memory_is_what_its_folder_has_left(tmp_path: Path) -> None:
    free = shared_memory(tmp_path)
    assert free is not None and abs(free - shutil.disk_usage(tmp_path).free) < 2**30
    assert shared_memory(tmp_path / "absent") is None


def test_settings_are_those_that_are_set_also_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in limits.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert settings() == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("SECRET_OF_SOMEONE", "1")
    assert settings() == {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}


def test_processors_load_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= limits.processors() <= (os.cpu_count() or 1)
    assert limits.cores() == psutil.cpu_count(logical=False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert limits.cores() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 1.0, 0.5), raising=False)
    assert limits.load() == 2.5
    monkeypatch.delattr(os, "getloadavg")
    assert limits.load() is None
