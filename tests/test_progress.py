"""Bars appear where someone watches, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cookbook.progress import progress_bar, progress_wanted


@pytest.fixture(autouse=True)
def nobody_has_said_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("COOKBOOK_PROGRESS", raising=False)


def test_a_terminal_wants_a_bar_and_a_pipe_does_not() -> None:
    assert progress_wanted(Console(file=io.StringIO(), force_terminal=True))
    assert not progress_wanted(Console(file=io.StringIO(), force_terminal=False))


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("COOKBOOK_PROGRESS", "off")])
def test_ci_and_the_setting_silence_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not progress_wanted(Console(file=io.StringIO(), force_terminal=True))


def test_a_silent_bar_prints_nothing_and_a_shown_one_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress_bar("training", 3, show=False) as advance:
        advance("epoch 1")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    with progress_bar("training", 3, done=1, show=True) as advance:
        advance("epoch 1")
    assert "2/3" in capsys.readouterr().err
