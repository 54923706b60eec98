"""The long search in miniature: scores are kept, the hand keeps the limit, each network is trained once, the books agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from cookbook.data import ResidentLoader, Splits
from cookbook.errors import CheckpointError, EvidenceError
from cookbook.evidence import Ledger
from cookbook.experiments.command import Task
from cookbook.experiments.search import rank_correlation, record, recorded_table
from cookbook.experiments.search_networks import HAND, REHEARSAL, SEARCHED, Experiment, Plan, Remembered, with_precision
from cookbook.measure import count_macs
from cookbook.search import Candidate, Score, SearchSpace
from cookbook.training import evaluate

SPACE = SearchSpace(depths=(8, 14), widths=((2, 4), (4, 8), (8, 16)))
TINY = replace(REHEARSAL, space=SPACE, images=60, statistics=40, trials=3, widths=(2, 3, 4), tested=60, sampled=5, limit=0.7)


SMALL_NET = '{"family": "resnet", "depth": 8, "width": 2}'


class Counted:
    """A clock that counts operations: latency is their share of the largest network's, whatever the machine does."""

    def __init__(self) -> None:
        self.asked: list[Candidate] = []

    def macs(self, candidate: Candidate) -> int:
        return count_macs(candidate.build(), torch.zeros(1, 1, 28, 28))

    def __call__(self, candidate: Candidate) -> float:
        self.asked.append(candidate)
        return self.macs(candidate) / self.macs(SPACE.largest)

    def describe(self) -> str:
        return "operations"


@pytest.fixture
def clock() -> Counted:
    return Counted()


@pytest.fixture
def experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits, clock: Any, one_thread: None
) -> Experiment:
    """Return the tiny plan."""
    monkeypatch.setattr("cookbook.experiments.search_networks.load_fashion_mnist", lambda: fashion_mnist)
    return Experiment(TINY, tmp_path / "runs", clock=clock)


def test_the_whole_is_done_once_and_recorded(
    experiment: Experiment, clock: Counted, tmp_path: Path, fashion_mnist: Splits
) -> None:
    with pytest.raises(EvidenceError, match="searched-seed0 was not chosen yet"):
        experiment.candidate(Task(SEARCHED, 0))
    found = experiment.choose()
    assert {name: [result.evaluations for result in results] for name, results in found.items()} == {
        name: [3, 3, 3] for name in ("random", "evolutionary", "tpe")
    }
    assert len(clock.asked) == len(set(clock.asked)), "a network was timed twice"
    for seed in TINY.seeds:
        assert experiment.candidate(Task(SEARCHED, seed)) == found["tpe"][seed].best_within(TINY.limit).candidate
    for task in experiment.tasks():
        experiment.train(task)
    assert not list(experiment.folder.glob("*seed*.state"))
    files = {file: file.stat().st_mtime_ns for file in experiment.folder.glob("*.safetensors")}
    assert len(files) == 1 + 2 * 3

    asked = len(clock.asked)
    again = Experiment(TINY, tmp_path / "runs", clock=clock)  # type: ignore[arg-type]
    assert again.choose() == found
    again.train(again.tasks()[0])
    assert len(clock.asked) == asked, "a score that lies in the folder was measured again"
    assert {file: file.stat().st_mtime_ns for file in files} == files

    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert not recorded_table(ledger).rows
    table = record(experiment, found, ledger)
    (row,) = ledger.claim_evidence("search-01")
    test = ResidentLoader(fashion_mnist.test.subset(60), 60)
    means = {
        arm: sum(100 * evaluate(experiment.network(Task(arm, seed)), test).accuracy for seed in TINY.seeds) / 3
        for arm in (SEARCHED, HAND)
    }
    assert row.values["gain_points"] == pytest.approx(means[SEARCHED] - means[HAND])
    assert (row.values["searched_accuracy"], row.values["hand_accuracy"]) == pytest.approx((means[SEARCHED], means[HAND]))
    chance = fmean(one.hypervolume - other.hypervolume for one, other in zip(found["tpe"], found["random"], strict=True))
    assert row.seeds == TINY.seeds and row.values["hypervolume_gain_tpe"] == pytest.approx(chance)
    assert [cells[1] for cells in table.rows][::2] == [f"{means[SEARCHED] - means[HAND]:+.2f}", f"{chance:+.4f}"]
    assert table.rows == recorded_table(ledger).rows
    assert row.values["rank_correlation_of_macs"] == pytest.approx(1.0), "this clock counts operations"


def test_the_hand_takes_the_slowest_of_a_depth_that_keeps_the_limit(experiment: Experiment, clock: Counted) -> None:
    accuracies = {8: 0.3, 14: 0.6}
    score = Remembered(lambda one: Score(accuracies[one.config.depth], clock(one)), experiment.folder.parent / "by-hand.json")
    chosen = experiment.by_hand(score)
    family = [SPACE.uniform(14, width) for width in TINY.widths]
    fitting = [one for one in family if clock(one) <= TINY.limit]
    assert fitting and chosen == max(fitting, key=clock)
    strict = Experiment(replace(TINY, limit=1e-6), experiment.folder.parent)
    with pytest.raises(EvidenceError, match="No network of the uniform family"):
        strict.by_hand(score)


def test_operations_that_say_nothing_have_no_correlation(experiment: Experiment, tmp_path: Path) -> None:
    reverse = Remembered(lambda one: Score(0.5, 1e6 / Counted().macs(one)), tmp_path / "reverse.json")
    assert rank_correlation(experiment, reverse) == pytest.approx(-1.0)


def test_an_interrupted_training_ends_as_an_undisturbed_one(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.folder.mkdir(parents=True)
    task = Task(HAND, 1)
    (experiment.folder / "chosen.json").write_text(json.dumps({task.name: SMALL_NET}))
    experiment.train(task)
    whole = experiment.network(task).state_dict()
    experiment.file(task).unlink()
    with pytest.raises(CheckpointError, match="There is no file"):
        experiment.network(task)
    with monkeypatch.context() as broken:
        broken.setattr("cookbook.experiments.search_networks.save", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiment.train(task)
    assert (experiment.folder / f"{task.name}.state").exists()
    experiment.train(task)
    again = experiment.network(task).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_plans_differ_in_their_folders_and_share_a_precision() -> None:
    plans = (TINY, REHEARSAL, Plan(), with_precision(Plan(), "bf16"))
    assert len({plan.digest() for plan in plans}) == 4
    assert {recipe.precision for recipe in (plans[3].supernet, plans[3].alone)} == {"bf16"}
