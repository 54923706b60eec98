"""Each change of the speed stack measured alone and on top of the others (lesson 02)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from cookbook.data import Loader
from cookbook.data.loaders import Batch
from cookbook.environment import provenance
from cookbook.errors import UsageError
from cookbook.evidence import Measurement, Table
from cookbook.evidence.tables import MISSING, quantity
from cookbook.measure import Ratio, Timing, interleave, peak_memory, pinned_threads, speedup
from cookbook.speed.changes import SpeedChange, TrainingSetup
from cookbook.training import checkpoint_activations
from cookbook.training.run import Run

WARM_UP_STEPS = 3  # cuDNN chooses, the compiler compiles and CUDA graphs are captured in the first ones


@dataclass(frozen=True)
class SpeedStack:
    """What `measure_stack` found; shows itself as a table.

    Attributes:
        measurements: the unchanged training first, then each change alone (``… alone``), then the growing
            stack (``+ …``). `Measurement.values` hold ``images_per_second``, ``images_per_step``, and the
            ``speedup`` over the unchanged training with ``speedup_low`` and ``speedup_high``.
        missing: by change, why it was not measured.
        changes: the names of all changes, in their order.
    """

    measurements: tuple[Measurement, ...]
    missing: Mapping[str, str]
    changes: tuple[str, ...]

    def table(self) -> Table:
        """Return one row a change: alone and stacked, speed and peak memory as ratios to the unchanged training."""
        found = {row.subject: row for row in self.measurements}
        base = self.measurements[0]
        rows = [("unchanged", f"{1e3 * (base.step_seconds or 0):.3g} ms", quantity(base.peak_memory, "B"), MISSING, MISSING)]
        for name in self.changes:
            if name in self.missing:
                rows.append((f"{name}: {self.missing[name]}", *4 * (MISSING,)))
                continue
            alone, stacked = found[f"{name} alone"], found.get(f"+ {name}")
            rows.append((name, *_ratios(base, alone), *((MISSING, MISSING) if stacked is None else _ratios(base, stacked))))
        origin = base.provenance
        machine = f"{origin.processor} with {', '.join(origin.instruction_sets) or 'no known instruction sets'}"
        where = machine if origin.device.startswith("cpu") else origin.device
        quick = " Quick profile: not evidence." if origin.profile == "quick" else ""
        return Table(
            ("change", "alone: speed", "alone: peak memory", "stacked: speed", "stacked: peak memory"), rows,
            f"Speed for equal numbers of images, memory as a share; threads: {origin.threads}. Measured on {where}.{quick}",
            "Speed stack",
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def measure_stack(
    changes: Sequence[SpeedChange],
    start: TrainingSetup,
    model_factory: Callable[[], nn.Module],
    *,
    lesson: str = "02",
    rounds: int = 30,
    threads: int = 1,
) -> SpeedStack:
    """Time training steps with each change alone and with all changes up to it, in turns with the unchanged training.

    All sides process the same number of images in one sample, through `fit`'s own step, with the loading
    of data inside the clock. Peak memory is what the model and its optimizer hold between steps and what one
    step adds at its peak. A change that the device or the model cannot take is left out, with the
    reason. Nothing here looks at accuracy: a faster step that learns less is no gain. torch.compile makes a
    program for any size once it meets a second batch size: stack a larger batch before it, not after it.

    Args:
        changes: with different names, in the order in which they are stacked.
        start: the unchanged training.
        model_factory: makes the model, on the CPU.
        lesson: two digits.
        rounds: samples of each side.
        threads: torch's threads.

    Raises:
        UsageError: two changes have one name, or the unchanged training cannot run.
        DataError: the split holds fewer images than a batch.
    """
    names = [change.name for change in changes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} changes are called {name!r}: give each a name of its own.")
    with pinned_threads(threads):
        origin = provenance(start.device)
        sides = {"unchanged": _Side(start, model_factory)}
        missing: dict[str, str] = {}
        for change in changes:
            reason = change.missing(start.device)
            try:
                if reason is None:
                    sides[f"{change.name} alone"] = _Side(change.apply(start), model_factory)
            except UsageError as error:
                reason = str(error).rstrip(".")
            if reason is not None:
                missing[change.name] = reason
        setup = start
        for change in changes:
            if change.stacks and change.name not in missing:
                setup = change.apply(setup)
                sides[f"+ {change.name}"] = _Side(setup, model_factory)
        images = math.lcm(*(side.setup.images_per_step for side in sides.values()))
        runs = {name: side.through(images) for name, side in sides.items()}
        timings = interleave(runs, batch=images, rounds=rounds, warmup=1, device=start.device, repeats=1)
    rows = tuple(
        Measurement(
            subject=name, lesson=lesson, runtime="torch.compile" if side.setup.recipe.compile else "torch eager",
            peak_memory=side.peak, step_seconds=timings[name].median * side.setup.images_per_step / images,
            values=_values(timings, name, side), provenance=origin,
        )
        for name, side in sides.items()
    )  # fmt: skip
    return SpeedStack(rows, missing, tuple(names))


class _Side:
    """A training that waits for its next step."""

    def __init__(self, setup: TrainingSetup, model_factory: Callable[[], nn.Module]) -> None:
        self.setup = setup
        device, loader = setup.device, setup.loader()
        before = _allocated(device)
        model = model_factory().to(device)
        if setup.recomputed is not None:
            checkpoint_activations(model, setup.recomputed(model))
        self.run = Run(model.train(), loader, setup.recipe)
        self.batches = _endless(loader)
        for _ in range(WARM_UP_STEPS):
            self.step()
        held = _allocated(device) - before if device.type == "cuda" else self._standing_bytes()
        self.peak = held + peak_memory(self.step, device)

    def step(self) -> None:
        """Update the weights once, in the setup's own precision."""
        with self.run.precision.matmul_mode():
            self.run.step(self.batches)

    def through(self, images: int) -> Callable[[], None]:
        """Return a function that trains on so many images."""
        steps = images // self.setup.images_per_step

        def run() -> None:
            for _ in range(steps):
                self.step()

        return run

    def _standing_bytes(self) -> int:
        """Return the bytes of weights, buffers and optimizer state, which stay between steps."""
        state = [value for values in self.run.optimizer.state.values() for value in values.values()]
        tensors = [*self.run.model.state_dict().values(), *state]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def _endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.batches(epoch)
        epoch += 1


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _values(timings: Mapping[str, Timing], name: str, side: _Side) -> dict[str, float]:
    ratio = speedup(timings["unchanged"], timings[name])
    return {
        "images_per_second": timings[name].throughput, "images_per_step": side.setup.images_per_step,
        "speedup": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high,
    }  # fmt: skip


def _ratios(base: Measurement, row: Measurement) -> tuple[str, str]:
    values = row.values
    memory = (row.peak_memory or 0) / base.peak_memory if base.peak_memory else math.nan
    return str(Ratio(values["speedup"], values["speedup_low"], values["speedup_high"])), f"{memory:.2f}"
