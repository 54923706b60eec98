"""The experiment on combined techniques in miniature: equal epochs, one real compression, choice by validation, its books."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.data import Splits
from cookbook.errors import EvidenceError
from cookbook.evidence import ClaimEvidence, Ledger, Measurement
from cookbook.experiments import combination
from cookbook.experiments.combination import BASELINE, choose, measure, record, recorded_arms
from cookbook.experiments.combination_arms import CONTROL, ORDERS, REHEARSAL, Experiment, Plan, Task
from cookbook.measure import Timing
from cookbook.pipeline.folder import load_weights

TINY = replace(REHEARSAL, images=60, epochs=1, tested=64)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits) -> Experiment:
    """Return the tiny plan."""
    monkeypatch.setattr("cookbook.experiments.combination_arms.load_fashion_mnist", lambda: fashion_mnist)
    return Experiment(TINY, tmp_path)


def write_scores(experiment: Experiment, scores: Callable[[str, int], tuple[float, float]]) -> None:
    """Pretend that every compression is finished, with its accuracies on validation and on test."""
    experiment.folder.mkdir(parents=True, exist_ok=True)
    for task in experiment.arms():
        validation, test = scores(task.arm, task.seed)
        (experiment.folder / f"{task.name}.json").write_text(json.dumps({"validation": validation, "test": test}))


def test_every_arm_trains_the_same_epochs_on_top() -> None:
    plan = Plan()
    recipe = plan.recipe(0, plan.extra)
    for arm in (*plan.singles(), *plan.combinations()):
        stages = plan.stages(arm, 0)
        names = tuple(stage.name for stage in stages)
        epochs = sum(stage.epochs(recipe, names[at + 1 :]) for at, stage in enumerate(stages))
        assert epochs == plan.extra + (plan.epochs if arm.startswith("student") else 0), arm
    assert sorted(plan.combinations()) == sorted(" → ".join(order) for order in ORDERS) and len(ORDERS) == 6
    assert [stage.name for stage in plan.stages(" → ".join(ORDERS[3]), 0)] == list(ORDERS[3])
    assert plan.stages(CONTROL, 0)[0].describe()["alpha"] == 0.0


def test_a_student_is_trained_from_the_answers_and_what_is_finished_stays(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    (original, *_), student = experiment.originals(), Task("student of width 8", 0)
    with pytest.raises(EvidenceError, match="student_of_width_8-seed0 is not finished"):
        experiment.result(student)
    experiment.train(original)
    experiment.train(student)
    whole = experiment.original(0)
    weights = load_weights(whole, experiment.folder / student.name / "1-student" / "model.safetensors")
    assert weights.config.width == 8 and weights.stem[0].out_channels == 8 and weights.head.in_features == 32
    result = experiment.result(student)
    assert 0 <= result.validation <= 100 and experiment.file(student).is_file()
    assert not list(experiment.folder.glob("original*.state"))
    running, measured = measure(experiment, (student.arm,), threads=1, rounds=3).values()
    assert (running.subject, measured.subject) == (BASELINE, student.arm) and {running.split, measured.split} == {"test"}
    assert measured.accuracy == pytest.approx(result.test / 100) and measured.macs < running.macs / 100  # type: ignore[operator]
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    monkeypatch.setattr("cookbook.experiments.combination_arms.compress", lambda *arguments, **settings: 1 / 0)
    for task in (original, student):
        experiment.train(task)
    assert all(torch.equal(value, before[name]) for name, value in experiment.original(0).state_dict().items())


def test_validation_and_the_clock_choose(experiment: Experiment) -> None:
    first, last = experiment.plan.combinations()
    scores = {CONTROL: 90.0, "pruned to 0.5": 85.0, "quantized": 79.0, first: 88.0, last: 81.0}
    write_scores(experiment, lambda arm, seed: (scores.get(arm, 90.0), 0.0))
    seconds = dict.fromkeys(experiment.plan.singles(), 4.0) | {"pruned to 0.5": 2.0, "quantized": 1.0, first: 1.5, last: 1.0}
    found = choose(experiment, seconds)
    assert (found.single, found.combined) == ("pruned to 0.5", last)
    assert (found.best_order, found.worst_order) == (first, last)
    write_scores(experiment, lambda arm, seed: (90.0 if arm == CONTROL else 50.0, 99.0))
    none = choose(experiment, seconds)
    assert (none.single, none.combined) == (CONTROL, CONTROL), "who loses too much is not compared, whatever test says"


def test_what_was_chosen_is_recorded(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = experiment.plan.combinations()
    tests = {CONTROL: 90.0, first: 89.0, last: 86.0}
    write_scores(experiment, lambda arm, seed: (90.0 - (arm == last), tests.get(arm, 88.0) + seed))

    def measured(experiment: Experiment, arms: tuple[str, ...], threads: int, rounds: int) -> dict[str, Measurement]:
        seconds = {CONTROL: 8.0, "quantized": 4.0, first: 2.0}
        return {
            arm: Measurement(subject=arm, lesson="08", runtime="none", bytes=1,
                             latency={batch: Timing((seconds.get(arm, 9.0),) * 3, batch, 1) for batch in (1, 64)})
            for arm in arms
        }  # fmt: skip

    monkeypatch.setattr(combination, "measure", measured)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert not recorded_arms(ledger).rows
    ledger.append(ClaimEvidence(claim="combine-01", lesson="08", values={"speedup_combined": 2.0}))
    assert not recorded_arms(ledger).rows, "a lesson's own evidence has no arms"
    ledger.append(Measurement(subject=last, lesson="08", runtime="of an older run", recorded="2000-01-01T00:00:00+00:00"))
    table = record(experiment, ledger)
    cells = {row[0]: row[1:] for row in table.rows}
    assert list(cells) == [*experiment.plan.singles(), first, last] and table.rows == recorded_arms(ledger).rows
    assert cells[first][:3] == ("90.00 %", "-1.00 [-1.00, -1.00]", "4.00× [4.00, 4.00]") and cells[CONTROL][3][:4] == "1.00"
    evidence = ledger.claim_evidence("combine-01")[-1]
    values = evidence.values
    assert evidence.seeds == (0, 1, 2) and f"{first} against quantized" in evidence.note
    assert (values["speedup_over_best_single"], values["speedup_combined"], values["speedup_single"]) == (2.0, 4.0, 2.0)
    assert (values["points_gained_combined"], values["points_gained_single"]) == (-1.0, -2.0)
    assert values["points_between_orders"] == 3.0 and values["accuracy_prune-distill-quantize"] == 90.0
    assert [row.subject for row in ledger.measurements()][1:] == [*experiment.plan.singles(), first, last]


def test_plans_differ_in_their_folders() -> None:
    assert len({plan.digest() for plan in (TINY, REHEARSAL, Plan(), Plan(extra=9))}) == 4
