"""The long experiment behind combine-01, in compressions that can be interrupted (lesson 08).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.combination --jobs 2
    python -m cookbook.experiments.combination --rehearse     a miniature in the quick profile: is everything in place?

A small network is trained once a seed. Then pruning, distillation and quantization go on from it through
`cookbook.pipeline.compress`: each alone, and all three in every order. Every arm gets the same epochs on top, an order a third
of them for each stage; the control gets them in float with nothing removed. A technique alone may go further than it does in
an order: pruning removes more, and distillation teaches a narrower network from its first step.

Validation decides which single technique and which order count: the fastest file whose accuracy, in the mean over the
seeds, is within the plan's tolerance of the control's. All files are timed in turns. Test is looked at by each compression
at its end, and nothing is chosen by it. The same command resumes after any interruption.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from cookbook.data import ResidentLoader
from cookbook.deploy import Runtime, export
from cookbook.evidence import ClaimEvidence, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED, newest_run, quantity
from cookbook.experiments.combination_arms import CONTROL, REHEARSAL, Experiment, Plan
from cookbook.experiments.command import Options, Task, leave_on_termination, run, train_in_processes
from cookbook.files import data_directory
from cookbook.measure import (
    Candidate,
    Measurement,
    compare_seeds,
    count_macs,
    count_parameters,
    measure_candidates,
    speedup,
)
from cookbook.models import load
from cookbook.pipeline.folder import load_weights

LESSON = "08"
BASELINE = "baseline fp32, exported"


@dataclass(frozen=True)
class Choice:
    """What validation chose.

    Attributes:
        single: arm of the fastest single technique within the tolerance; the control where there is none.
        combined: likewise of the orders.
        best_order: the order with the highest mean accuracy.
        worst_order: the one with the lowest.
    """

    single: str
    combined: str
    best_order: str
    worst_order: str


def choose(experiment: Experiment, seconds: dict[str, float]) -> Choice:
    """Choose by validation accuracy and measured latency.

    Args:
        seconds: median latency of every arm's file.

    Raises:
        EvidenceError: a compression is not finished.
    """
    plan = experiment.plan
    means = {arm: fmean(experiment.scores(arm, "validation")) for arm in (*plan.singles(), *plan.combinations())}
    good = {arm for arm, mean in means.items() if mean >= means[CONTROL] - plan.tolerance_points}

    def fastest(arms: Sequence[str]) -> str:
        return min((arm for arm in arms if arm in good), key=lambda arm: seconds[arm], default=CONTROL)

    orders = sorted(plan.combinations(), key=lambda arm: means[arm])
    return Choice(fastest(plan.singles()), fastest(plan.combinations()), orders[-1], orders[0])


def record(experiment: Experiment, ledger: Ledger, *, threads: int = 1, rounds: int = 30) -> Table:
    """Measure one file of every arm in turns, compare the accuracies on test over the seeds, and append all that.

    Args:
        threads: of the timed runtimes.
        rounds: samples of every latency.

    Returns:
        As `recorded_arms`.

    Raises:
        EvidenceError: a compression is not finished.
    """
    plan = experiment.plan
    arms = (*plan.singles(), *plan.combinations())
    tests = {arm: experiment.scores(arm, "test") for arm in arms}
    measured = measure(experiment, arms, threads, rounds)
    timings = {arm: measured[arm].latency[1] for arm in arms}
    chosen = choose(experiment, {arm: timing.median for arm, timing in timings.items()})
    ratio = speedup(timings[chosen.single], timings[chosen.combined])
    values = {"speedup_over_best_single": ratio.value, "speedup_over_best_single_low": ratio.low}
    values |= {"speedup_over_best_single_high": ratio.high, "tolerance_points": plan.tolerance_points}
    values |= {"speedup_combined": speedup(timings[CONTROL], timings[chosen.combined]).value}
    values |= {"speedup_single": speedup(timings[CONTROL], timings[chosen.single]).value}
    spread = compare_seeds(tests[chosen.worst_order], tests[chosen.best_order])
    values |= spread.bounded("points_between_orders")
    values |= compare_seeds(tests[CONTROL], tests[chosen.combined]).bounded("points_gained_combined")
    values |= compare_seeds(tests[CONTROL], tests[chosen.single]).bounded("points_gained_single")
    for arm, found in tests.items():
        values |= {f"accuracy_{_key(arm)}": fmean(found)}
        values |= compare_seeds(tests[CONTROL], found).bounded(f"points_gained_{_key(arm)}")
    note = (
        f"Fastest within {plan.tolerance_points:g} points of the control on validation: {chosen.combined} against "
        f"{chosen.single}; best order {chosen.best_order}, worst {chosen.worst_order}; {plan.images:,} images, "
        f"{plan.epochs} and {plan.extra} epochs; {plan.precision}, with rounding fp32."
    )
    for row in measured.values():
        ledger.append(row)
    ledger.append(ClaimEvidence(claim="combine-01", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return recorded_arms(ledger)


def recorded_arms(ledger: Ledger) -> Table:
    """Return the arms of the newest recorded run, each beside the control; what was not recorded has no row."""
    columns = ("arm", "test", "points gained", "speed, batch 1", "speed, batch 64", "bytes")
    title = "The long experiment, recorded"
    evidence = [row for row in ledger.claim_evidence("combine-01") if f"accuracy_{_key(CONTROL)}" in row.values]
    if not evidence:
        return Table(columns, (), NOTHING_RECORDED, title)
    values = evidence[-1].values
    ours = [row for row in ledger.measurements() if row.lesson == LESSON and f"accuracy_{_key(row.subject)}" in values]
    newest = {row.subject: row for row in newest_run(ours)}
    control = newest[CONTROL]
    cells = []
    for arm, row in newest.items():
        gain, low, high = (values[f"points_gained_{_key(arm)}{bound}"] for bound in ("", "_low", "_high"))
        speeds = [str(speedup(control.latency[batch], row.latency[batch])) for batch in sorted(control.latency)]
        gained = f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells.append((arm, f"{values[f'accuracy_{_key(arm)}']:.2f} %", gained, *speeds, quantity(row.bytes, "B")))
    note = f"Against {CONTROL}, in the mean over {len(evidence[-1].seeds)} seeds. {evidence[-1].note}"
    return Table(columns, cells, note, title)


def _key(arm: str) -> str:
    """Return what the arm is called among the values of the evidence."""
    return Task(arm, 0).name.rpartition("-")[0]


def measure(experiment: Experiment, arms: Sequence[str], threads: int, rounds: int) -> dict[str, Measurement]:
    """Measure the running model and the first seed's file of every arm, in turns on test; one row each, by its name."""
    plan, seed = experiment.plan, experiment.plan.seeds[0]
    original = experiment.original(seed)
    example = experiment.splits.test.normalized()[:1]
    baseline = load(data_directory() / "checkpoints" / "baseline.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        whole = Runtime(export(baseline, example, Path(folder) / "baseline.onnx"), threads=threads)
        size = {"parameters": count_parameters(baseline), "macs": count_macs(baseline, example)}
        candidates: list[Candidate] = [whole.candidate(BASELINE, **size)]
        for arm in arms:
            task = Task(arm, seed)
            last = len(plan.stages(arm, seed))
            (weights,) = (experiment.folder / task.name).glob(f"{last}-*/model.safetensors")
            model = load_weights(original, weights)
            size = {"parameters": count_parameters(model), "macs": count_macs(model, example)}
            candidates.append(Runtime(experiment.file(task), threads=threads).candidate(arm, seed=seed, **size))
        test = ResidentLoader(experiment.splits.test, 250)
        rows = measure_candidates(candidates, test, lesson=LESSON, threads=threads, rounds=rounds)
    return {row.subject: row for row in rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "combination")
    parser.add_precision()
    options = parser.parse(arguments)
    plan = replace(REHEARSAL if options.rehearse else Plan(), precision=options.precision)
    leave_on_termination()
    torch.set_num_threads(options.threads)
    experiment = Experiment(plan, options.folder)
    for tasks in (experiment.originals(), experiment.arms()):
        train_in_processes(Experiment, (plan, options.folder), tasks, options.jobs, options.threads)
    ledger = Ledger.local() if options.rehearse else Ledger.recorded()
    print(record(experiment, ledger, rounds=5 if options.rehearse else 30))
    print(f"Written to {ledger.path}; the files lie in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
