"""The largest batch that fits, and the one with the best throughput (lesson 01).

The search doubles until a batch does not fit, or halves until one does, and bisects between the two;
from 1,024 it finds every limit up to 4,095 in 14 trials or fewer.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cookbook.environment import pick_device
from cookbook.errors import CookbookError, UsageError
from cookbook.evidence import Table
from cookbook.evidence.tables import MISSING, quantity
from cookbook.measure import interleave, peak_memory
from cookbook.throughput.out_of_memory import is_out_of_memory
from cookbook.throughput.rehearsal import TrainingStep
from cookbook.training import Objective, Recipe

SHARE_OF_FREE_MEMORY = 0.5  # the default limit on a CPU: a bisected try reaches 1.5 times the limit at most
BOLDEST_TRY = 1.5  # times the limit; a doubled batch that is predicted to need more is not tried

FAILED, TOO_LARGE, FITTED = 0.0, 1.0, 2.0  # how a try ended; over all ranks the smallest counts


@dataclass(frozen=True)
class Trial:
    """One batch size that was tried.

    Attributes:
        batch: images.
        fits: whether the step ran within the memory limit, on every rank.
        memory: bytes that the step added at its peak, the most over the ranks; None: the allocator refused.
        predicted: the memory was computed from smaller batches and the step was not run.
        throughput: images per second of one process, the least over the ranks; None: not timed.
    """

    batch: int
    fits: bool
    memory: int | None = None
    predicted: bool = False
    throughput: float | None = None


@dataclass(frozen=True, repr=False)
class BatchSizeResult:
    """What the search found; printed, it is a table.

    Attributes:
        best: the batch with the best throughput.
        largest: the largest batch that fits.
        trials: in the order in which they were made.
        memory_limit: bytes that a step was allowed to add; None: what the allocator grants.
    """

    best: int
    largest: int
    trials: tuple[Trial, ...]
    memory_limit: int | None

    @property
    def throughputs(self) -> dict[int, float]:
        """Images per second by batch size, ascending."""
        timed = {trial.batch: trial.throughput for trial in self.trials if trial.throughput is not None}
        return dict(sorted(timed.items()))

    def table(self) -> Table:
        """Return one row a trial, ascending by batch size."""
        rows = []
        for trial in sorted(self.trials, key=lambda trial: trial.batch):
            memory = MISSING if trial.memory is None else quantity(trial.memory, "B") + " (predicted)" * trial.predicted
            speed = MISSING if trial.throughput is None else f"{trial.throughput:.4g}"
            rows.append((str(trial.batch), "yes" if trial.fits else "no", memory, speed))
        limit = "what the allocator grants" if self.memory_limit is None else quantity(self.memory_limit, "B")
        note = f"Best throughput at {self.best}; the largest that fits is {self.largest}. Memory limit: {limit}."
        return Table(("batch", "fits", "peak memory", "images per second"), rows, note, f"{len(self.trials)} trials")

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for JupyterLab."""
        return self.table()._repr_html_()


def find_batch_size(
    step: Callable[[int], object],
    *,
    start: int = 32,
    limit: int = 4096,
    memory_limit: int | None = None,
    device: torch.device | str | None = None,
    rounds: int = 5,
    batches_per_call: int = 1,
    release: Callable[[], object] | None = None,
) -> BatchSizeResult:
    """Find the largest batch that fits, then time all that fitted in turns.

    Each try calls `step` twice, because an optimizer keeps its state only from the second step on, and frees
    memory afterwards. Under `torch.distributed` all ranks call this together: after each try they agree
    on whether it fitted on all of them, so that they go the same way when one alone runs out of memory. The
    step itself must not communicate (take a model that is not yet wrapped), or a rank that failed
    inside it would leave the others waiting.

    Args:
        step: trains one step on a batch of the given size, from its own data.
        start: the first batch size that is tried.
        limit: the largest batch size to try, such as the number of images.
        memory_limit: bytes that a step may add at its peak, by `cookbook.measure.peak_memory`. None: on CUDA what
            the allocator grants; elsewhere half of the memory that is free now, since an operating system kills
            a program instead of refusing. A container's own limit is not seen: pass it.
        device: where `step` computes; None: this machine's accelerator, where there is one.
        rounds: samples of each throughput.
        batches_per_call: batches that one call of `step` processes.
        release: called after each try, to drop what `step` keeps.

    Raises:
        UsageError: a number is out of range, or not even one image fits.
        CookbookError: the step failed on another rank.
        Exception: whatever else `step` raises passes through unchanged.
    """
    chosen = pick_device(None if device is None else str(device))
    for name, value in (("start", start), ("rounds", rounds), ("batches_per_call", batches_per_call)):
        if value < 1:
            raise UsageError(f"{name} is {value}: use 1 or more.")
    if limit < start:
        raise UsageError(f"The search cannot start at {start} above its limit of {limit}: lower start or raise limit.")
    if memory_limit is not None and memory_limit < 1:
        raise UsageError(f"memory_limit is {memory_limit}: use a positive number of bytes, or None.")
    if memory_limit is None and chosen.type != "cuda":
        memory_limit = int(SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available)
    finder = _Finder(step, chosen, memory_limit, release)
    largest = _search(finder.fits, start, limit)
    if not largest:
        raise UsageError(
            "Not even one image fits into the memory: use a smaller model or image, fewer bits, or activation checkpointing."
        )
    speeds = finder.throughputs(rounds, batches_per_call)
    trials = tuple(replace(trial, throughput=speeds.get(trial.batch)) for trial in finder.trials)
    return BatchSizeResult(max(speeds, key=lambda batch: speeds[batch]), largest, trials, memory_limit)


def find_training_batch_size(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    start: int = 32,
    limit: int = 4096,
    memory_limit: int | None = None,
    rounds: int = 5,
    objective: Objective | None = None,
) -> BatchSizeResult:
    """Find the batch size for a training of `model` by `recipe`, on a copy; nothing of the model changes.

    The steps are those of `fit`, with the recipe's precision, memory format and optimizer. Weights, BatchNorm
    statistics and the random number generators are afterwards what they were.

    Args:
        model: on the device where it shall train.
        images: float32 (N, C, H, W) on that device, at least one; they are repeated for larger batches.
        labels: int64 (N,), likewise.
        recipe: of the training.
        start: as in `find_batch_size`, like the arguments that follow.
        limit: see there.
        memory_limit: see there; it covers weights, gradients, optimizer state, batch and activations.
        rounds: see there.
        objective: as in `fit`.

    Raises:
        UsageError: as in `find_batch_size` and `fit`.
    """
    step = TrainingStep(model, images, labels, recipe, objective=objective)
    return find_batch_size(
        step, start=start, limit=limit, memory_limit=memory_limit, device=images.device, rounds=rounds,
        batches_per_call=step.batches_per_call, release=step.release,
    )  # fmt: skip


def _search(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """Return the largest size up to `limit` that fits, 0 when none does; no size is asked for twice."""
    if fits(start):
        low, high = start, limit + 1
        while low < limit < high:
            doubled = min(2 * low, limit)
            low, high = (doubled, high) if fits(doubled) else (low, doubled)
    else:
        low, high = 0, start
        while not low and high > 1:
            low, high = (high // 2, high) if fits(high // 2) else (0, high // 2)
    while low and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class _Finder:
    """The tries of one search, and what all ranks know of them."""

    def __init__(
        self,
        step: Callable[[int], object],
        device: torch.device,
        memory_limit: int | None,
        release: Callable[[], object] | None,
    ) -> None:
        self.step, self.device, self.memory_limit, self.release = step, device, memory_limit, release
        self.trials: list[Trial] = []

    def fits(self, batch: int) -> bool:
        """Try a batch size on all ranks."""
        predicted = self._predicted_memory(batch)
        bold = self.memory_limit is not None and predicted > BOLDEST_TRY * self.memory_limit
        if _least_over_ranks(float(not bold))[0] == 0:
            self.trials.append(Trial(batch, False, int(predicted) if bold else None, predicted=True))
            return False
        memory, outcome, failure = math.inf, FITTED, None
        try:
            memory = peak_memory(lambda: (self.step(batch), self.step(batch)), self.device)
        except Exception as error:
            outcome = TOO_LARGE if is_out_of_memory(error) else FAILED
            failure = error if outcome == FAILED else None  # a kept traceback would keep the tensors of its frames
        finally:
            self._free()
        if outcome == FITTED and self.memory_limit is not None and memory > self.memory_limit:
            outcome = TOO_LARGE
        outcome, negative = _least_over_ranks(outcome, -memory)
        _require_no_failure(outcome, failure)
        self.trials.append(Trial(batch, outcome == FITTED, None if math.isinf(negative) else int(-negative)))
        return outcome == FITTED

    def throughputs(self, rounds: int, batches_per_call: int) -> dict[int, float]:
        """Time the sizes that fitted, in turns; one that runs out of memory among the others is left out."""
        sizes = sorted(trial.batch for trial in self.trials if trial.fits)
        while True:
            outcome, failure, speeds = FITTED, None, [0.0] * len(sizes)
            try:
                calls = {str(size): functools.partial(self.step, size) for size in sizes}
                timings = interleave(calls, rounds=rounds, warmup=1, repeats=1, device=self.device)
                speeds = [size * batches_per_call / timings[str(size)].median for size in sizes]
            except UsageError as error:  # how the instrument hands on what a candidate raised
                cause = error.__cause__ or error
                outcome = TOO_LARGE if is_out_of_memory(cause) and len(sizes) > 1 else FAILED
                failure = cause if outcome == FAILED else None
            finally:
                self._free()
            outcome, *speeds = _least_over_ranks(outcome, *speeds)
            _require_no_failure(outcome, failure)
            if outcome == FITTED:
                return dict(zip(sizes, speeds, strict=True))
            sizes.pop()

    def _predicted_memory(self, batch: int) -> float:
        """Extrapolate along the line through the two largest sizes that fitted, when `batch` lies a doubling ahead."""
        known = sorted((trial.batch, trial.memory) for trial in self.trials if trial.fits and trial.memory is not None)
        if len(known) < 2 or batch < 2 * known[-1][0]:
            return 0.0
        (fewer, less), (more, most) = known[-2:]
        return most + max(0.0, (most - less) / (more - fewer)) * (batch - more)

    def _free(self) -> None:
        if self.release is not None:
            self.release()
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.memory.empty_cache()


def _require_no_failure(outcome: float, failure: BaseException | None) -> None:
    """Raise what the step raised here, or say that it failed elsewhere."""
    if failure is not None:
        raise failure
    if outcome == FAILED:
        raise CookbookError("The step failed on another rank for another reason than memory: read that rank's message.")


def _least_over_ranks(*numbers: float) -> Sequence[float]:
    """Return each number's minimum over all ranks; every rank waits here for the others."""
    if not (dist.is_available() and dist.is_initialized()):
        return numbers
    place = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(numbers, dtype=torch.float64, device=place)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return [float(number) for number in shared.tolist()]
