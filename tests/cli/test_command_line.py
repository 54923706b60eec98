"""What holds for every command: help, exit status, one line for a mistake."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cookbook import __version__, cli
from cookbook.errors import CookbookError, UsageError

Run = Callable[..., tuple[int, str, str]]
PROGRAM = "from cookbook.cli import main; main()"


def one_line(err: str) -> str:
    """Return the one line of an error message."""
    assert err.startswith("cookbook: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.strip()


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"cookbook {__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0 and all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_teaches_with_an_example(run: Run, name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0 and f"Example: cookbook {name}" in out
    module = importlib.import_module(f"cookbook.cli.{name}")
    assert getattr(module, name).__doc__


def test_the_command_alone_shows_the_help_as_wrong_use(run: Run) -> None:
    status, out, err = run()
    assert (status, err) == (2, "") and "course" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curse"], ["curse", "cookbook --help"]),
        (["--nope"], ["--nope", "cookbook --help"]),
        (["course", "--nope"], ["--nope", "cookbook course --help"]),
        (["course", "--profile", "fast"], ["--profile", "quick"]),
        (["course", "surplus"], ["surplus"]),
        (["train"], ["--out", "cookbook train --help"]),
        (["train", "--out", "x.bin"], ["x.bin", ".safetensors"]),
        (["train", "--out", "x.safetensors", "--epochs", "many"], ["--epochs", "integer", "cookbook train --help"]),
        (["train", "--out", "x.safetensors", "--resolutions", "0-20"], ["--resolutions", "0:20"]),
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_line_and_exit_status_2(run: Run, arguments: list[str], words: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert all(word in one_line(err) for word in words), err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (CookbookError("It failed: do this."), 1, "cookbook: It failed: do this."),
        (UsageError("It is wrong: do that."), 2, "cookbook: It is wrong: do that."),
        (KeyboardInterrupt("Stopped in epoch 2."), 130, "cookbook: Stopped in epoch 2."),
        (KeyboardInterrupt(), 130, "cookbook: Interrupted."),
        (PermissionError(13, "Permission denied", "x.png"), 1, "cookbook: x.png cannot be read or written: Permission denied."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("cookbook.cli.doctor"), "doctor", fail)
    assert run("doctor") == (status, "", message + "\n")


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("cookbook.cli.doctor"), "doctor", fail)
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_a_broken_library_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    status, _, err = run("train", "--out", "x")
    assert status == 1 and "torchvision::nms does not exist" in one_line(err) and "cookbook doctor" in err


def test_help_needs_no_torch_and_a_closed_pipe_is_no_traceback() -> None:
    code = f"import sys\ntry:\n    {PROGRAM}\nfinally:\n    assert not {{'torch', 'nbclient'}} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    environment["PYTHONUNBUFFERED"] = ""  # what is buffered meets the closed pipe only at the last flush
    closed = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--version"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=environment,
    )
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (1, "")
