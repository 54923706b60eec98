"""Which line of the user's program is behind a call deep inside a library (lesson 01)."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

COOKBOOK = Path(__file__).resolve().parents[1]
DETECTOR = Path(__file__).resolve().parent
LIBRARIES = (
    str(Path(torch.__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
GENERATED = ("<frozen ", "<eval_with_key>", "<__array_function__")


@dataclass(frozen=True)
class Place:
    """A line of source.

    Attributes:
        file: as Python names it.
        line: from 1.
        code: its text, without indentation.
        inside: file and function of the cookbook that the line called; empty where it called a library at once.
    """

    file: str
    line: int
    code: str
    inside: str = ""

    @property
    def label(self) -> str:
        """The file's name, short; the cells of a notebook have no name that means anything to a reader."""
        path = Path(self.file)
        return "cell" if path.parent.name.startswith("ipykernel_") else path.name


def place_of_call() -> Place:
    """Return the innermost line outside of torch, the cookbook, the standard library and installed packages.

    Where there is none, as in a command of the cookbook, it is the innermost line of the cookbook.
    """
    inside: FrameType | None = None
    for frame in _callers():
        file = frame.f_code.co_filename
        if file.startswith(str(DETECTOR)) or file.startswith(GENERATED):
            continue
        if file.startswith(str(COOKBOOK)):
            inside = inside or frame
        elif not file.startswith(LIBRARIES):
            return _place(frame, inside)
    return _place(inside or sys._getframe())


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType, inside: FrameType | None = None) -> Place:
    file, line = frame.f_code.co_filename, frame.f_lineno
    within = ""
    if inside is not None:
        within = f"{Path(inside.f_code.co_filename).relative_to(COOKBOOK).as_posix()}, {inside.f_code.co_name}"
    return Place(file, line, linecache.getline(file, line).strip(), within)
