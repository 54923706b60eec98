"""`cookbook doctor`: the page, the JSON, the exit status."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

import pytest

from cookbook.doctor import Probe

Run = Callable[..., tuple[int, str, str]]
doctor = importlib.import_module("cookbook.cli.doctor")


def pretend(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    monkeypatch.setattr(Probe, "collect", classmethod(lambda cls: probe))


def test_a_page_without_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Probe(cache_folder="cache[red]", omp_wait_policy=None))
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert "No problems found." in out and "cache[red]" in out and "→ Set OMP_WAIT_POLICY=passive" in out
    assert out.splitlines()[0].split()[:2] == ["ok", "Python"]


def test_a_problem_is_the_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Probe(threads=99))
    status, out, _ = run("doctor")
    assert status == 1 and "1 problem found." in out and "OMP_NUM_THREADS=4" in out


def test_json_holds_findings_and_facts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Probe(threads=99))
    status, out, _ = run("doctor", "--json")
    content = json.loads(out)
    assert status == 1 and content["facts"]["threads"] == 99
    assert [finding["subject"] for finding in content["findings"] if finding["level"] == "problem"] == ["threads"]
