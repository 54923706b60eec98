"""The headline: seconds from random weights to 94 % on Fashion-MNIST, over many seeds (lesson 01).

A run is one call of the library's own `fit` on data that lies on the device, so what is timed is what a
reader would call. The network is compiled once and filled with new random weights for each seed;
an untimed warm-up on random pictures brings compilation and first-call costs behind it. What a first run
costs with all of that is measured apart, in a fresh process with an empty compile cache.

The form of the measurement follows K. Jordan, 94 % on CIFAR-10 in 3.29 seconds on a single GPU, arXiv
2404.00498: a fixed recipe, the mean accuracy over the seeds, the time of a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from cookbook.accelerator.setting import Setting, Speedrun, release
from cookbook.data import ResidentLoader, Split
from cookbook.environment import provenance, seed_everything
from cookbook.errors import CookbookError, UsageError
from cookbook.evidence import Measurement
from cookbook.measure import count_parameters
from cookbook.measure.latency import synchronizer
from cookbook.models import build
from cookbook.training import Evaluation, evaluate, fit

LESSON = "01"
TARGET = 0.94  # share of right predictions
WARMUP_BATCHES = 3  # an epoch of the untimed warm-up
COLD_LIMIT = 240  # seconds for the run in a fresh process


@dataclass(frozen=True)
class Run:
    """One training from random weights.

    Attributes:
        seed: of weights, order and augmentation.
        seconds: of `fit`, waited for.
        evaluation: of the trained model in fp32.
    """

    seed: int
    seconds: float
    evaluation: Evaluation


class Track:
    """A network on the device, ready to be trained again and again without being compiled again.

    Args:
        speedrun: recipe and network.
        train: images to learn from.
        device: where.
    """

    def __init__(self, speedrun: Speedrun, train: Split, device: torch.device) -> None:
        self.speedrun, self.train, self.device = speedrun, train, device
        self.model = build(speedrun.model).to(device)
        self.judge = build(speedrun.model).to(device)  # not compiled: it evaluates in fp32, with other shapes
        if speedrun.compile:
            torch.compiler.reset()
            self.model.compile(dynamic=False)  # each size of a batch gets kernels of its own

    def warm_up(self) -> None:
        """Train on random pictures for the same number of epochs, so that every size of a batch was seen."""
        count = WARMUP_BATCHES * self.speedrun.batch_size
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (count, *self.train.images.shape[1:]), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(self.train.classes), (count,), generator=generator)
        self._fit(replace(self.train, images=pictures, labels=labels), seed=0)

    def run(self, seed: int, judged_on: Split) -> Run:
        """Train from new random weights, then evaluate once."""
        seconds = self._fit(self.train, seed)
        self.judge.load_state_dict(self.model.state_dict())
        return Run(seed, seconds, evaluate(self.judge, ResidentLoader(judged_on, 1000, device=self.device)))

    def _fit(self, images: Split, seed: int) -> float:
        """Train and return the seconds; the data goes to the device, and the weights are drawn, before the clock starts."""
        speedrun = self.speedrun
        loader = ResidentLoader(images, speedrun.batch_size, augmentation=speedrun.augmentation, device=self.device, seed=seed)
        seed_everything(seed)
        self.model.load_state_dict(build(speedrun.model).state_dict())
        wait = synchronizer(self.device)
        wait()
        started = time.perf_counter()
        fit(self.model, loader, replace(speedrun.recipe, seed=seed), progress=False)
        wait()
        return time.perf_counter() - started


def record_speedrun(setting: Setting) -> Iterator[Measurement]:
    """Yield a row for each seed as it finishes, then the cold start, then the headline over all of them."""
    speedrun, splits = setting.scale.speedrun, setting.splits
    track = Track(speedrun, splits.train, setting.device)
    track.warm_up()
    runs = []
    for seed in setting.scale.speedrun_seeds:
        runs.append(track.run(seed, splits.test))
        yield run_row(setting, runs[-1])
    del track
    release(setting.device)
    yield headline(setting, runs, cold_start(setting))


def run_row(setting: Setting, run: Run) -> Measurement:
    """Return the record of one seed."""
    return Measurement(
        subject=f"speedrun, seed {run.seed}", lesson=LESSON, runtime=runtime(setting.scale.speedrun), split=run.evaluation.role,
        correct=run.evaluation.hits, images=len(run.evaluation.labels), seed=run.seed,
        values={"training_seconds": run.seconds}, provenance=provenance(setting.device),
    )  # fmt: skip


def headline(setting: Setting, runs: Sequence[Run], cold: dict[str, float]) -> Measurement:
    """Return the mean over the seeds, with the target beside it and the cold start."""
    accuracies, seconds = [run.evaluation.accuracy for run in runs], [run.seconds for run in runs]
    speedrun = setting.scale.speedrun
    return Measurement(
        subject="speedrun", lesson=LESSON, runtime=runtime(speedrun), parameters=count_parameters(build(speedrun.model)),
        values={
            "accuracy_mean_percent": 100 * fmean(accuracies), "accuracy_lowest_percent": 100 * min(accuracies),
            "accuracy_highest_percent": 100 * max(accuracies), "target_percent": 100 * TARGET,
            "training_seconds_mean": fmean(seconds), "training_seconds_longest": max(seconds),
            "seeds": len(runs), "epochs": speedrun.recipe.epochs, "batch": speedrun.batch_size, **cold,
        },
        provenance=provenance(setting.device),
    )  # fmt: skip


def runtime(speedrun: Speedrun) -> str:
    """Return what executes the network, and what it is."""
    shape = f"ResNet-{speedrun.model.depth}×{speedrun.model.width}"
    return f"{shape}, {speedrun.recipe.precision}{', torch.compile' if speedrun.compile else ''}"


def cold_start(setting: Setting) -> dict[str, float]:
    """Train once in a fresh process whose compile cache is empty, and return its times in seconds.

    ``cold_seconds`` is the wall time of the whole process: interpreter, imports, data, compilation,
    training, evaluation. ``cold_training_seconds`` is its training, with the compilation in it.

    Raises:
        CookbookError: the process failed or took longer than `COLD_LIMIT`.
    """
    command = [sys.executable, "-m", "cookbook.accelerator.cold", setting.scale.name, str(setting.device)]
    with tempfile.TemporaryDirectory() as empty:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor", "TRITON_CACHE_DIR": f"{empty}/triton"}
        started = time.perf_counter()
        try:
            finished = subprocess.run(
                command, env=os.environ | caches, capture_output=True, text=True, timeout=COLD_LIMIT, check=True
            )
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise CookbookError(f"The run in a fresh process failed ({last}): run '{' '.join(command)}' by hand.") from error
        except subprocess.TimeoutExpired as error:
            raise CookbookError(
                f"The run in a fresh process took longer than {COLD_LIMIT} s: run '{' '.join(command)}' by hand."
            ) from error
        seconds = time.perf_counter() - started
    return {"cold_seconds": seconds, **json.loads(finished.stdout.splitlines()[-1])}


def choose(
    candidates: Sequence[Speedrun], setting: Setting, *, seeds: Sequence[int] = (100, 101, 102), target: float = TARGET
) -> tuple[Speedrun, list[Measurement]]:
    """Return the candidate that reaches the target fastest, by validation alone, and a row for each.

    Where none reaches it, the most accurate one is returned. The seeds differ from those of the
    record, so that what is chosen is not the luck of the runs that are reported.

    Args:
        candidates: for example one for each of several `Recipe.epochs` and learning rates.
        setting: device and data.
        seeds: of the trainings of each candidate.
        target: mean accuracy on the validation split, 0 to 1.

    Raises:
        UsageError: there is no candidate or no seed.
    """
    if not candidates or not seeds:
        raise UsageError("There is nothing to choose from: pass at least one candidate and one seed.")
    rows, scores = [], []
    for number, candidate in enumerate(candidates):
        track = Track(candidate, setting.splits.train, setting.device)
        track.warm_up()
        runs = [track.run(seed, setting.splits.validation) for seed in seeds]
        accuracy, seconds = fmean(run.evaluation.accuracy for run in runs), fmean(run.seconds for run in runs)
        scores.append((accuracy >= target, -seconds if accuracy >= target else accuracy, number))
        rows.append(candidate_row(setting, candidate, runs))
        del track
        release(setting.device)
    return candidates[max(scores)[2]], rows


def candidate_row(setting: Setting, candidate: Speedrun, runs: Sequence[Run]) -> Measurement:
    """Return what a candidate reached on the validation split, counted over all its seeds."""
    recipe = candidate.recipe
    return Measurement(
        subject=f"speedrun candidate, {recipe.epochs} epochs, rate {recipe.learning_rate:g}, batch {candidate.batch_size}",
        lesson=LESSON, runtime=runtime(candidate), split=runs[0].evaluation.role,
        correct=sum(run.evaluation.hits for run in runs), images=sum(len(run.evaluation.labels) for run in runs),
        values={"training_seconds_mean": fmean(run.seconds for run in runs), "seeds": len(runs)},
        provenance=provenance(setting.device),
    )  # fmt: skip


def candidates(speedrun: Speedrun) -> list[Speedrun]:
    """Return the variations of a recipe that `choose` is offered: epochs by learning rates."""
    epochs, rate = speedrun.recipe.epochs, speedrun.recipe.learning_rate
    lengths = sorted({max(1, round(epochs * factor)) for factor in (0.6, 0.8, 1.0, 1.2, 1.5)})
    return [
        replace(speedrun, recipe=replace(speedrun.recipe, epochs=length, learning_rate=rate * factor))
        for length in lengths
        for factor in (0.5, 1.0, 2.0)
    ]
