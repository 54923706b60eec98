"""Timing two or more candidates side by side, and their ratio with an interval (lesson 00)."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cookbook.errors import UsageError
from cookbook.measure.statistics import Word

SHORTEST_SAMPLE = 2e-3  # seconds: long against the clock's resolution and the loop's own cost
FEWEST_ROUNDS = 3  # below, resampled medians say nothing about the spread


@dataclass(frozen=True)
class Timing:
    """How long one call of a candidate took, in every round.

    Attributes:
        samples: seconds for a call, in the order of the rounds, rounded to nanoseconds.
        threads: torch's threads while the samples were taken.
        batch: images that one call processes.

    Raises:
        UsageError: no samples, a sample that is not a positive time, or a count below 1.
    """

    samples: tuple[float, ...]
    threads: int
    batch: int

    def __post_init__(self) -> None:
        samples = tuple(round(float(sample), 9) for sample in self.samples)
        if not samples or not all(0 < sample < math.inf for sample in samples):
            raise UsageError(f"{self.samples!r} are not timings: pass one positive number of seconds a round.")
        if self.threads < 1 or self.batch < 1:
            raise UsageError(f"{self.threads} threads and a batch of {self.batch} cannot be timed: use 1 or more of both.")
        object.__setattr__(self, "samples", samples)

    @property
    def median(self) -> float:
        """Median of the samples, in seconds."""
        return float(np.median(self.samples))

    @property
    def p10(self) -> float:
        """10th percentile of the samples, in seconds."""
        return float(np.percentile(self.samples, 10))

    @property
    def p90(self) -> float:
        """90th percentile of the samples, in seconds."""
        return float(np.percentile(self.samples, 90))

    @property
    def throughput(self) -> float:
        """Images per second at the median."""
        return self.batch / self.median

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the percentiles are for readers and follow from the samples."""
        return {
            "median": self.median,
            "p10": self.p10,
            "p90": self.p90,
            "samples": list(self.samples),
            "threads": self.threads,
            "batch": self.batch,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Timing:
        """Rebuild what `to_dict` returned, from its samples.

        Raises:
            KeyError: a field is missing.
            UsageError: the samples are not positive times.
        """
        return cls(tuple(fields["samples"]), int(fields["threads"]), int(fields["batch"]))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval, such as a speed-up: above 1 the candidate is better."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}× [{self.low:.2f}, {self.high:.2f}]"

    def verdict(self, margin: float = 0.0) -> Word:
        """Return the word for a speed-up.

        Args:
            margin: the gain that is too small to matter, such as 0.02: the whole interval must lie
                above 1 + margin, or below 1 / (1 + margin), to be called a difference.
        """
        if margin < 0:
            raise UsageError(f"The margin {margin} is negative: use 0 or more, such as 0.02 for 2 %.")
        if self.low > 1 + margin:
            return "better"
        return "worse" if self.high < 1 / (1 + margin) else "no difference"


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    batch: int = 1,
    rounds: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    device: torch.device | str | None = None,
    repeats: int | None = None,
) -> dict[str, Timing]:
    """Time the candidates in turns, A B A B …, so that a drift of the machine meets all alike.

    Each round times every candidate once and begins with another one. The garbage collector rests
    meanwhile, and an accelerator is waited for before each reading of the clock.

    Args:
        candidates: by name, functions without arguments.
        batch: images that one call processes; it is only noted.
        rounds: samples of each candidate.
        warmup: untimed calls of each candidate beforehand, at least 1.
        threads: torch's threads inside; None leaves them. A runtime of its own, such as an ONNX
            Runtime session, keeps the number that it was made with.
        device: whose work is waited for; None: this machine's accelerator, where there is one.
        repeats: calls in one sample, whose mean is kept. None: per candidate as many as make a
            sample last about 2 ms, by its fastest warm-up call.

    Raises:
        UsageError: there are no candidates, a count is below 1, or a candidate raises; the message
            names it.
    """
    if not candidates:
        raise UsageError("There is nothing to time: pass at least one candidate.")
    for name, count in (("batch", batch), ("rounds", rounds), ("warmup", warmup), ("repeats", repeats)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}: use 1 or more.")
    wait = synchronizer(device)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    with pinned_threads(threads) as pinned, _resting_collector():
        calls = {}
        for name, function in candidates.items():
            fastest = min(_seconds(name, function, 1, wait) for _ in range(warmup))
            calls[name] = repeats or math.ceil(SHORTEST_SAMPLE / max(fastest, 1e-7))
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_seconds(name, candidates[name], calls[name], wait))
    return {name: Timing(tuple(taken), pinned, batch) for name, taken in samples.items()}


def speedup(baseline: Timing, candidate: Timing, *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Return how many times faster the candidate is: the ratio of the medians, baseline / candidate.

    The interval is the percentile bootstrap (B. Efron, The Annals of Statistics 7, 1979, 1–26). It
    draws whole rounds, so that what slowed both sides of a round cancels out. It covers the spread
    within this run, not what differs between two machines or two days.

    Args:
        baseline: timed together with `candidate` by `interleave`.
        candidate: its samples belong, round by round, to those of `baseline`.
        resamples: drawn sets of rounds.
        seed: of the drawing; the same seed gives the same interval.

    Raises:
        UsageError: rounds, threads or batch differ, or there are fewer than three rounds.
    """
    for what, ours, theirs in (
        ("rounds", len(candidate.samples), len(baseline.samples)),
        ("threads", candidate.threads, baseline.threads),
        ("images a batch", candidate.batch, baseline.batch),
    ):
        if ours != theirs:
            raise UsageError(f"The candidate was timed with {ours} {what}, the baseline with {theirs}: time both in one call.")
    rounds = len(baseline.samples)
    if rounds < FEWEST_ROUNDS or resamples < 1:
        raise UsageError(f"{rounds} rounds resampled {resamples} times give no interval: use {FEWEST_ROUNDS} rounds or more.")
    drawn = np.random.default_rng(seed).integers(0, rounds, (resamples, rounds))
    slow, fast = (np.median(np.asarray(timing.samples)[drawn], axis=1) for timing in (baseline, candidate))
    low, high = np.percentile(slow / fast, (2.5, 97.5))
    return Ratio(baseline.median / candidate.median, float(low), float(high))


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[int]:
    """Let torch compute with `threads` threads inside the block; yield the number in force.

    Raises:
        UsageError: `threads` is below 1.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: use 1 or more, or None to leave torch's number.")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def naming(candidate: str) -> Iterator[None]:
    """Turn an exception of a candidate's own code into one sentence that names the candidate.

    Raises:
        UsageError: the block raised; the original exception is its cause.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise UsageError(
            f"The candidate {candidate!r} failed while it was measured ({type(error).__name__}: {reason}): "
            "call it once by itself first."
        ) from error


def _seconds(name: str, function: Callable[[], object], calls: int, wait: Callable[[], None]) -> float:
    """Return the mean wall time of `calls` calls."""
    with naming(name):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        return (time.perf_counter() - started) / calls


def synchronizer(device: torch.device | str | None) -> Callable[[], None]:
    """Return a function that waits until the device has done its work; on a CPU there is nothing to wait for.

    Args:
        device: None: this machine's accelerator, where there is one.
    """
    if device is None:
        chosen = torch.accelerator.current_accelerator(check_available=True)
    else:
        chosen = torch.device(device)
    if chosen is None or chosen.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(chosen)


@contextlib.contextmanager
def _resting_collector() -> Iterator[None]:
    """Collect garbage once, then keep the collector from running inside the block."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
