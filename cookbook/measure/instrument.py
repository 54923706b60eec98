"""The one instrument: every candidate measured in the same way, side by side (lesson 00)."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.environment import provenance
from cookbook.errors import UsageError
from cookbook.measure.energy import Energy, energy_of
from cookbook.measure.latency import Timing, interleave, naming, pinned_threads
from cookbook.measure.measurement import Measurement, now
from cookbook.measure.memory import peak_memory
from cookbook.measure.operations import count_macs, count_parameters
from cookbook.measure.size import bytes_on_disk
from cookbook.models.modes import simulates, to_eval
from cookbook.progress import progress_bar

ENERGY_SECONDS = 0.2  # of repeated calls: many ticks of a counter that moves once a millisecond


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that predicts, with what is known about it before it runs.

    Attributes:
        name: the first column of every table.
        runtime: what executes it, such as ``torch eager``.
        predict: maps float32 images (B, C, H, W) on `device` to logits (B, classes).
        parameters: weights and biases; None: not known.
        macs: multiply-accumulates for one image; None: not known.
        artefacts: every file or folder that must be shipped to run it.
        device: where it computes.
        seed: of the training that made the weights.
    """

    name: str
    runtime: str
    predict: Callable[[Tensor], Tensor]
    parameters: int | None = None
    macs: int | None = None
    artefacts: tuple[Path, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int | None = None

    @classmethod
    def from_torch(
        cls,
        name: str,
        model: nn.Module,
        example: Tensor,
        *,
        artefacts: Iterable[str | os.PathLike[str]] = (),
        seed: int | None = None,
        runtime: str = "torch eager",
    ) -> Candidate:
        """Return a torch model as a candidate; it is put into eval mode and predicts without gradients.

        Args:
            model: on the device where it shall be measured. It is not copied.
            example: images (B, C, H, W) on that device, to count the multiply-accumulates.
            artefacts: what must be shipped.
            seed: of its training.
            runtime: another name for it, such as ``torch.compile``. A graph that only simulates integers is named so.

        Raises:
            UsageError: the model cannot process the example.
        """
        macs = count_macs(model, example)
        to_eval(model)

        def predict(images: Tensor) -> Tensor:
            if model.training:  # a training between two measurements leaves it so
                to_eval(model)
            with torch.inference_mode():
                return model(images)

        return cls(
            name=name,
            runtime=f"{runtime}, simulated {types}" if (types := simulates(model)) else runtime,
            predict=predict,
            parameters=count_parameters(model),
            macs=macs,
            artefacts=tuple(map(Path, artefacts)),
            device=example.device,
            seed=seed,
        )


def measure_candidates(
    candidates: Sequence[Candidate],
    loader: Loader | None,
    *,
    lesson: str,
    batches: Sequence[int] = (1, 64),
    threads: int = 1,
    rounds: int = 30,
) -> list[Measurement]:
    """Measure every candidate with the same images, and return one record each, in their order.

    Accuracy is counted over the whole loader. Peak memory, at the largest batch, is that of the
    first call of this size here, after one of a single image. Latency is timed in turns over all
    candidates, on the loader's first images, which lie on the candidate's device already. Energy and
    the ``cpu_seconds_per_image`` among the values come from repeated calls with the largest batch.

    Args:
        candidates: with different names, on the CPU and at most one accelerator.
        loader: the images; its role is recorded as the split. None: only parameters, operations
            and bytes are recorded.
        lesson: two digits, such as ``"00"``.
        batches: batch sizes to time.
        threads: torch's threads. A runtime with threads of its own must have been made with as many.
        rounds: samples of every latency.

    Raises:
        UsageError: no candidate, two of one name or on two accelerators, a batch that is below 1
            or larger than the loader's images, or a candidate fails; the message names it.
        DeploymentError: an artefact is missing.
    """
    _check(candidates, batches)
    started = now()  # one time for all: rows of one run are known by it, and only they are compared by ratio
    with pinned_threads(threads):
        records = [
            Measurement(
                subject=candidate.name,
                lesson=lesson,
                runtime=candidate.runtime,
                parameters=candidate.parameters,
                macs=candidate.macs,
                bytes=bytes_on_disk(*candidate.artefacts) if candidate.artefacts else None,
                seed=candidate.seed,
                provenance=provenance(candidate.device),
                recorded=started,
            )
            for candidate in candidates
        ]
        if loader is None:
            return records
        images = _first_images(loader, max(batches))
        peaks = [_peak(candidate, images) for candidate in candidates]
        scores = _accuracies(candidates, loader)
        latencies = {batch: _latencies(candidates, images[:batch], threads, rounds) for batch in sorted(set(batches))}
        energies = [_energy(candidate, images, latencies[len(images)][candidate.name]) for candidate in candidates]
    return [
        replace(
            record,
            split=loader.role,
            correct=correct,
            images=seen,
            latency={batch: timings[record.subject] for batch, timings in latencies.items()},
            peak_memory=peak,
            energy_joules=energy.joules,
            values={"cpu_seconds_per_image": energy.cpu_seconds},
        )
        for record, peak, (correct, seen), energy in zip(records, peaks, scores, energies, strict=True)
    ]


def _check(candidates: Sequence[Candidate], batches: Sequence[int]) -> None:
    names = [candidate.name for candidate in candidates]
    if not names:
        raise UsageError("There is nothing to measure: pass at least one candidate.")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} candidates are called {name!r}: give each a name of its own.")
    if not batches or min(batches) < 1:
        raise UsageError(f"The batch sizes are {tuple(batches)}: use one or more numbers of at least 1.")
    accelerators = {str(candidate.device) for candidate in candidates if candidate.device.type != "cpu"}
    if len(accelerators) > 1:
        raise UsageError(f"The candidates compute on {' and '.join(sorted(accelerators))}: measure one accelerator at a time.")


def _first_images(loader: Loader, number: int) -> Tensor:
    """Return the loader's first `number` images, (number, C, H, W)."""
    parts: list[Tensor] = []
    for images, _ in loader.batches(0):
        parts.append(images)
        if sum(map(len, parts)) >= number:
            return torch.cat(parts)[:number].clone()
    held = sum(map(len, parts))
    raise UsageError(f"The loader has {held} images, but the largest batch takes {number}: use smaller batches.")


def _peak(candidate: Candidate, images: Tensor) -> int:
    images = images.to(candidate.device)
    with naming(candidate.name):
        if len(images) > 1:
            candidate.predict(images[:1])
        return peak_memory(lambda: candidate.predict(images), candidate.device)


def _accuracies(candidates: Sequence[Candidate], loader: Loader) -> list[tuple[int, int]]:
    """Return right predictions and images of each candidate, after one pass each."""
    scores = []
    with progress_bar("counting right predictions", len(candidates) * len(loader)) as advance:
        for candidate in candidates:
            correct = seen = 0
            for images, labels in loader.batches(0):
                with naming(candidate.name):
                    logits = candidate.predict(images.to(candidate.device))
                if logits.ndim != 2 or len(logits) != len(labels):
                    raise UsageError(
                        f"The candidate {candidate.name!r} returns {tuple(logits.shape)} for {len(labels)} images: "
                        "logits of shape (B, classes) were expected."
                    )
                correct += int((logits.argmax(1).cpu() == labels.cpu()).sum())
                seen += len(labels)
                advance(candidate.name)
            scores.append((correct, seen))
    return scores


def _latencies(candidates: Sequence[Candidate], images: Tensor, threads: int, rounds: int) -> dict[str, Timing]:
    calls = {
        candidate.name: functools.partial(candidate.predict, images.to(candidate.device).contiguous())
        for candidate in candidates
    }
    device = next((candidate.device for candidate in candidates if candidate.device.type != "cpu"), torch.device("cpu"))
    return interleave(calls, batch=len(images), rounds=rounds, threads=threads, device=device)


def _energy(candidate: Candidate, images: Tensor, timing: Timing) -> Energy:
    """Return what one image consumes."""
    images = images.to(candidate.device)
    calls = math.ceil(ENERGY_SECONDS / timing.median)

    def repeat() -> None:
        for _ in range(calls):
            candidate.predict(images)

    with naming(candidate.name):
        whole = energy_of(repeat, device=candidate.device)
    done = calls * len(images)
    return Energy(None if whole.joules is None else whole.joules / done, whole.cpu_seconds / done, whole.source)
