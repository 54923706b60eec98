"""The peers' benchmark: absent packages are named, present ones must train as the bare loop does."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from cookbook.bench import peers
from cookbook.bench.loops import Loop, bare_loop
from cookbook.errors import UsageError
from cookbook.evidence import Ledger


def absent() -> Loop:
    raise ImportError("No module named 'peer'")


def present() -> Loop:
    return bare_loop


def test_an_absent_peer_is_a_sentence_and_a_present_one_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {"Gone": ("gone-package", absent), "Here": ("here-package", present)})
    said: list[str] = []
    rows = list(peers.run_peers(rounds=3, steps=5, say=said.append))
    assert [row.name for row in rows] == ["fit, cost of a step", "Here, cost of a step"]
    assert said == ["Gone is absent (No module named 'peer'): run 'pip install gone-package'."]
    with pytest.raises(UsageError, match="2 rounds of 5 steps"):
        list(peers.run_peers(rounds=2, steps=5))


def test_the_installed_peers_end_with_the_bare_loops_weights() -> None:
    said: list[str] = []
    rows = list(peers.run_peers(rounds=3, steps=5, say=said.append))  # which raises where weights differ
    assert len(rows) + len(said) == 1 + len(peers.PEERS)


def test_the_command_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COOKBOOK_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(peers, "PEERS", {})
    monkeypatch.setattr(peers, "run_peers", functools.partial(peers.run_peers, steps=5))
    peers.main(["--only", "loops", "--rounds", "3"])
    assert [row.name for row in Ledger.local().bench()] == ["fit, cost of a step"]
    assert "µs" in capsys.readouterr().out
