"""Running the command line inside the test's process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from cookbook.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `cookbook` with its arguments: exit status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cookbook", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as leaving:
            assert isinstance(leaving.code, int)
            status = leaving.code
        output = capsys.readouterr()
        return status, output.out, output.err

    return call
