"""What the doctor says: one finding a fact that matters, and the phrases that many of them share (lesson 01)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One sentence on one subject, with what to do about it.

    Attributes:
        level: ``ok``; ``note``, worth knowing; ``problem``, in the way of a correct or fast run.
        subject: one word or two.
        message: what was found.
        remedy: what to do, as a command where there is one; empty where nothing is needed.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""


def fine(subject: str, message: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding("ok", subject, message)


def note(subject: str, message: str, remedy: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding("note", subject, message, remedy)


def problem(subject: str, message: str, remedy: str = "") -> Finding:
    """Return a finding that is in the way of a correct or fast run."""
    return Finding("problem", subject, message, remedy)


def reinstall(backend: str = "auto") -> str:
    """Return the command that puts another build of torch in place, with the torchvision that belongs to it.

    Args:
        backend: such as ``cu126`` or ``cpu``; ``auto`` lets uv look at the driver
            (https://docs.astral.sh/uv/guides/integration/pytorch).
    """
    return f"'uv pip install --reinstall torch torchvision --torch-backend={backend}'"


def counted(names: Sequence[str]) -> str:
    """Return names as a list in which equal ones are counted: ``8 × NVIDIA H100``."""
    return ", ".join(
        f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )  # fmt: skip
