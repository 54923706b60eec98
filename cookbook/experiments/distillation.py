"""The long experiment behind kd-01 and kd-02, in trainings that can be interrupted (lesson 06).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.distillation --jobs 2 --precision bf16
    python -m cookbook.experiments.distillation --rehearse     a miniature in the quick profile: is everything in place?

Four stages, each skipped where its results lie in the folder already: the teacher answers for every fixed
view; the students with a tenth of the labels are trained at several temperatures; the one temperature that
is best on validation is used with all labels; everything is evaluated on test once, and the evidence is
appended to the committed ledger. The same command resumes after any interruption.

Every arm sees the same views in the same order from the same first weights, seed by seed, for the same
number of steps. ``fresh`` is a second control: hard labels with a new augmentation in every epoch instead of
fixed views, in case those handicap the control.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from cookbook.data import ResidentLoader
from cookbook.deploy import Runtime, export
from cookbook.evidence import ClaimEvidence, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED
from cookbook.experiments.command import Options, leave_on_termination, run, train_in_processes
from cookbook.experiments.distillation_students import REHEARSAL, Experiment, Plan, Task
from cookbook.files import data_directory
from cookbook.measure import Candidate, compare_seeds, count_macs, count_parameters, measure_candidates
from cookbook.training import evaluate

LESSON = "06"
COMPARISONS = {
    "gain_points": "all labels: the teacher's answers over hard labels",
    "gain_points_fresh": "all labels: over hard labels with new augmentation in each epoch",
    "gain_points_tenth": "a tenth of the labels: the teacher's answers over hard labels",
    "gain_points_tenth_unlabelled": "a tenth of the labels: answers for all images over hard labels",
    "temperature_spread_points": "a tenth of the labels: the best temperature on validation over the worst",
}


def record(experiment: Experiment, ledger: Ledger, *, threads: int = 1, rounds: int = 30) -> Table:
    """Evaluate every student on test, once, and append what kd-01 and kd-02 need, and the measured students.

    Args:
        threads: of the timed runtimes.
        rounds: samples of every latency.

    Returns:
        One row a comparison.

    Raises:
        EvidenceError: a training is missing.
    """
    best = experiment.ranked_temperatures()[0]
    if len(experiment.plan.temperatures) > 1:
        sweep, rows = record_temperatures(experiment, ledger)
    else:
        sweep, rows = {best: _scores(experiment, "tenth-soft", best)}, []
    rows = record_gains(experiment, ledger, sweep) + rows
    _measure(experiment, best, ledger, ResidentLoader(experiment.splits.test, 500), threads, rounds)
    return Table(("comparison", "points on test"), rows, title=f"Distillation, temperature {best:g}")


def record_temperatures(experiment: Experiment, ledger: Ledger) -> tuple[dict[float, list[float]], list[tuple[str, str]]]:
    """Append kd-02: what the temperature is worth with a tenth of the labels.

    The best on validation is compared with the worst on validation, so that neither was chosen on the pictures that judge it.

    Returns:
        The accuracy on test of each temperature's students, and a row for the table.

    Raises:
        EvidenceError: a training with a tenth of the labels is missing.
    """
    plan, ranking = experiment.plan, experiment.ranked_temperatures()
    best, worst = ranking[0], ranking[-1]
    sweep = {temperature: _scores(experiment, "tenth-soft", temperature) for temperature in plan.temperatures}
    swing = compare_seeds(sweep[worst], sweep[best])
    values = swing.bounded("temperature_spread_points") | {"best_temperature": best, "worst_temperature": worst}
    values |= {f"accuracy_T{temperature:g}": fmean(found) for temperature, found in sweep.items()}
    note = f"a tenth of {plan.images:,} images; best and worst temperature by validation; {plan.precision}."
    ledger.append(ClaimEvidence(claim="kd-02", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return sweep, [("temperature spread", str(swing))]


def record_gains(experiment: Experiment, ledger: Ledger, sweep: dict[float, list[float]]) -> list[tuple[str, str]]:
    """Append kd-01: what the teacher's answers are worth against its controls, paired over the seeds.

    Args:
        sweep: as `record_temperatures` returns it.

    Returns:
        One row a comparison.

    Raises:
        EvidenceError: a training is missing.
    """
    plan, best = experiment.plan, experiment.ranked_temperatures()[0]
    hard, soft, tenth_hard = (_scores(experiment, *arm) for arm in (("hard",), ("soft", best), ("tenth-hard",)))
    fresh = _scores(experiment, "fresh", seeds=plan.fresh_seeds)
    paired_with_fresh = [soft[plan.seeds.index(seed)] for seed in plan.fresh_seeds]
    gains = {
        "gain_points": compare_seeds(hard, soft),
        "gain_points_fresh": compare_seeds(fresh, paired_with_fresh),
        "gain_points_tenth": compare_seeds(tenth_hard, sweep[best]),
        "gain_points_tenth_unlabelled": compare_seeds(tenth_hard, _scores(experiment, "unlabelled", best)),
    }
    means = {"student_accuracy": soft, "hard_accuracy": hard, "tenth_hard_accuracy": tenth_hard, "fresh_accuracy": fresh}
    values = {name: fmean(found) for name, found in means.items()}
    test = ResidentLoader(experiment.splits.test, 500)
    values |= {"teacher_accuracy": 100 * evaluate(experiment.teacher, test).accuracy, "temperature": best}
    values |= {"epochs": plan.epochs, "tenth_epochs": plan.tenth_epochs, "views": plan.views, "alpha": plan.alpha}
    for name, comparison in gains.items():
        values |= comparison.bounded(name)
    note = (
        f"{plan.images:,} images in {plan.views} fixed views, {plan.precision}; fresh: new augmentation each epoch, "
        f"{len(fresh)} seeds."
    )
    ledger.append(ClaimEvidence(claim="kd-01", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return [(name.replace("_", " "), str(comparison)) for name, comparison in gains.items()]


def recorded_table(ledger: Ledger) -> Table:
    """Return the newest recorded comparisons of kd-01 and kd-02 in a ledger; what was not recorded has no row."""
    newest = [found[-1] for claim in ("kd-01", "kd-02") if (found := ledger.claim_evidence(claim))]
    cells = [
        (
            words, f"{row.values[name]:+.2f}", f"[{row.values[f'{name}_low']:+.2f}, {row.values[f'{name}_high']:+.2f}]",
        )
        for name, words in COMPARISONS.items()
        for row in newest
        if name in row.values
    ]  # fmt: skip
    notes = []
    for row in newest:
        means = {name.removeprefix("accuracy_"): value for name, value in row.values.items() if "accuracy" in name}
        named = ", ".join(f"{name.removesuffix('_accuracy').replace('_', ' ')} {mean:.2f}%" for name, mean in means.items())
        notes.append(f"{row.claim}, {len(row.seeds)} seeds: {named}; {row.note}")
    title, columns = "The long experiment, recorded", ("comparison", "points on test", "interval over the seeds")
    return Table(columns, cells, "\n".join(notes) or NOTHING_RECORDED, title)


def _scores(
    experiment: Experiment, arm: str, temperature: float | None = None, *, seeds: Sequence[int] | None = None
) -> list[float]:
    """Return the accuracy of an arm's students on test, in percent."""
    test = ResidentLoader(experiment.splits.test, 500)
    tasks = [Task(arm, seed, temperature) for seed in seeds or experiment.plan.seeds]
    return [100 * evaluate(experiment.student(task), test).accuracy for task in tasks]


def _measure(experiment: Experiment, best: float, ledger: Ledger, test: ResidentLoader, threads: int, rounds: int) -> None:
    """Measure teacher and one student of each kind, the first seed's, in turns in ONNX Runtime."""
    seed = experiment.plan.seeds[0]
    models = {
        "teacher": experiment.teacher,
        "student, hard labels": experiment.student(Task("hard", seed)),
        "student, distilled": experiment.student(Task("soft", seed, best)),
    }
    example = experiment.splits.test.normalized()[:1]
    with tempfile.TemporaryDirectory() as folder:
        candidates: list[Candidate] = []
        for number, (name, model) in enumerate(models.items()):
            runtime = Runtime(export(model, example, Path(folder) / f"{number}.onnx"), threads=threads)
            size = {"parameters": count_parameters(model), "macs": count_macs(model, example)}
            candidates.append(runtime.candidate(name, seed=None if name == "teacher" else seed, **size))
        for row in measure_candidates(candidates, test, lesson=LESSON, threads=threads, rounds=rounds):
            ledger.append(row)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "distillation")
    parser.add_precision()
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="over all labels")
    parser.add_argument("--views", type=int, default=Plan.views, help="fixed augmented copies of every image")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=Plan.temperatures,
        help="tried with a tenth of the labels; one alone, if the ledger says already which is best on validation (kd-02)",
    )  # fmt: skip
    parser.add_argument("--teacher", type=Path, help="another teacher than the shipped baseline")
    options = parser.parse(arguments)
    full = Plan(epochs=options.epochs, views=options.views, temperatures=tuple(options.temperatures))
    plan = replace(REHEARSAL if options.rehearse else full, precision=options.precision)
    teacher = options.teacher or data_directory() / "checkpoints" / "baseline.safetensors"
    leave_on_termination()
    torch.set_num_threads(options.jobs * options.threads)  # this process asks the teacher while no other computes
    experiment = Experiment(plan, teacher, options.folder)
    for part in ("whole", "tenth"):
        experiment.answers(part)
    arguments_of_each = (plan, teacher, options.folder)
    for tasks in (experiment.tenth_tasks, experiment.whole_tasks):  # the second asks for what the first has found
        train_in_processes(Experiment, arguments_of_each, tasks(), options.jobs, options.threads)
    ledger = Ledger.local() if options.rehearse else Ledger.recorded()
    print(record(experiment, ledger))
    print(f"Written to {ledger.path}; the students lie in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
