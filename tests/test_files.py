"""Writes are whole or absent, and folders follow their settings."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cookbook.errors import UsageError
from cookbook.files import atomic_path, cache_directory, data_directory


def test_a_failed_block_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="planted"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError("planted")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    script = (
        "import os, signal, sys\nfrom cookbook.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'new' * 1000)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, target], timeout=60, check=False)
    assert done.returncode != 0
    assert target.read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX notion")
def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.bin") as temporary:
        temporary.write_bytes(b"x")
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "model.bin").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_folders_follow_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    assert data_directory() == tmp_path
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="set COOKBOOK_DATA"):
        data_directory()
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "made" / "cache"))
    assert cache_directory().is_dir()
    monkeypatch.delenv("COOKBOOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "optimization-cookbook"
