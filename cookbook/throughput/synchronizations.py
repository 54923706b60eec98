"""Where a loop makes the program wait for the device: counted, with file and line (lesson 01).

An accelerator works behind the program's back until the program asks for a value. On CUDA torch's
own debug mode reports each such wait. Elsewhere two modes of torch look at every call: one sees what the program
asks of a tensor (``item``, ``cpu``, ``print``, a boolean test), the other what operations do inside.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cookbook.environment import pick_device
from cookbook.evidence import Table
from cookbook.throughput.frames import Place, place_of_call
from cookbook.throughput.pretend_accelerator import PretendAccelerator

CUDA_WARNING = "called a synchronizing CUDA operation"
PROTOTYPE_WARNING = "Synchronization debug mode is a prototype"


@dataclass(frozen=True)
class Synchronization:
    """One place that waits for the device.

    Attributes:
        file: of the line that caused it: the innermost one outside of torch, the cookbook and other libraries.
        line: its number, from 1.
        code: its text.
        operation: what was asked, such as ``item()``; on CUDA only that something waited.
        count: how often.
        inside: the function of the cookbook that asked, such as ``training/fit.py, check_losses``; empty
            where the line itself did.
    """

    file: str
    line: int
    code: str
    operation: str
    count: int
    inside: str = ""


class SynchronizationReport:
    """What was found; it grows inside the block of `watch_synchronizations`, and printed it is a table."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[Place, str]] = Counter()

    def note(self, operation: str) -> None:
        """Count a synchronization that is being caused by the present call."""
        self._seen[place_of_call(), operation] += 1

    @property
    def places(self) -> tuple[Synchronization, ...]:
        """Every place and operation, in the order in which they were first seen."""
        return tuple(
            Synchronization(place.file, place.line, place.code, operation, count, place.inside)
            for (place, operation), count in self._seen.items()
        )

    @property
    def count(self) -> int:
        """Number of synchronizations."""
        return self._seen.total()

    def table(self) -> Table:
        """Return one row for each place and operation."""
        rows = [
            (f"{place.label}:{place.line}", place.code, operation, str(count), place.inside)
            for (place, operation), count in self._seen.items()
        ]
        return Table(("where", "line", "what waits", "times", "inside"), rows, title=f"{self.count} synchronizations")

    def __str__(self) -> str:
        return str(self.table()) if self._seen else "No synchronization was found."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for JupyterLab."""
        return self.table()._repr_html_()


def count_synchronizations(
    function: Callable[[], object],
    *,
    on_device: Iterable[Tensor | nn.Module] = (),
    device: torch.device | str | None = None,
) -> SynchronizationReport:
    """Call `function` once and return where it waited for the device; see `watch_synchronizations`.

    Raises:
        Exception: whatever `function` raises.
    """
    with watch_synchronizations(on_device=on_device, device=device) as report:
        function()
    return report


@contextlib.contextmanager
def watch_synchronizations(
    *, on_device: Iterable[Tensor | nn.Module] = (), device: torch.device | str | None = None
) -> Iterator[SynchronizationReport]:
    """Count and locate, inside the block, what would make an accelerator's program wait.

    On CUDA this is torch's debug mode (`torch.cuda.set_sync_debug_mode`), which misses copies to pageable
    memory that were asked not to block, and ``torch.distributed``. It also reports blocking copies to the device.

    On a CPU nothing ever waits, so the device is pretended: parameters, tensors that require a gradient, those in
    `on_device`, those that a ``.to(device)`` with a `torch.device` returned, all that is computed from them, and
    the tensors of one or more dimensions that are computed together with them. Only reading these counts. The
    counters that optimizers keep on the host, and index lists, do not. A batch that was neither moved nor used
    with a parameter yet is not known to be on the device: name it in `on_device`. ``.cpu()`` returns a
    copy there, as it does on an accelerator. Code compiled by `torch.compile` is not looked into.

    Args:
        on_device: further tensors, or modules with their parameters and buffers, to pretend on the device.
        device: where the code computes; None: this machine's accelerator, else the CPU.
    """
    chosen = pick_device(None if device is None else str(device))
    report = SynchronizationReport()
    if chosen.type == "cuda":
        with _cuda_debug_mode(report):
            yield report
        return
    with PretendAccelerator(chosen.type, on_device, report.note):
        yield report


@contextlib.contextmanager
def _cuda_debug_mode(report: SynchronizationReport) -> Iterator[None]:
    """Let CUDA warn of each synchronization, count these warnings, and pass on all others."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def count_or_show(message: Any, *where: Any, **more: Any) -> None:
            text = str(message)
            if CUDA_WARNING in text:
                report.note("waits for CUDA")
            elif PROTOTYPE_WARNING not in text:  # what it says stands in the documentation of the caller
                show(message, *where, **more)

        warnings.showwarning = count_or_show
        warnings.filterwarnings("always", message=CUDA_WARNING)
        warnings.filterwarnings("always", message=PROTOTYPE_WARNING)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
