"""The long experiment behind prune-02 to prune-04, in trainings that can be interrupted (lesson 04).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.pruning --jobs 2 --precision bf16
    python -m cookbook.experiments.pruning --rehearse     a miniature in the quick profile: is everything in place?

First the baseline is cut to a half and a third of its measured latency; a sensitivity scan and the criteria compete on
validation before anything is trained. Small networks then show what criteria and fine-tuning are worth over seeds. The
cut baselines, and what Torch-Pruning's defaults leave at the same multiply-accumulates, are fine-tuned alike, distilled from
the unpruned model; the controls see hard labels alone, train the cut shape from scratch for the same total
of epochs, and train a narrower network of equal latency. Stages whose networks lie in the folder are
skipped; the same command resumes after any interruption. ``--part small`` and ``--part baseline`` do one half, with
its own evidence. Timing wants a machine that does nothing else.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from cookbook.data import ResidentLoader
from cookbook.deploy import Runtime, export
from cookbook.evidence import ClaimEvidence, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED, newest_run
from cookbook.experiments.command import Options, Task, leave_on_termination, run, train_in_processes
from cookbook.experiments.pruning_networks import Experiment
from cookbook.experiments.pruning_plan import plan_of
from cookbook.files import data_directory
from cookbook.measure import (
    Timing,
    compare_seeds,
    count_macs,
    count_parameters,
    measure_candidates,
    speedup,
)
from cookbook.pruning import MACs, prune
from cookbook.training import evaluate

LESSON = "04"
PARTS = {"small": ("small", "small-tuned"), "baseline": ("baseline", "controls")}
AT_HALF_MACS = "at_half_macs"
SUBJECT = "pruning: "  # begins the name of a measured network
ASKED_POINTS = {"half": -0.3, "third": -0.6}  # what the course set itself before anything was trained
NETWORKS = {
    "baseline": "the running model, unpruned",
    "half": "cut to half of the latency, distilled",
    "third": "cut to a third of the latency, distilled",
    "peer": "Torch-Pruning's defaults, MACs of the half, distilled",
    "half-hard": "control: the half, on hard labels",
    "scratch": "control: the half's shape from scratch, all epochs",
    "narrow": "control: uniformly narrower, the half's latency, from scratch",
}
Row = tuple[str, str]


class Scores:
    """Accuracies on test, in percent, of an experiment's networks.

    Args:
        experiment: with the networks trained that are asked for.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.test = ResidentLoader(experiment.splits.test.subset(experiment.plan.tested), 200)

    def of(self, model: nn.Module) -> float:
        """Return the accuracy of one network."""
        return 100 * evaluate(model, self.test).accuracy

    def over(self, arm: str, seeds: Sequence[int] | None = None) -> list[float]:
        """Return the accuracies of an arm, seed by seed.

        Raises:
            CheckpointError: a training is missing.
        """
        own = self.experiment
        return [self.of(own.network(Task(arm, seed))) for seed in (own.plan.seeds if seeds is None else seeds)]


def record_small(experiment: Experiment, ledger: Ledger) -> list[Row]:
    """Evaluate the small networks on test, once, and append what prune-03 and prune-04 need.

    Args:
        experiment: with its small networks trained.
        ledger: where the rows go.

    Returns:
        One row a comparison.

    Raises:
        CheckpointError: a training is missing.
    """
    plan, scores = experiment.plan, Scores(experiment)
    tuned = {name: scores.over(f"small-{name}") for name in plan.criteria}
    raw = {name: [scores.of(experiment.cut_small(name, seed)) for seed in plan.seeds] for name in plan.criteria}
    gains = {name: compare_seeds(tuned["random"], tuned[name]) for name in plan.criteria if name != "random"}
    lesser = min((name for name in ("l1", "gamma") if name in gains), key=lambda name: gains[name].difference)
    values = gains[lesser].bounded("least_gain_points")
    values |= {f"gain_points_{name}": gain.difference for name, gain in gains.items()}
    values |= {f"gain_points_{name}_before": fmean(raw[name]) - fmean(raw["random"]) for name in gains}
    precision = plan.original.precision
    note = f"{plan.small.depth} layers of width {plan.small.width}, {plan.images:,} images, half of the channels, {precision}."
    ledger.append(ClaimEvidence(claim="prune-03", lesson=LESSON, values=values, seeds=plan.seeds, note=note))

    unpruned, fine, scratch = fmean(scores.over("small")), tuned["l1"], scores.over("small-scratch")
    against_scratch = compare_seeds(scratch, fine)
    values = {"recovered_share": (fmean(fine) - fmean(raw["l1"])) / (unpruned - fmean(raw["l1"]))}
    values |= {"unpruned_accuracy": unpruned, "tuned_accuracy": fmean(fine), "scratch_accuracy": fmean(scratch)}
    values |= against_scratch.bounded("gain_over_scratch_points") | {"epochs_share": plan.share}
    ledger.append(ClaimEvidence(claim="prune-04", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    rows = [(f"{name} over chance, small", str(gain)) for name, gain in gains.items()]
    return [*rows, ("fine-tuned over from scratch, small", str(against_scratch))]


def record_baseline(experiment: Experiment, ledger: Ledger, *, threads: int = 1, rounds: int = 30) -> list[Row]:
    """Evaluate what became of the baseline on test, once, and append what prune-02 needs, and the measured networks.

    Args:
        experiment: with the networks cut from the baseline, and their controls, trained.
        ledger: where the rows go.
        threads: of the timed runtimes.
        rounds: samples of every latency.

    Returns:
        One row a comparison.

    Raises:
        CheckpointError: a training is missing.
    """
    plan, scores = experiment.plan, Scores(experiment)
    whole = scores.of(experiment.model)
    arms = {arm: scores.over(arm) for arm in (*plan.latencies, "peer")}
    controls = {arm: scores.over(arm, plan.control_seeds) for arm in ("half-hard", "scratch", "narrow")}
    against_peer = compare_seeds(arms["peer"], arms["half"])
    paired = [arms["half"][plan.seeds.index(seed)] for seed in plan.control_seeds]
    values: dict[str, float] = {}
    for arm, found in arms.items():
        values |= compare_seeds([whole] * len(found), found).bounded(f"points_{arm}")
    values |= {f"points_{arm}": fmean(found) - whole for arm, found in controls.items()}
    values |= {f"seeds_{arm}": len(found) for arm, found in (arms | controls).items()}
    values |= {f"points_over_{arm}": fmean(paired) - fmean(found) for arm, found in controls.items()}
    values |= against_peer.bounded("points_over_peer")
    values |= _speeds(experiment, ledger, scores.test, threads, rounds)
    note = "half and third: shares of the latency, distilled; peer: Torch-Pruning's defaults at the MACs of half; "
    note += f"{plan.original.precision}."
    ledger.append(ClaimEvidence(claim="prune-02", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return [
        ("half over peer", str(against_peer)),
        *((name.replace("_", " "), f"{value:.3f}") for name, value in values.items()),
    ]


def _speeds(experiment: Experiment, ledger: Ledger, test: ResidentLoader, threads: int, rounds: int) -> dict[str, float]:
    """Measure one network of each arm in turns in ONNX Runtime, append the rows, and return speed-ups and the peer's MACs."""
    plan = experiment.plan
    seed, control = plan.seeds[0], plan.control_seeds[0]
    example = experiment.example
    models: dict[str, nn.Module] = {"baseline": experiment.model}
    models |= {
        f"{AT_HALF_MACS}_multiple{multiple}": prune(experiment.model, example, target=MACs(0.5), multiple=multiple).model
        for multiple in (plan.multiple, 2 * plan.multiple)
    }
    models |= {arm: experiment.network(Task(arm, seed)) for arm in (*plan.latencies, "peer")}
    models |= {arm: experiment.network(Task(arm, control)) for arm in ("half-hard", "scratch", "narrow")}
    macs = {name: count_macs(model, example) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for name, model in models.items():
            runtime = Runtime(export(model, example, Path(folder) / f"{name}.onnx"), threads=threads)
            size = {"parameters": count_parameters(model), "macs": macs[name]}
            candidates.append(runtime.candidate(SUBJECT + name, seed=seed if name in plan.latencies else None, **size))
        measured = measure_candidates(candidates, test, lesson=LESSON, threads=threads, rounds=rounds)
    for row in measured:
        if AT_HALF_MACS not in row.subject:  # not fine-tuned: its accuracy would mislead in a table
            ledger.append(row)
    times: dict[tuple[str, int], Timing] = {
        (name, batch): timing for name, row in zip(models, measured, strict=True) for batch, timing in row.latency.items()
    }
    values = {"macs_peer_over_half": macs["peer"] / macs["half"]}
    for name, other in (*((name, "baseline") for name in models if name != "baseline"), ("half", "peer"), ("half", "narrow")):
        for batch in (1, 64):
            ratio = speedup(times[other, batch], times[name, batch])
            key = f"speedup_{name}" if other == "baseline" else f"speedup_{name}_over_{other}"
            values |= {f"{key}_batch{batch}": ratio.value}
            if batch == 1 and (name.startswith(AT_HALF_MACS) or other != "baseline"):
                values |= {f"{key}_batch1_low": ratio.low, f"{key}_batch1_high": ratio.high}
    as_in_the_lesson = f"speedup_{AT_HALF_MACS}_multiple{2 * plan.multiple}"
    for end in ("", "_low", "_high"):  # the name that the claim's rule reads
        values[f"speedup_{AT_HALF_MACS}{end}"] = values.pop(f"{as_in_the_lesson}_batch1{end}")
    return values | {f"speedup_{AT_HALF_MACS}_batch64": values.pop(f"{as_in_the_lesson}_batch64")}


def recorded_networks(ledger: Ledger) -> Table:
    """Return what the newest recorded run made of the running model, and the controls; what was not recorded has no row."""
    columns = ("network", "seeds", "points on test", "asked", "MACs", "speed, batch 1", "speed, batch 64")
    title = "The running model cut to a latency, recorded"
    evidence = [row for row in ledger.claim_evidence("prune-02") if "points_half" in row.values]
    if not evidence:
        return Table(columns, (), NOTHING_RECORDED, title)
    values = evidence[-1].values
    ours = [row for row in ledger.measurements() if row.subject.startswith(SUBJECT)]
    newest = {row.subject.removeprefix(SUBJECT): row for row in newest_run(ours)}
    whole = newest.pop("baseline")
    cells: list[tuple[str, ...]] = [(NETWORKS["baseline"], "", "", "", "1.00", "1.00×", "1.00×")]
    for arm, row in newest.items():
        points = f"{values[f'points_{arm}']:+.2f}"
        if f"points_{arm}_low" in values:
            points += f" [{values[f'points_{arm}_low']:+.2f}, {values[f'points_{arm}_high']:+.2f}]"
        asked = f"{ASKED_POINTS[arm]:+.1f}" if arm in ASKED_POINTS else ""
        macs = f"{row.macs / whole.macs:.2f}" if row.macs and whole.macs else ""
        speeds = [str(speedup(whole.latency[batch], row.latency[batch])) for batch in sorted(whole.latency)]
        cells.append((NETWORKS[arm], f"{values[f'seeds_{arm}']:.0f}", points, asked, macs, *speeds))
    half_over_peer = [values[f"points_over_peer{end}"] for end in ("", "_low", "_high")]
    note = "The half over the peer, paired by seed: {:+.2f} [{:+.2f}, {:+.2f}] points. ".format(*half_over_peer)
    finer = f"speedup_{AT_HALF_MACS}_multiple"
    (multiple,) = [name.removeprefix(finer).removesuffix("_batch1") for name in values if fnmatch(name, f"{finer}*_batch1")]
    note += f"Half of the MACs alone, as in this lesson: {values[f'speedup_{AT_HALF_MACS}']:.2f}×, but "
    note += f"{values[f'{finer}{multiple}_batch1']:.2f}× where widths are multiples of {multiple} only. "
    if any(values.get(f"points_{arm}_low") == values.get(f"points_{arm}_high", math.nan) for arm in newest):
        note += "An interval without width says that the few seeds happened to agree, not that a further one would. "
    return Table(columns, cells, note + evidence[-1].note, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "pruning")
    parser.add_precision()
    parser.add_argument("--part", choices=tuple(PARTS), help="one half alone: the small networks, or the baseline's")
    parser.add_argument("--baseline", type=Path, help="another unpruned model than the shipped one, with its record beside it")
    options = parser.parse(arguments)
    baseline = options.baseline or data_directory() / "checkpoints" / "baseline.safetensors"
    leave_on_termination()
    torch.set_num_threads(options.threads)
    plan = plan_of(baseline.with_suffix(".json"), rehearse=options.rehearse, precision=options.precision)
    experiment = Experiment(plan, baseline, options.folder)
    parts = [options.part] if options.part else list(PARTS)
    if "baseline" in parts:
        experiment.prepare()
        torch.set_num_threads(options.jobs * options.threads)  # this process asks the model while no other computes
        experiment.answers()
    ledger, rows = Ledger.local() if options.rehearse else Ledger.recorded(), list[Row]()
    for part in parts:
        for stage in PARTS[part]:
            left = [task for task in experiment.tasks(stage) if not experiment.file(task).exists()]
            train_in_processes(Experiment, (plan, baseline, options.folder), left, options.jobs, options.threads)
        rows += (record_small if part == "small" else record_baseline)(experiment, ledger)
    print(Table(("comparison", "points on test, or times faster"), rows, title="Pruning, the long experiment"))
    print(f"Written to {ledger.path}; the networks lie in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
