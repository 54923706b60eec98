"""`cookbook doctor`: the page, the JSON, the exit status."""

from __future__ import annotations

import getpass
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cookbook import __version__
from cookbook.doctor.cases import CPU, GPU, LOST, with_settings
from cookbook.probe import Probe

Run = Callable[..., tuple[int, str, str]]
doctor = importlib.import_module("cookbook.cli.doctor")


def pretend(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    monkeypatch.setattr(Probe, "collect", classmethod(lambda cls: probe))


def test_a_page_without_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Probe(cache_folder="cache[red]"))
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert "No problems found." in out and "cache[red]" in out and "→ Run 'export OMP_WAIT_POLICY=passive'" in out
    assert out.splitlines()[0] == "This machine trains on its CPU: no GPU was found."


def test_a_gpu_that_works_is_the_first_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GPU)
    assert run("doctor")[1].splitlines()[0] == "This machine trains on: NVIDIA H100 80GB HBM3."


def test_a_problem_is_the_exit_status_and_comes_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, with_settings(replace(LOST, threads=99, load=9.0), CUDA_VISIBLE_DEVICES="-1"))
    status, out, _ = run("doctor")
    assert status == 1 and "2 problems found." in out and "OMP_NUM_THREADS=4" in out
    headline, _, *rows = out.splitlines()
    assert headline.rstrip() == "There is a GPU, but torch cannot use it: CUDA_VISIBLE_DEVICES='-1' hides every"
    levels = [row.split()[0] for row in rows if row.startswith(("ok ", "note ", "problem "))]
    assert levels[:3] == ["problem", "problem", "note"] and set(levels[3:]) == {"ok"}
    assert max(map(len, out.splitlines())) <= 80
    assert "1 problem found." in run_with(run, monkeypatch, replace(CPU, threads=99))


def run_with(run: Run, monkeypatch: pytest.MonkeyPatch, probe: Probe) -> str:
    pretend(monkeypatch, probe)
    return run("doctor")[1]


def test_json_holds_summary_findings_and_facts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, replace(CPU, threads=99))
    status, out, _ = run("doctor", "--json")
    content = json.loads(out)
    assert status == 1 and content["facts"]["threads"] == 99 and content["cookbook"] == __version__
    assert content["summary"] == "This machine trains on its CPU: no GPU was found."
    assert [finding["subject"] for finding in content["findings"] if finding["level"] == "problem"] == ["threads"]
    assert set(content["findings"][0]) == {"level", "subject", "message", "remedy"}


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["page", "json"])
def test_nobodys_home_folder_or_name_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    home, user = Path.home(), getpass.getuser()
    torch = f"cannot open {home}/torch/lib.so, nor /scratch/{user}/lib.so"
    private = replace(CPU, cache_folder=str(home / "c"), data_error=f"{home}/x.gz is damaged.", broken={"torch": torch})
    pretend(monkeypatch, private)
    _, out, _ = run("doctor", *arguments)
    text = " ".join(out.split())
    assert str(home) not in text and f"/{user}/" not in text
    assert "~/c" in text and "~/x.gz" in text and "/scratch/USER/lib.so" in text


def test_a_terminal_is_told_that_it_waits(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(doctor, "progress_wanted", lambda console: True)
    pretend(monkeypatch, CPU)
    status, out, err = run("doctor")
    assert status == 0 and "Looking" not in out
    assert "Looking at this machine" in err or err.strip() == ""
