"""The long experiment behind quant-02 to quant-05, in trainings that can be interrupted (lesson 05).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.quantization --jobs 2
    python -m cookbook.experiments.quantization --rehearse     a miniature in the quick profile: is everything in place?

First every network is trained: in float, on a long-tailed set, with rounding at several widths and for several numbers of
epochs, and, as the control of the last two, for the same extra epochs in float. Then all are evaluated on test once, and
the evidence is appended to the committed ledger. Only the shipped baseline is quantized without training. The same
command resumes after any interruption; ``--seeds 0`` trains some seeds only, so that several machines can share the work in
one folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from cookbook.data import ResidentLoader
from cookbook.deploy import Runtime, export
from cookbook.errors import UsageError
from cookbook.evidence import ClaimEvidence, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED
from cookbook.experiments.command import Options, leave_on_termination, run, train_in_processes
from cookbook.experiments.quantization_conditions import CORRUPTIONS, corrupted
from cookbook.experiments.quantization_runs import REHEARSAL, Experiment, Plan, Task
from cookbook.files import data_directory
from cookbook.measure import (
    SeedComparison,
    bytes_on_disk,
    compare_paired,
    compare_seeds,
    count_macs,
    count_parameters,
    measure_candidates,
)  # fmt: skip
from cookbook.models import load
from cookbook.quantization import Scheme, quantize, round_to_nearest, saturates
from cookbook.training import evaluate

LESSON = "05"
ENOUGH = 0.1  # points below the best budget that count as reached
RECORDED_COLUMNS = (
    "bits", "float epochs, then nearest", "trained with rounding", "gain, in points", "AdaRound, no extra epochs",
)  # fmt: skip


def record(experiment: Experiment, ledger: Ledger, baseline: Path, *, threads: int = 1, rounds: int = 30) -> Table:
    """Evaluate everything on test, once, and append what quant-02 to quant-05 need, and the measured baseline.

    Differences are paired over the seeds. The number of epochs is chosen on validation.

    Args:
        baseline: file with the running model.
        threads: of the timed runtimes.
        rounds: samples of every latency.

    Returns:
        One row a comparison.
    """
    rows = _conditions(experiment, ledger)
    rows += _widths(experiment, ledger)
    rows += _budgets(experiment, ledger)
    rows += _baseline(experiment, ledger, baseline, threads, rounds)
    return Table(("comparison", "points on test"), rows, title="Quantization of a small student, and of the baseline")


def recorded_widths(ledger: Ledger) -> Table:
    """Return the newest recorded comparison of widths in a ledger; one row a width, none where nothing was recorded."""
    recorded = ledger.claim_evidence("quant-04")
    if not recorded:
        return Table(RECORDED_COLUMNS, [], NOTHING_RECORDED, "Fewer bits, recorded")
    row, cells = recorded[-1], []
    values, first, last = row.values, "nearest_accuracy_", "bit"
    widths = [int(name.removeprefix(first).removesuffix(last)) for name in values if name.startswith(first)]
    for bits in sorted(widths, reverse=True):
        after, trained = (f"{values[f'{name}_accuracy_{bits}bit']:.2f}%" for name in ("nearest", "trained"))
        gain = [values[f"gain_points_{bits}bit{end}"] for end in ("", "_low", "_high")]
        learned = values.get(f"adaround_accuracy_{bits}bit")
        found = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain)
        cells.append((str(bits), after, trained, found, "not measured" if learned is None else f"{learned:.2f}%"))
    note = (
        f"Test, mean over {len(row.seeds)} seeds; {row.note} In float {values['float_accuracy']:.2f}%, "
        f"after the extra epochs {values['longer_accuracy']:.2f}%. Recorded {row.recorded[:10]}."
    )
    return Table(RECORDED_COLUMNS, cells, note, "Fewer bits, recorded")


def _accuracy(network: nn.Module, loader: ResidentLoader) -> float:
    return 100 * evaluate(network, loader).accuracy


def _rounded(experiment: Experiment, network: nn.Module, scheme: Scheme | None = None, images: int = 0) -> nn.Module:
    """Return a float network quantized after training."""
    return quantize(network, experiment.calibration(), scheme=scheme, images=images or experiment.plan.calibration).module


def _drop(networks: Sequence[nn.Module], quantized: Sequence[nn.Module], loader: ResidentLoader) -> SeedComparison:
    """Return how many points float lies above eight bits on the same images, over the seeds."""
    return compare_seeds(
        [_accuracy(module, loader) for module in quantized], [_accuracy(module, loader) for module in networks]
    )


def _conditions(experiment: Experiment, ledger: Ledger) -> list[tuple[str, str]]:
    """Record quant-03: what rounding costs under corruption, with few calibration images and with a long tail."""
    plan, test = experiment.plan, experiment.test
    networks = [experiment.network(Task("float", seed)) for seed in plan.seeds]
    eight = [_rounded(experiment, network) for network in networks]
    drops = {"clean": _drop(networks, eight, test)}
    for kind in CORRUPTIONS:
        drops[kind] = _drop(networks, eight, ResidentLoader(corrupted(test.split, kind), 500))
    for count in plan.counts:
        drops[f"{count}_images"] = _drop(networks, [_rounded(experiment, network, images=count) for network in networks], test)
    tailed = [experiment.network(Task("tail", seed)) for seed in plan.seeds]
    rounded = [quantize(network, experiment.calibration(tail=True), images=plan.calibration).module for network in tailed]
    drops["long_tail"] = _drop(tailed, rounded, test)
    fewest = f"{plan.counts[0]}_images"
    largest = max((*CORRUPTIONS, fewest, "long_tail"), key=lambda name: drops[name].difference)
    values = {f"{name}_drop_points": found.difference for name, found in drops.items()}
    values |= drops[largest].bounded("largest_drop_points")
    values["corrupted_drop_points"] = max(drops[kind].difference for kind in CORRUPTIONS)
    values["fewest_images_drop_points"] = drops[fewest].difference
    note = f"8 bits after training against float on the same images; the largest drop is that of {largest.replace('_', ' ')}."
    ledger.append(ClaimEvidence(claim="quant-03", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return [(f"lost to 8 bits after training, {name.replace('_', ' ')}", str(found)) for name, found in drops.items()]


def _widths(experiment: Experiment, ledger: Ledger) -> list[tuple[str, str]]:
    """Record quant-04: training with rounding against the same epochs in float, and AdaRound against the nearest."""
    plan, test = experiment.plan, experiment.test
    longer = [experiment.network(Task("longer", seed)) for seed in plan.seeds]
    floats = [experiment.network(Task("float", seed)) for seed in plan.seeds]
    reference = [_accuracy(network, test) for network in longer]
    values = {"float_accuracy": fmean(_accuracy(network, test) for network in floats), "longer_accuracy": fmean(reference)}
    rows = []

    def nearest(networks: Sequence[nn.Module], bits: int) -> list[float]:
        scheme = Scheme(weight_bits=bits)
        if bits < 8:  # the ranges that AdaRound has, so that rounding alone differs
            networks = [round_to_nearest(network, experiment.example, scheme=scheme) for network in networks]
        return [_accuracy(_rounded(experiment, network, scheme), test) for network in networks]

    for bits in plan.widths:
        trained = [_accuracy(experiment.network(Task("rounded", seed, bits, plan.extra)), test) for seed in plan.seeds]
        after = nearest(longer, bits)
        gain = compare_seeds(after, trained)
        values |= gain.bounded(f"gain_points_{bits}bit")
        values |= {f"trained_accuracy_{bits}bit": fmean(trained), f"nearest_accuracy_{bits}bit": fmean(after)}
        values[f"drop_points_{bits}bit"] = fmean(reference) - fmean(trained)
        rows.append((f"{bits} bits, trained with rounding − float epochs, then nearest", str(gain)))
    for bits in plan.learned_widths:
        learned = [experiment.learned_rounding(seed, bits) for seed in plan.seeds]
        scores = [_accuracy(_rounded(experiment, network, Scheme(weight_bits=bits)), test) for network in learned]
        gain = compare_seeds(nearest(floats, bits), scores)
        values |= gain.bounded(f"adaround_gain_points_{bits}bit")
        values[f"adaround_accuracy_{bits}bit"] = fmean(scores)
        rows.append((f"{bits} bits, AdaRound − nearest, after training", str(gain)))
    note = f"{plan.extra} extra epochs each over {plan.images:,} images; activations in 8 bits."
    ledger.append(ClaimEvidence(claim="quant-04", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return rows


def _budgets(experiment: Experiment, ledger: Ledger) -> list[tuple[str, str]]:
    """Record quant-05: the fewest epochs with rounding that come close to the best budget, on validation."""
    plan = experiment.plan
    scores = {
        epochs: [
            _accuracy(experiment.network(Task("rounded", seed, plan.budget_bits, epochs)), experiment.validation)
            for seed in plan.seeds
        ]
        for epochs in plan.budgets
    }
    means = {epochs: fmean(found) for epochs, found in scores.items()}
    needed = min(epochs for epochs in plan.budgets if means[epochs] >= max(means.values()) - ENOUGH)
    first, last = plan.budgets[0], plan.budgets[-1]
    gain = compare_seeds(scores[first], scores[last])
    values = {"epochs_needed": float(needed), "accuracy_fewest_epochs": means[first], "accuracy_most_epochs": means[last]}
    values |= {f"accuracy_{epochs}_epochs": mean for epochs, mean in means.items()} | gain.bounded("gain_points_most_epochs")
    note = f"{plan.budget_bits}-bit weights, one schedule a budget, on validation; needed: within {ENOUGH} points of the best."
    ledger.append(ClaimEvidence(claim="quant-05", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return [(f"{last} epochs with rounding − {first}, {plan.budget_bits} bits, on validation", str(gain))]


def _baseline(experiment: Experiment, ledger: Ledger, baseline: Path, threads: int, rounds: int) -> list[tuple[str, str]]:
    """Record quant-02, and the running model in float and in eight bits, side by side in ONNX Runtime."""
    model, test = load(baseline), experiment.test
    scheme = Scheme(reduce_range=saturates())
    size = {"parameters": count_parameters(model), "macs": count_macs(model, experiment.example)}
    with tempfile.TemporaryDirectory() as folder:
        floats = export(model, experiment.example, Path(folder) / "float.onnx")
        small = quantize(model, experiment.calibration(), scheme=scheme, images=experiment.plan.calibration)
        integers = small.export(Path(folder) / "int8.onnx")
        runtimes = {
            "baseline fp32, exported": Runtime(floats, threads=threads),
            "baseline int8, PTQ": Runtime(integers, threads=threads),
        }
        candidates = [runtime.candidate(name, **size) for name, runtime in runtimes.items()]
        for row in measure_candidates(candidates, test, lesson=LESSON, threads=threads, rounds=rounds):
            ledger.append(row)
        right = [
            torch.cat([runtime(images).argmax(1) == labels for images, labels in test.batches(0)])
            for runtime in runtimes.values()
        ]
        ratio = bytes_on_disk(floats) / bytes_on_disk(integers)
    compared = compare_paired(right[0], right[1])
    values = {"bytes_ratio": ratio, "drop_points": -compared.difference}
    ledger.append(ClaimEvidence(claim="quant-02", lesson=LESSON, values=values, note=f"the baseline, {scheme}."))
    return [("baseline, int8 after training − float32, in ONNX Runtime", str(compared))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "quantization")
    parser.add_argument("--seeds", type=int, nargs="+", help="train these only, and record nothing")
    parser.add_argument("--baseline", type=Path, help="another running model than the shipped one")
    options = parser.parse(arguments)
    plan = REHEARSAL if options.rehearse else Plan()
    if options.seeds and not set(options.seeds) <= set(plan.seeds):
        raise UsageError(f"The plan has the seeds {plan.seeds}: name some of them.")
    leave_on_termination()
    torch.set_num_threads(options.threads)
    experiment = Experiment(plan, options.folder)
    for tasks in experiment.tasks(options.seeds or plan.seeds):
        train_in_processes(Experiment, (plan, options.folder), tasks, options.jobs, options.threads)
    if options.seeds:
        return
    ledger = Ledger.local() if options.rehearse else Ledger.recorded()
    baseline = options.baseline or data_directory() / "checkpoints" / "baseline.safetensors"
    print(record(experiment, ledger, baseline, threads=options.threads, rounds=5 if options.rehearse else 30))
    print(f"Written to {ledger.path}; the training states lie in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
