"""What `fit` and other training loops cost over one written by hand (lesson 00; `make bench` and `make bench-peers`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cookbook.data import ResidentLoader, Split
from cookbook.distributed import launch
from cookbook.distributed.workers import NETWORK, step_trial
from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio
from cookbook.measure import Timing, energy_of, interleave, pinned_threads, speedup
from cookbook.models import PerceptronConfig, ResNetConfig, build
from cookbook.training import Recipe, build_optimizer, fit

Loop = Callable[[nn.Module, ResidentLoader, Recipe], object]

TINY = PerceptronConfig(hidden=(16,))  # a step takes some hundred microseconds, most of them torch's own overhead
IMAGES = 8  # a step
STEPS = 2000  # a sample, so that what a loop sets up once hardly counts
RESAMPLES = 2000
RANK_IMAGES = 128  # a step of each rank


def bare_loop(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
    """Train as `fit` does under a constant rate, written by hand with nothing around it."""
    optimizer = build_optimizer(model, recipe)
    model.train()
    for epoch in range(recipe.epochs):
        for images, labels in loader.batches(epoch):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def quiet_fit(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
    """Call `fit` without its progress bar."""
    fit(model, loader, recipe, progress=False)


def fit_against_bare_loop(
    split: Split, config: ResNetConfig, steps: int, threads: int, rounds: int, measured: Callable[..., BenchRatio]
) -> BenchRatio:
    """Compare wall times of `fit` and of the bare loop on a ResNet, `steps` steps of 32 images.

    Raises:
        CookbookError: they end with different weights.
    """
    calls, ends = _same_start({"fit": quiet_fit, "bare loop": bare_loop}, config, ResidentLoader(split.subset(32 * steps), 32))
    timings = interleave(calls, batch=32, rounds=rounds, warmup=2, threads=threads, device="cpu", repeats=1)
    _require_equal(ends)
    return measured(
        name=f"fit, ResNet-{config.depth}×{config.width}", baseline="fit", candidate="bare loop",
        ratio=speedup(timings["fit"], timings["bare loop"]),
        what=f"wall time of fit over that of a bare loop, {steps} steps of 32 images, weights bitwise equal",
    )  # fmt: skip


def two_ranks_against_one(rounds: int, measured: Callable[..., BenchRatio]) -> BenchRatio:
    """Compare images per second of two gloo ranks with those of one process, one CPU thread each; in turns.

    The ranks share cores and memory with each other and with all else on the machine, so the ratio says little
    about two machines.

    Raises:
        RankError: a rank failed.
    """
    taken = launch(step_trial, RANK_IMAGES, 2, rounds, ranks=2, threads=1)[0]
    alone, together = (Timing(tuple(taken[name]), 1, RANK_IMAGES) for name in ("alone", "together"))
    for_as_many = Timing(tuple(2 * seconds for seconds in alone.samples), 1, RANK_IMAGES)
    return measured(
        name="two ranks", baseline="one process, one thread", candidate="two gloo ranks, one thread each",
        ratio=speedup(for_as_many, together),
        what=f"images per second of training, ResNet-{NETWORK.depth}×{NETWORK.width}, {RANK_IMAGES} images a rank and step",
        values={"images_per_second_alone": alone.throughput, "images_per_second_together": 2 * together.throughput},
    )  # fmt: skip


def cost_per_step(
    split: Split,
    others: Mapping[str, Loop],
    *,
    measured: Callable[..., BenchRatio],
    rounds: int = 15,
    steps: int = STEPS,
) -> Iterator[BenchRatio]:
    """Yield what a training step of `fit`, and of `others`, costs more than one of the bare loop, in CPU time of one thread.

    CPU time leaves out what other programs do meanwhile. The loops take turns; the cost is the median of
    the differences within the rounds, with a percentile bootstrap over them.

    Args:
        split: to train on.
        others: further loops by name.
        measured: makes a row.
        rounds: samples of each loop.
        steps: in a sample.

    Raises:
        CookbookError: two loops end with different weights.
    """
    loops = {"bare loop": bare_loop, "fit": quiet_fit, **others}
    calls, ends = _same_start(loops, TINY, ResidentLoader(split.subset(IMAGES * steps), IMAGES))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with pinned_threads(1):
        for number in range(1 + rounds):  # the first round warms up
            first = number % len(calls)
            for name in [*calls, *calls][first : first + len(calls)]:
                samples[name].append(energy_of(calls[name]).cpu_seconds)
    _require_equal(ends)
    timings = {name: Timing(tuple(taken[1:]), 1, IMAGES) for name, taken in samples.items()}
    bare = timings.pop("bare loop")
    for name, timing in timings.items():
        cost, low, high = _median_difference(timing, bare, 1e6 / steps)
        yield measured(
            name=f"{name}, cost of a step", baseline=name, candidate="bare loop", ratio=speedup(timing, bare),
            what=f"CPU time of {name} over that of a bare loop: {cost:.1f} µs [{low:.1f}, {high:.1f}] more a step",
            values={"microseconds_per_step": cost, "microseconds_per_step_low": low, "microseconds_per_step_high": high},
        )  # fmt: skip


def _same_start(
    loops: Mapping[str, Loop], config: PerceptronConfig | ResNetConfig, loader: ResidentLoader
) -> tuple[dict[str, Callable[[], None]], dict[str, nn.Module]]:
    """Return functions that each train a fresh copy of one model, and where they leave it."""
    recipe = Recipe(epochs=1, learning_rate=1e-3, schedule="constant")
    torch.manual_seed(0)
    start = build(config)
    ends: dict[str, nn.Module] = {}

    def trainer(name: str) -> Callable[[], None]:
        def train() -> None:
            ends[name] = copy.deepcopy(start)
            loops[name](ends[name], loader, recipe)

        return train

    return {name: trainer(name) for name in loops}, ends


def _require_equal(ends: Mapping[str, nn.Module]) -> None:
    reference = ends["bare loop"].state_dict()
    for name, model in ends.items():
        for key, value in model.state_dict().items():
            if not torch.equal(value, reference[key]):
                raise CookbookError(f"{name} and the bare loop differ in {key}: they must be bitwise equal.")


def _median_difference(ours: Timing, theirs: Timing, scale: float) -> tuple[float, float, float]:
    """Return the median of the paired differences, and its 95 % interval, in units of 1 / `scale` seconds."""
    differences = scale * (np.asarray(ours.samples) - np.asarray(theirs.samples))
    drawn = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(np.median(differences[drawn], axis=1), (2.5, 97.5))
    return float(np.median(differences)), float(low), float(high)
