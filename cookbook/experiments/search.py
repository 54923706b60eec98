"""The long experiment behind search-01, which can be interrupted (lesson 09).

    COOKBOOK_PROFILE=full python -m cookbook.experiments.search --jobs 2 --precision bf16
    python -m cookbook.experiments.search --rehearse     a miniature in the quick profile: is everything in place?

One supernet is trained. Three samplers then look for networks over several seeds; a network is scored once for all of them,
by its share of the weights and its latency in ONNX Runtime. The winners of TPE under a limit on the latency, and the best
network of the uniform family under the same limit, are trained alone from fresh weights with equal epochs, and judged on
test, once. The same command resumes after any interruption. The searching times networks, and wants a machine that does
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from cookbook.data import ResidentLoader
from cookbook.evidence import ClaimEvidence, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED
from cookbook.experiments.command import Options, Task, leave_on_termination, run, train_in_processes
from cookbook.experiments.search_networks import (
    HAND,
    REHEARSAL,
    SAMPLERS,
    SEARCHED,
    Experiment,
    Plan,
    Remembered,
    with_precision,
)
from cookbook.measure import compare_seeds, count_macs
from cookbook.search import SearchResult
from cookbook.training import evaluate

LESSON = "09"
COMPARISONS = {
    "gain_points": ("searched over hand-made, points on test", "+.2f"),
    "hypervolume_gain_evolutionary": ("evolutionary over random, hypervolume", "+.4f"),
    "hypervolume_gain_tpe": ("TPE over random, hypervolume", "+.4f"),
}


def record(experiment: Experiment, found: dict[str, list[SearchResult]], ledger: Ledger) -> Table:
    """Judge the trained networks on test, once, and append what search-01 needs.

    Args:
        experiment: with its networks trained.
        found: from `Experiment.choose`.
        ledger: where the row goes.

    Returns:
        As `recorded_table`.

    Raises:
        CheckpointError: a training is missing.
    """
    plan, score = experiment.plan, experiment.score
    test = ResidentLoader(experiment.splits.test, min(500, len(experiment.splits.test)))
    scores = {
        arm: [100 * evaluate(experiment.network(Task(arm, seed)), test).accuracy for seed in plan.seeds]
        for arm in (SEARCHED, HAND)
    }
    gain = compare_seeds(scores[HAND], scores[SEARCHED])
    values = gain.bounded("gain_points") | {"latency_limit": plan.limit}
    latencies = {arm: fmean(score(experiment.candidate(Task(arm, seed))).latency for seed in plan.seeds) for arm in scores}
    values["latency_ratio"] = latencies[SEARCHED] / latencies[HAND]
    values |= {"searched_accuracy": fmean(scores[SEARCHED]), "hand_accuracy": fmean(scores[HAND])}
    values["rank_correlation_of_macs"] = rank_correlation(experiment, score)
    ends = {name: [result.hypervolume for result in results] for name, results in found.items()}
    chance = {name: compare_seeds(ends["random"], ends[name]) for name in SAMPLERS[1:]}
    for name, comparison in chance.items():
        values |= comparison.bounded(f"hypervolume_gain_{name}")
    note = f"{plan.trials} networks a search; {plan.images:,} images; {plan.alone.epochs} epochs alone, {plan.alone.precision}."
    ledger.append(ClaimEvidence(claim="search-01", lesson=LESSON, values=values, seeds=plan.seeds, note=note))
    return recorded_table(ledger)


def recorded_table(ledger: Ledger) -> Table:
    """Return the comparisons of the newest recorded run, each with its interval; what was not recorded has no row."""
    columns, title = ("comparison", "difference", "interval over the seeds"), "The long experiment, recorded"
    recorded = ledger.claim_evidence("search-01")
    if not recorded:
        return Table(columns, (), NOTHING_RECORDED, title)
    values, seeds = recorded[-1].values, len(recorded[-1].seeds)
    cells = [
        (words, f"{values[name]:{digits}}", f"[{values[f'{name}_low']:{digits}}, {values[f'{name}_high']:{digits}}]")
        for name, (words, digits) in COMPARISONS.items()
    ]
    note = (
        f"Searched {values['searched_accuracy']:.2f} %, hand-made {values['hand_accuracy']:.2f} % over {seeds} seeds, at most "
        f"{values['latency_limit']:g} of the latency; the searched take {values['latency_ratio']:.2f} of the hand-made's time; "
        f"rank correlation of operations and latency {values['rank_correlation_of_macs']:.2f}. {recorded[-1].note}"
    )
    return Table(columns, cells, note, title)


def rank_correlation(experiment: Experiment, score: Remembered) -> float:
    """Return Spearman's correlation of operations and measured latency over networks that are drawn from the space."""
    plan, generator = experiment.plan, torch.Generator().manual_seed(0)
    sample = list(dict.fromkeys(plan.space.draw(generator) for _ in range(plan.sampled)))
    macs = torch.tensor([float(count_macs(one.build(), experiment.example)) for one in sample])
    latency = torch.tensor([score(one).latency for one in sample])
    ranks = torch.stack([values.argsort().argsort().double() for values in (macs, latency)])
    return float(torch.corrcoef(ranks)[0, 1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Options(str(__doc__), "search")
    parser.add_precision()
    options = parser.parse(arguments)
    plan = with_precision(REHEARSAL if options.rehearse else Plan(), options.precision)
    leave_on_termination()
    torch.set_num_threads(options.jobs * options.threads)  # the supernet is trained while no other process computes
    experiment = Experiment(plan, options.folder)
    found = experiment.choose()
    train_in_processes(Experiment, (plan, options.folder), experiment.tasks(), options.jobs, options.threads)
    ledger = Ledger.local() if options.rehearse else Ledger.recorded()
    print(record(experiment, found, ledger))
    print(f"Written to {ledger.path}; everything lies in {experiment.folder}.")


if __name__ == "__main__":
    run(main)
