"""The running model in another shape and in integers, against the course's targets (lesson 08).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.capstone --jobs 2 --precision bf16
    python -m cookbook.experiments.capstone --rehearse     a miniature in the quick profile: is everything in place?

One `cookbook.pipeline.compress` an arm: a small network learns from the running model's answers, then goes to integers
whose sums saturate on no processor, and is packed. The control learns from the labels alone, on the same pictures in the
same order. The files are timed in turns with the running model, in floats and in integers, on test, and the rows become the
README's scoreboard. The same command resumes after any interruption. Timing wants a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cookbook.data import Augmentation, ResidentLoader, load_fashion_mnist
from cookbook.deploy import Runtime, export
from cookbook.evidence import ClaimEvidence, Ledger, Measurement, Table
from cookbook.evidence.tables import NOTHING_RECORDED, newest_run
from cookbook.experiments.command import FixedPlan, Options, Task, leave_on_termination, part_of, run, train_in_processes
from cookbook.files import data_directory
from cookbook.measure import Candidate, bytes_on_disk, count_macs, count_parameters, measure_candidates, speedup
from cookbook.models import ResNetConfig, load
from cookbook.pipeline import Budget, Compressed, Quantize, Student, compress, pack_onnx
from cookbook.pipeline.writing import copy_file
from cookbook.precision import PrecisionName
from cookbook.quantization import Scheme, quantize
from cookbook.serving import serve_load
from cookbook.training import Recipe

LESSON = "08"
BASELINE, INT8 = "baseline fp32, exported", "baseline int8"
PACKED = "packed_bytes"  # every row of this experiment has it among its values, and no other row has
REQUESTS = 2_000
AUGMENTATION = Augmentation(crop=2, flip=True)
INTEGERS = Scheme(reduce_range=True)
FASTER, SMALLER, SMALLER_PACKED, POINTS = {1: 25, 64: 35}, 40, 60, 0.5  # the targets, by batch size where one counts
TARGETS = Budget(latency=1 / FASTER[1], accuracy_drop=POINTS, bytes=1 / SMALLER)


def strided(first: int, second: int, third: int) -> ResNetConfig:
    """Return a ResNet-8 with these channels in its stages, and half of the resolution from the first layer on."""
    channels = (first, second, third)
    return ResNetConfig(depth=8, width=first, stem_stride=2, stem=first, inner=channels, outer=channels)


@dataclass(frozen=True, kw_only=True)
class Plan(FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        shapes: of the students, by name. The default was chosen by latency and bytes of untrained networks alone: the
            widest that keeps both targets.
        ways: the teacher's share of the loss, by name; the first is what is shipped, and nothing is the control.
        images: training images.
        epochs: of a student.
        learning_rate: peak of its one-cycle schedule.
        temperature: of the softmax; the best of kd-02 on validation.
        views: fixed augmented copies of every image.
        batch_size: images per step.
        seed: of weights and order.
        tested: images of validation and of test each; None: all.
        precision: of the training and of the running model's answers.
    """

    shapes: dict[str, ResNetConfig] = field(default_factory=lambda: {"ResNet-8, strided": strided(24, 40, 64)})
    ways: dict[str, float] = field(default_factory=lambda: {"distilled": 0.9, "hard labels": 0.0})
    images: int = 55_000
    epochs: int = 40
    learning_rate: float = 0.2
    temperature: float = 2.0
    views: int = 8
    batch_size: int = 128
    seed: int = 0
    tested: int | None = None
    precision: PrecisionName = "fp32"

    @property
    def arms(self) -> dict[str, tuple[ResNetConfig, float]]:
        """Shape and share of the teacher, by the arm's name."""
        pairs = itertools.product(self.shapes.items(), self.ways.items())
        return {f"{shape}, {way}": (config, alpha) for (shape, config), (way, alpha) in pairs}

    def student(self, arm: str) -> Student:
        """Return the stage that trains an arm."""
        config, alpha = self.arms[arm]
        recipe = Recipe(
            epochs=self.epochs, learning_rate=self.learning_rate, channels_last=config.width >= 16, precision=self.precision,
            seed=self.seed,
        )  # fmt: skip
        return Student(config, recipe, alpha=alpha, temperature=self.temperature, views=self.views)


REHEARSAL = Plan(
    shapes={"tiny": strided(8, 8, 8)}, images=400, epochs=2, learning_rate=0.05, views=2,
    batch_size=20, tested=500,
)  # fmt: skip


class Experiment:
    """A plan with its data and its folder.

    Args:
        plan: what is done.
        baseline: the running model, a file that `cookbook.models.save` wrote.
        folder: for everything that is trained; one sub-folder a plan.
    """

    def __init__(self, plan: Plan, baseline: Path, folder: Path) -> None:
        self.plan, self.folder = plan, folder / plan.digest()
        self.baseline_file, self.baseline = baseline, load(baseline)
        self.splits = part_of(load_fashion_mnist(), plan.images, plan.tested)

    def tasks(self) -> list[Task]:
        """Return one compression an arm."""
        return [Task(arm, self.plan.seed) for arm in self.plan.arms]

    def train(self, task: Task) -> Compressed:
        """Compress the running model, or go on where it was interrupted, or read what is finished."""
        plan = self.plan
        return compress(
            self.baseline, self.splits, budget=TARGETS, folder=self.folder / task.name,
            stages=(plan.student(task.arm), Quantize("ptq", INTEGERS)), batch_size=plan.batch_size, augmentation=AUGMENTATION,
            device="cpu", rounds=5,
        )  # fmt: skip


def record(experiment: Experiment, ledger: Ledger, *, threads: int = 1, rounds: int = 30, requests: int = REQUESTS) -> Table:
    """Measure the running model and every student, in floats and in integers, in turns on test; one row each, and combine-02.

    Args:
        experiment: with its compressions finished.
        ledger: where the rows go.
        threads: of all runtimes.
        rounds: samples of every latency.
        requests: served by the running model and by the first arm's integers, in turns.

    Returns:
        The targets beside what was reached.
    """
    example = experiment.splits.test.normalized()[:2]
    model, seed = experiment.baseline, experiment.plan.seed
    calibration = ResidentLoader(experiment.splits.train, 64, shuffle=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {BASELINE: export(model, example, folder / "floats.onnx")}
        files[INT8] = quantize(model, calibration, scheme=INTEGERS).export(folder / "integers.onnx")
        whole = {"parameters": count_parameters(model), "macs": count_macs(model, example)}
        sizes: dict[str, dict[str, int | None]] = {BASELINE: {**whole}, INT8: {**whole}}
        for task in experiment.tasks():
            found = experiment.train(task)
            student, integers = found.stages
            own = {"parameters": student.measurement.parameters, "macs": student.measurement.macs, "seed": seed}
            for name, file in ((task.arm, student.path), (f"{task.arm}, int8", integers.path)):
                files[name], sizes[name] = file, own
        integral = [name for name in files if name.endswith("int8")]
        packed = {name: bytes_on_disk(pack_onnx(files[name], folder / "packed")) for name in integral}
        candidates = [Runtime(file, threads=threads).candidate(name, **sizes[name]) for name, file in files.items()]
        eager = Candidate.from_torch("baseline fp32", model, example, artefacts=[experiment.baseline_file])
        test = ResidentLoader(experiment.splits.test, 250)
        rows = measure_candidates([candidates[0], eager, *candidates[1:]], test, lesson=LESSON, threads=threads, rounds=rounds)
        shipped = f"{experiment.tasks()[0].arm}, int8"
        pictures = experiment.splits.test.normalized()[:64]
        gains = served_gains(Runtime(files[BASELINE], threads=1), Runtime(files[shipped], threads=1), pictures, requests)
    for row in rows:
        size = packed.get(row.subject, row.bytes)
        ledger.append(row if size is None else replace(row, values={**row.values, PACKED: float(size)}))
    before, after = (next(row for row in rows if row.subject == name) for name in (BASELINE, shipped))
    ledger.append(ClaimEvidence(claim="combine-02", lesson=LESSON, values=_cost(before, after, gains), note=f"{shipped}."))
    return recorded_targets(ledger)


def served_gains(before: Runtime, after: Runtime, pictures: Tensor, requests: int) -> list[float]:
    """Return how many times as many requests a CPU second answers behind the micro-batcher, of five rounds in turns, sorted."""
    rounds = [
        [
            serve_load(one, pictures, concurrency=8, requests=requests, max_batch=16).requests_per_cpu_second
            for one in (before, after)
        ]
        for _ in range(5)
    ]
    return sorted(fast / slow for slow, fast in rounds)


def _cost(before: Measurement, after: Measurement, gains: Sequence[float]) -> dict[str, float]:
    """Return what combine-02 asks for: served requests, CPU time, operations, and energy where a counter is readable."""
    name = "requests_per_cpu_second_gain"
    values = {name: median(gains), f"{name}_low": gains[0], f"{name}_high": gains[-1]}
    values["cpu_seconds_gain"] = before.values["cpu_seconds_per_image"] / after.values["cpu_seconds_per_image"]
    if before.macs and after.macs:
        values["macs_gain"] = before.macs / after.macs
    if before.energy_joules and after.energy_joules:
        values["energy_gain"] = before.energy_joules / after.energy_joules
    return values


def recorded_targets(ledger: Ledger) -> Table:
    """Return the course's targets beside what the newest recorded run reached; what was not recorded has no row."""
    ours = [row for row in ledger.measurements() if row.lesson == LESSON and PACKED in row.values]
    newest = newest_run(ours)
    columns = ("file", *(f"faster, batch {batch}" for batch in FASTER), "smaller", "smaller, packed", "points lost")
    title = "Targets and what was reached"
    targets = ("target", *(f"{times}×" for times in (*FASTER.values(), SMALLER, SMALLER_PACKED)), f"{POINTS:g} at most")
    if not newest:
        return Table(columns, [targets], NOTHING_RECORDED, title)
    base = next(row for row in newest if row.subject == BASELINE)
    return Table(columns, [targets, *(_reached(row, base) for row in newest if row.subject.endswith("int8"))], title=title)


def _reached(row: Measurement, base: Measurement) -> tuple[str, ...]:
    assert None not in (row.bytes, base.bytes, row.accuracy, base.accuracy)
    speeds = [str(speedup(base.latency[batch], row.latency[batch])) for batch in FASTER]
    smaller = [f"{base.bytes / size:.1f}×" for size in (row.bytes, row.values[PACKED])]  # type: ignore[operator]
    return row.subject, *speeds, *smaller, f"{100 * (base.accuracy - row.accuracy):.2f}"  # type: ignore[operator]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "capstone")
    parser.add_precision()
    parser.add_argument("--baseline", type=Path, help="another running model than the shipped one")
    parser.add_argument("--ship", type=Path, help="copy the first arm's integers to this file")
    options = parser.parse(arguments)
    plan = replace(REHEARSAL if options.rehearse else Plan(), precision=options.precision)
    baseline = options.baseline or data_directory() / "checkpoints" / "baseline.safetensors"
    leave_on_termination()
    torch.set_num_threads(options.threads)
    experiment = Experiment(plan, baseline, options.folder)
    train_in_processes(Experiment, (plan, baseline, options.folder), experiment.tasks(), options.jobs, options.threads)
    ledger = Ledger.local() if options.rehearse else Ledger.recorded()
    print(record(experiment, ledger, **({"rounds": 5, "requests": 64} if options.rehearse else {})))
    if options.ship is not None:
        copy_file(experiment.train(experiment.tasks()[0]).stages[-1].path, options.ship)
    print(f"Written to {ledger.path}; the files lie in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
