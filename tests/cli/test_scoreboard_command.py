"""`cookbook scoreboard`: where the rows come from, the table and the figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cookbook.evidence import Ledger, Measurement
from cookbook.measure import Timing

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a ledger of one row."""
    path = tmp_path / "ledger.jsonl"
    timing = Timing((0.001, 0.0011, 0.0012), threads=1, batch=1)
    row = Measurement(
        subject="the row",
        lesson="00",
        runtime="torch eager",
        split="test",
        correct=9,
        images=10,
        bytes=1000,
        latency={1: timing},
    )
    Ledger(path).append(row)
    return path


def test_the_ledger_comes_from_option_environment_or_data(run: Run, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = run("scoreboard", "--ledger", ledger)
    assert (status, err) == (0, "") and "the row" in out
    monkeypatch.setenv("COOKBOOK_LEDGER", str(ledger))
    assert run("scoreboard")[:2] == (0, out)
    (ledger.parent / "results").mkdir()
    ledger.rename(ledger.parent / "results" / "ledger.jsonl")
    monkeypatch.setenv("COOKBOOK_DATA", str(ledger.parent))
    assert run("scoreboard", "--recorded")[:2] == (0, out)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_figure_is_written(run: Run, ledger: Path, suffix: str) -> None:
    figure = ledger.with_name(f"board{suffix}")
    status, out, _ = run("scoreboard", "--ledger", ledger, "--figure", figure)
    assert status == 0 and f"{figure} written." in out
    assert figure.read_bytes()[:5] in {".png": [b"\x89PNG\r"], ".svg": [b"<?xml"], ".pdf": [b"%PDF-"]}[suffix]
    assert sorted(path.name for path in ledger.parent.iterdir()) == sorted([figure.name, ledger.name])


def test_wrong_use_is_one_line(run: Run, ledger: Path) -> None:
    for arguments, word in [
        (["--ledger", ledger, "--recorded"], "two sources"),
        (["--ledger", ledger.parent], "not a file"),
        (["--ledger", ledger.with_name("none.jsonl")], "none.jsonl"),
        (["--ledger", ledger, "--figure", "board.bmp"], ".png, .svg, .pdf"),
    ]:
        status, out, err = run("scoreboard", *arguments)
        assert (status, out) == (2, "") and word in err and err.count("\n") == 1


def test_an_empty_ledger_says_what_to_do(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_LEDGER", str(tmp_path / "none.jsonl"))
    status, _, err = run("scoreboard")
    assert status == 1 and "holds no measurement: run 'cookbook course'" in err and err.count("\n") == 1
