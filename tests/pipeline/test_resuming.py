"""Killed at any moment, the same call ends with the same file."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_case import RECIPE, Scale, shrink

from cookbook.pipeline import Budget, Compressed, Distill, Prune, Quantize
from cookbook.pruning import MACs

STAGES = (Prune(MACs(0.5), multiples=(4,)), Distill(), Quantize("ptq"))
LOOSE = Budget(latency=100.0, accuracy_drop=100.0)
HERE = Path(__file__).parent
PROGRAM = """
import os, signal, sys
from pathlib import Path
import stand_ins
import torch
from cookbook.training import run
from test_resuming import LONG
from tiny_case import shrink

torch.set_num_threads(1)
stand_ins.install(setattr)
save, saved = run.save_state, []

def save_and_die(path, state):
    save(path, state)
    saved.append(path)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run.save_state = save_and_die
shrink(Path(sys.argv[1]), **LONG)
"""
LONG: dict[str, Any] = {"stages": (Distill(replace(RECIPE, epochs=5)),), "budget": LOOSE}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library catches it."""


def digests(found: Compressed) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (found.path, *(stage.path for stage in found.stages))]


@pytest.fixture
def undisturbed(fast: None, tmp_path: Path) -> list[str]:
    return digests(shrink(tmp_path / "undisturbed", stages=STAGES, budget=LOOSE))


@pytest.mark.parametrize("when", ["before", "after"])
def test_dying_at_every_write_changes_nothing(
    tmp_path: Path, undisturbed: list[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The first session dies at its first write, the second at its second, and so on until one comes through."""
    rename, writes, sessions = Path.replace, [0], 0

    def replace_file(self: Path, target: Path) -> Path:
        writes[0] += 1
        if writes[0] == sessions and when == "before":
            raise Killed
        renamed = rename(self, target)
        if writes[0] == sessions:
            raise Killed
        return renamed

    monkeypatch.setattr(Path, "replace", replace_file)
    found = None
    while found is None:
        writes[0], sessions = 0, sessions + 1
        assert sessions < 60
        try:
            found = shrink(tmp_path / "killed", stages=STAGES, budget=LOOSE)
        except Killed:
            continue
    assert sessions > 5 and digests(found) == undisturbed


def test_a_finished_stage_is_not_run_again(fast: None, tmp_path: Path) -> None:
    def stop(work: object) -> None:
        raise Killed

    first, second = Scale(0.5), Scale(2.0, "again", fail=stop)
    with pytest.raises(Killed):
        shrink(tmp_path, stages=(first, second), budget=LOOSE)
    repaired = Scale(2.0, "again")
    once = shrink(tmp_path, stages=(first, repaired), budget=LOOSE)
    assert (first.ran, second.ran, repaired.ran) == (["scale"], ["again"], ["again"])
    twice = shrink(tmp_path, stages=(first, repaired), budget=LOOSE)
    assert (twice.measurement, twice.test) == (once.measurement, once.test) and first.ran == ["scale"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_sigkill_inside_a_training(fast: None, tmp_path: Path) -> None:
    expected = digests(shrink(tmp_path / "undisturbed", **LONG))
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    state = tmp_path / "killed" / "1-distill" / "training.state"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert state.exists() and not (state.parent / "stage.json").exists()
    assert digests(shrink(tmp_path / "killed", **LONG)) == expected
