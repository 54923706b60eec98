"""Where the time of a training step goes: data, forward, backward, optimizer (lesson 01)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cookbook.data import Batch, Loader, LoaderWrapper
from cookbook.errors import UsageError
from cookbook.evidence import Table
from cookbook.measure.latency import synchronizer
from cookbook.throughput.rehearsal import preserved_randomness
from cookbook.training import CrossEntropy, Objective, Recipe, fit

PHASES = ("data", "forward", "backward", "optimizer")
TOLERANCE = 1e-9  # relative: the parts of a step are differences of the same clock readings that bound the step


@dataclass(frozen=True, repr=False)
class Breakdown:
    """Seconds of every timed step, in total and by phase; printed, it is a table.

    Attributes:
        whole: seconds of each step, from one request for data to the next.
        phases: by phase, seconds within each step. ``data``: waiting for the loader; ``forward``: moving to the
            recipe's memory format, model and loss; ``backward``: gradients, with scaling and clipping; ``optimizer``:
            the update and everything up to the next request.
        device: where the model computed.

    Raises:
        UsageError: the phases of a step do not add up to it.
    """

    whole: tuple[float, ...]
    phases: dict[str, tuple[float, ...]]
    device: str

    def __post_init__(self) -> None:
        for step, seconds in enumerate(self.whole):
            total = math.fsum(samples[step] for samples in self.phases.values())
            if not math.isclose(total, seconds, rel_tol=TOLERANCE, abs_tol=1e-9):
                raise UsageError(f"The phases of step {step} take {total} s, the step {seconds} s: time them by one clock.")

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return fmean(self.whole)

    def mean(self, phase: str) -> float:
        """Return the mean seconds of a phase in a step; means add up where medians do not."""
        return fmean(self.phases[phase])

    def share(self, phase: str) -> float:
        """Return the phase's share of the time of all steps, 0 to 1."""
        return math.fsum(self.phases[phase]) / math.fsum(self.whole)

    def table(self) -> Table:
        """Return one row a phase, and the whole."""
        rows = [(name, f"{1e3 * self.mean(name):.3g}", f"{self.share(name):.1%}") for name in self.phases]
        rows.append(("whole step", f"{1e3 * self.seconds:.3g}", "100.0%"))
        return Table(("phase", "mean, ms", "share"), rows, f"{len(self.whole)} steps on {self.device}.", "A training step")

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for JupyterLab."""
        return self.table()._repr_html_()


def step_breakdown(
    model: nn.Module,
    loader: Loader,
    recipe: Recipe,
    *,
    steps: int = 20,
    warmup: int = 3,
    device: torch.device | str | None = None,
    objective: Objective | None = None,
) -> Breakdown:
    """Train a copy of `model` by `fit` and split the time of its steps into data, forward, backward and optimizer.

    An accelerator is waited for between the phases, so that each pays for its own work. That takes away what
    they would overlap: the whole can be longer than an undisturbed step. Random numbers and the model are
    left as they were. The recipe's rate is kept.

    Args:
        model: on the device where it shall train.
        loader: its role must be ``train``; it begins a new epoch where one ends.
        recipe: of the training; its epochs do not matter.
        steps: optimizer steps that are timed.
        warmup: optimizer steps before them, at least 1: the first makes the optimizer's state.
        device: to wait for; None: that of the model.
        objective: as in `fit`.

    Raises:
        UsageError: a count is below 1, or whatever `fit` refuses.
        NonFiniteLossError: the rate is too high.
    """
    if steps < 1 or warmup < 1:
        raise UsageError(f"{steps} steps after a warm-up of {warmup} cannot be timed: use 1 or more of both.")
    place = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    clock = _PhaseClock(place)
    inner = objective or CrossEntropy(recipe.label_smoothing)

    def timed_objective(forward: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = inner(forward, images, labels)
        clock.begin("backward")
        return loss

    # one step more than is timed: the request for its data ends the last one
    watched = _WatchedLoader(loader, clock, (warmup + steps + 1) * recipe.accumulate, recipe.accumulate)
    hook = register_optimizer_step_pre_hook(lambda *_: clock.begin("optimizer"))
    try:
        with preserved_randomness():
            fit(copy.deepcopy(model), watched, replace(recipe, epochs=1), objective=timed_objective, progress=False)
    finally:
        hook.remove()
    timed = clock.steps[warmup : warmup + steps]
    return Breakdown(
        whole=tuple(whole for whole, _ in timed),
        phases={name: tuple(parts[name] for _, parts in timed) for name in PHASES},
        device=place.type,
    )


class _PhaseClock:
    """Gives every moment to exactly one phase of one step."""

    def __init__(self, device: torch.device) -> None:
        self.wait = synchronizer(device)
        self.steps: list[tuple[float, dict[str, float]]] = []
        self._phase, self._since, self._started = "", 0.0, 0.0
        self._parts = dict.fromkeys(PHASES, 0.0)

    def begin(self, phase: str, *, new_step: bool = False) -> None:
        """End the phase that runs, and begin another one."""
        self.wait()
        now = time.perf_counter()
        if self._phase:
            self._parts[self._phase] += now - self._since
        if new_step:
            if self._phase:
                self.steps.append((now - self._started, self._parts))
            self._parts, self._started = dict.fromkeys(PHASES, 0.0), now
        self._phase, self._since = phase, now


class _WatchedLoader(LoaderWrapper):
    """Hands a loader's batches on, epoch after epoch, and tells the clock when it is asked for one."""

    def __init__(self, loader: Loader, clock: _PhaseClock, length: int, batches_per_step: int) -> None:
        super().__init__(loader)
        self.clock, self.length, self.batches_per_step = clock, length, batches_per_step

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        source = self._endless(epoch)
        for number in range(first, self.length):
            self.clock.begin("data", new_step=number % self.batches_per_step == 0)
            batch = next(source)
            self.clock.begin("forward")
            yield batch

    def _endless(self, epoch: int) -> Iterator[Batch]:
        while True:
            yield from self.loader.batches(epoch)
            epoch += 1
