"""Training state on disk: complete enough that a resumed run ends with the very same weights (lesson 00)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cookbook.errors import CheckpointError
from cookbook.files import atomic_path

FORMAT = "cookbook-training-1"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state atomically. Only tensors and plain Python values are allowed in it."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """Read the state of an earlier, interrupted or finished run of the same training.

    Args:
        identity: what must be equal to go on: model, recipe and data as plain values.

    Returns:
        The state, or None when there is no file.

    Raises:
        CheckpointError: the file is damaged, or belongs to another training.
    """
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        leftover.unlink(missing_ok=True)  # a killed run's unfinished write
    if not path.exists():
        return None
    advice = "delete it to start afresh, or name another checkpoint"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged archive
        raise CheckpointError(f"{path} is not a readable training state ({type(error).__name__}): {advice}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of this version of the cookbook: {advice}.")
    differing = [key for key, value in identity.items() if state["identity"].get(key) != value]
    if differing:
        raise CheckpointError(f"{path} belongs to a training with another {' and '.join(differing)}: {advice}.")
    return state


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators: this process's CPU and current GPU."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class InterruptRequest:
    """Says whether SIGINT or SIGTERM arrived, so that the loop can stop between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of the first signal; the next one acts as usual."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def stop(self, message: str) -> None:
        """Leave as Python does after this signal: KeyboardInterrupt, or exit status 128 + the signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def deferred_interrupts(enabled: bool) -> Iterator[InterruptRequest]:
    """Turn SIGINT and SIGTERM into a request inside the block; restore the handlers afterwards.

    Handlers can only be set in the main thread; elsewhere, and when not `enabled`, nothing changes.
    """
    request = InterruptRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def checkpoint_path(path: str | os.PathLike[str] | None) -> Path | None:
    """Return `path` as an absolute Path, refusing a folder.

    Raises:
        CheckpointError: `path` is a folder.
    """
    if path is None:
        return None
    absolute = Path(path).expanduser().absolute()
    if absolute.is_dir():
        raise CheckpointError(f"{path} is a folder: name a file for the training state.")
    return absolute
