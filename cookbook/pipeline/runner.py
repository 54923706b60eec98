"""The run behind `compress`: what is left to do, step by step, each kept when it is done (lesson 08)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cookbook.data import ResidentLoader, Splits
from cookbook.deploy import Runtime, export
from cookbook.evidence import Ledger
from cookbook.measure import (
    Candidate,
    Measurement,
    bytes_on_disk,
    count_macs,
    count_parameters,
    interleave,
    measure_candidates,
    speedup,
)
from cookbook.pipeline.budget import Budget, Relative
from cookbook.pipeline.folder import Folder, load_weights, save_weights
from cookbook.pipeline.report import write_report
from cookbook.pipeline.result import Compressed, StageResult
from cookbook.pipeline.settings import Settings
from cookbook.pipeline.stage import Gain, Outcome, Stage, Work
from cookbook.pipeline.storage import pack_onnx
from cookbook.pipeline.training_stages import Quantize
from cookbook.pipeline.writing import copy_file, write_file
from cookbook.quantization.scheme import Scheme

LESSON = "08"
BATCHES = (1, 64)
NEARLY = 0.1  # of the excess over the budget: a tenth of a point, or of a latency
LOADER = 250  # images a batch while predictions are counted


@dataclass(frozen=True)
class _Finished:
    """A stage that is over, as its folder tells it."""

    outcome: Outcome
    file: Path
    seconds: float


@dataclass(frozen=True)
class Compression:
    """One call of `compress`."""

    original: nn.Module
    data: Splits
    settings: Settings
    folder: Folder
    device: torch.device
    ledger: Ledger
    rounds: int
    progress: bool | None
    announce: Callable[[str], object]

    def finish(self) -> Compressed:
        """Do what is left to do."""
        result = self.folder.read("result.json")
        if result is None:
            done: list[_Finished] = []
            self._baseline()
            for number, stage in enumerate(self.settings.stages):
                done.append(self._stage(number, stage, done[-1].outcome if done else Outcome(self.original)))
            result = self._conclude(done)
            self.folder.write("result.json", result)
        compressed = self._compressed(result)
        write_report(compressed)
        return compressed

    def _work(self, number: int, scheme: Scheme | None = None) -> Work:
        stages, settings = self.settings.stages, self.settings
        names = tuple(stage.name for stage in stages)
        return Work(
            original=self.original, data=self.data, budget=settings.budget, recipe=settings.recipe,
            batch_size=settings.batch_size, augmentation=settings.augmentation, device=self.device,
            folder=self.folder.part(self._part(number)), earlier=names[: max(number, 0)], later=names[number + 1 :],
            scheme=scheme, gain=self._gain, progress=self.progress,
        )  # fmt: skip

    def _part(self, number: int) -> str:
        return "0-baseline" if number < 0 else f"{number + 1}-{self.settings.stages[number].name}"

    def _baseline(self) -> Path:
        work = self._work(-1)
        file = work.folder / "model.onnx"
        if not file.exists():
            self.announce("exporting the model as it is")
            export(self.original, work.example, file)
        return file

    def _gain(self) -> Gain:
        """Return what integers bring to the unpruned model, measured once."""
        scheme = next((stage.integers for stage in self.settings.stages if isinstance(stage, Quantize)), None)
        if scheme is None:
            return Gain()
        work, floats = self._work(-1), self._baseline()

        def measure() -> dict[str, float]:
            self.announce("measuring what integers bring by themselves")
            integers = write_file(Outcome(self.original, scheme), work, work.folder / "integers.onnx")
            images = work.example[:1].contiguous()
            sessions = {"floats": Runtime(floats), "integers": Runtime(integers)}
            calls = {name: (lambda session=session: session(images)) for name, session in sessions.items()}
            timings = interleave(calls, rounds=self.rounds, threads=1, device="cpu")
            return {
                "latency": speedup(timings["floats"], timings["integers"]).value,
                "bytes": bytes_on_disk(floats) / bytes_on_disk(integers),
            }

        return Gain(**self.folder.decide("gain.json", measure))

    def _stage(self, number: int, stage: Stage, before: Outcome) -> _Finished:
        """Run a stage, or read what it left; either way what goes on is what lies in the folder."""
        work = self._work(number, before.scheme)
        marker = f"{self._part(number)}/stage.json"
        weights, file = work.folder / "model.safetensors", work.folder / "model.onnx"
        known = self.folder.read(marker)
        if known is None:
            self.announce(f"stage {number + 1} of {len(self.settings.stages)}: {stage.name}")
            started = time.perf_counter()
            outcome = stage.apply(copy.deepcopy(before.model), work)
            save_weights(outcome.model, self.original, weights)
            write_file(outcome, work, file)
            seconds = time.perf_counter() - started - outcome.session_seconds + outcome.training_seconds
            known = {
                "scheme": None if outcome.scheme is None else asdict(outcome.scheme), "note": outcome.note,
                "seconds": seconds, "training_seconds": outcome.training_seconds,
            }  # fmt: skip
            for row in self._measured(
                [("baseline", self.original, self._baseline()), (self._subject(number), outcome.model, file)]
            ):
                self.ledger.append(row)
            self.folder.write(marker, known)
        scheme = (
            None if known["scheme"] is None else Scheme(**{**known["scheme"], "exclude": tuple(known["scheme"]["exclude"])})
        )
        outcome = Outcome(load_weights(self.original, weights), scheme, file, known["note"], known["training_seconds"])
        return _Finished(outcome, file, known["seconds"])

    def _subject(self, number: int) -> str:
        return " → ".join(stage.name for stage in self.settings.stages[: number + 1])

    def _measured(self, files: Sequence[tuple[str, nn.Module, Path]], split: str = "validation") -> list[Measurement]:
        """Measure files in turns, on validation or test."""
        images = getattr(self.data, split)
        candidates: list[Candidate] = []
        for name, model, file in files:
            size = {"parameters": count_parameters(model), "macs": count_macs(model, self._work(-1).example)}
            candidates.append(Runtime(file).candidate(name, seed=self.settings.recipe.seed, **size))
        batches = [batch for batch in BATCHES if batch <= len(images)]
        loader = ResidentLoader(images, min(LOADER, len(images)))
        return measure_candidates(candidates, loader, lesson=LESSON, batches=batches, rounds=self.rounds)

    def _conclude(self, done: Sequence[_Finished]) -> dict[str, Any]:
        """Measure all files in turns, choose by validation, and look at test."""
        self.announce("measuring all files in turns")
        base = ("baseline", self.original, self._baseline())
        files = [(self._subject(number), one.outcome.model, one.file) for number, one in enumerate(done)]
        baseline, *rows = self._measured([base, *files])
        chosen = choose(self.settings.budget, baseline, rows)
        shipped = files[chosen] if chosen >= 0 else ("shipped", self.original, self._baseline())
        model = self.folder.path / "model.onnx"
        copy_file(shipped[2], model)
        if self.settings.entropy_coded:
            pack_onnx(model, self.folder.path / "model.packed")
        tests = self._measured([base, (shipped[0], shipped[1], model)], "test")
        for row in (baseline, *rows, *tests):
            self.ledger.append(row)
        stages = [
            StageResult(stage.name, one.file, row, one.seconds, one.outcome.training_seconds, one.outcome.note)
            for stage, one, row in zip(self.settings.stages, done, rows, strict=True)
        ]
        guessing = self.data.validation.labels.bincount().max().item() / len(self.data.validation)
        return {
            "chosen": chosen, "baseline": baseline.to_dict(), "stages": [stage.to_dict() for stage in stages],
            "test": [row.to_dict() for row in tests], "guessing": guessing,
        }  # fmt: skip

    def _compressed(self, result: dict[str, Any]) -> Compressed:
        path, chosen = self.folder.path, int(result["chosen"])
        baseline = Measurement.from_dict(result["baseline"])
        stages = tuple(StageResult.from_dict(fields, path) for fields in result["stages"])
        measurement = stages[chosen].measurement if chosen >= 0 else baseline
        base, own = (Measurement.from_dict(row) for row in result["test"])
        return Compressed(
            path=path / "model.onnx", measurement=measurement, baseline=baseline, budget=self.settings.budget,
            violations=self.settings.budget.check(Relative.of(measurement, baseline)), report=path / "report.html",
            stages=stages, chosen=chosen, test=(base, own),
            packed=path / "model.packed" if self.settings.entropy_coded else None, guessing=float(result.get("guessing", 0.0)),
        )  # fmt: skip


def choose(budget: Budget, baseline: Measurement, rows: Sequence[Measurement]) -> int:
    """Return the number of the last row that keeps the budget, else of the last that breaks it hardly more than any; −1: none.

    Latencies differ from run to run, so that among nearly equal rows the later stage decides, and not the clock.
    """
    excess = [budget.excess(Relative.of(row, baseline)) for row in (baseline, *rows)]
    least = min(excess)
    return max(number for number, value in enumerate(excess) if value <= least + (NEARLY if least else 0)) - 1
