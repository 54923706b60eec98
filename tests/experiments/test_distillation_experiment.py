"""The long experiment in miniature: it trains each student once, resumes, chooses on validation and records what it paired."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.data import Splits
from cookbook.errors import EvidenceError
from cookbook.evidence import Ledger
from cookbook.experiments import distillation
from cookbook.experiments.distillation import record, record_temperatures, recorded_table
from cookbook.experiments.distillation_students import REHEARSAL, Experiment, Plan, Task
from cookbook.models import ResNetConfig, build, load, save

TINY = replace(REHEARSAL, images=200, tenth_epochs=1, batch_size=10, student=ResNetConfig(depth=8, width=2, stem_stride=2))


@pytest.fixture
def experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits, request: pytest.FixtureRequest
) -> Experiment:
    """Return the tiny plan on a part of the validation and the test images."""
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    small = replace(fashion_mnist, validation=fashion_mnist.validation.subset(100), test=fashion_mnist.test.subset(100))
    monkeypatch.setattr("cookbook.experiments.distillation_students.load_fashion_mnist", lambda: small)
    torch.manual_seed(0)
    teacher = save(build(ResNetConfig(depth=8, width=2)), tmp_path / "teacher.safetensors")
    return Experiment(TINY, teacher, tmp_path / "runs")


def test_every_pair_is_trained_once_and_recorded(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EvidenceError, match="tenth-soft-seed0-T1 was not trained yet"):
        experiment.whole_tasks()
    for stage in (experiment.tenth_tasks, experiment.whole_tasks):
        for task in stage():
            experiment.train(task)
    assert not list(experiment.folder.glob("*.state"))
    trained = {file: file.stat().st_mtime_ns for file in experiment.folder.glob("*.safetensors")}
    assert len(trained) == 3 * (1 + 2 + 3) + 3
    experiment.train(experiment.whole_tasks()[0])
    assert {file: file.stat().st_mtime_ns for file in trained} == trained, "a finished student was trained again"

    monkeypatch.setattr(distillation, "_measure", lambda *arguments: None)  # which times exported files
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert "gain points tenth unlabelled" in str(record(experiment, ledger))
    (gain,), (swing,) = ledger.claim_evidence("kd-01"), ledger.claim_evidence("kd-02")
    assert gain.seeds == swing.seeds == (0, 1, 2)
    values = gain.values
    assert values["gain_points"] == pytest.approx(values["student_accuracy"] - values["hard_accuracy"])
    assert values["gain_points_low"] <= values["gain_points"] <= values["gain_points_high"]
    best, worst = (swing.values[name] for name in ("best_temperature", "worst_temperature"))
    assert [best, worst] == experiment.ranked_temperatures()
    difference = swing.values[f"accuracy_T{best:g}"] - swing.values[f"accuracy_T{worst:g}"]
    assert swing.values["temperature_spread_points"] == pytest.approx(difference)
    table = recorded_table(ledger)
    gains = [values[f"gain_points{name}"] for name in ("", "_fresh", "_tenth", "_tenth_unlabelled")]
    assert [row[1] for row in table.rows] == [f"{points:+.2f}" for points in (*gains, difference)]
    assert "kd-01, 3 seeds: " in str(table) and "fresh: new augmentation each epoch, 3 seeds" in str(table)
    assert f"student {values['student_accuracy']:.2f}%" in str(table)


def test_the_temperatures_are_recorded_without_the_rest(experiment: Experiment, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert not recorded_table(ledger).rows
    for task in experiment.tenth_tasks():
        experiment.train(task)
    sweep, _ = record_temperatures(experiment, ledger)
    (row,) = recorded_table(ledger).rows
    best, worst = experiment.ranked_temperatures()
    assert row[0].startswith("a tenth of the labels: the best temperature")
    assert float(row[1]) == pytest.approx(sum(sweep[best]) / 3 - sum(sweep[worst]) / 3, abs=0.01)


def test_a_temperature_that_was_chosen_before_is_not_judged_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(TINY, temperatures=(4.0,), precision="bf16")
    single = Experiment(plan, experiment.teacher_file, tmp_path / "single")
    for stage in (single.tenth_tasks, single.whole_tasks):
        for task in stage():
            single.train(task)
    monkeypatch.setattr(distillation, "_measure", lambda *arguments: None)  # which times exported files
    ledger = Ledger(tmp_path / "ledger.jsonl")
    record(single, ledger)
    assert not ledger.claim_evidence("kd-02")
    (gain,) = ledger.claim_evidence("kd-01")
    assert gain.values["temperature"] == 4.0 and "bf16" in gain.note
    soft = Task("soft", 0, 4.0)
    before = load(single.student_file(soft)).state_dict()
    exact = Experiment(replace(plan, precision="fp32"), experiment.teacher_file, tmp_path / "single")
    exact.train(soft)
    assert any(not torch.equal(value, before[name]) for name, value in load(exact.student_file(soft)).state_dict().items())


def test_an_interrupted_student_ends_as_an_undisturbed_one(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("tenth-soft", 1, 4.0)
    experiment.train(task)
    whole = load(experiment.student_file(task)).state_dict()
    experiment.student_file(task).unlink()
    (experiment.folder / f"{task.name}.json").unlink()
    with monkeypatch.context() as broken:
        broken.setattr("cookbook.experiments.distillation_students.save", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiment.train(task)
    assert (experiment.folder / f"{task.name}.state").exists()
    experiment.train(task)
    again = load(experiment.student_file(task)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_temperatures_are_ranked_by_the_mean_on_validation(experiment: Experiment) -> None:
    experiment.folder.mkdir(parents=True)
    for temperature, accuracies in ((1.0, (50, 50, 50)), (4.0, (90, 40, 30))):
        for seed, accuracy in enumerate(accuracies):
            name = Task("tenth-soft", seed, temperature).name
            (experiment.folder / f"{name}.json").write_text(json.dumps({"validation": accuracy}))
    assert experiment.ranked_temperatures() == [4.0, 1.0]
    assert {task.temperature for task in experiment.whole_tasks() if task.arm == "soft"} == {4.0}


def test_the_small_budget_is_part_of_the_whole_in_every_view(experiment: Experiment) -> None:
    whole, tenth = experiment.views("whole"), experiment.views("tenth")
    assert [len(views[0]) for views in (whole, tenth)] == [200, 20]
    for large, small in zip(whole, tenth, strict=True):
        found = (large.images[None] == small.images[:, None]).flatten(2).all(2).any(1)
        assert found.all()
    assert experiment.answers("tenth").shape == (2, 20, 10)


def test_plans_differ_in_their_folders() -> None:
    assert len({plan.digest() for plan in (TINY, REHEARSAL, Plan(), Plan(epochs=30))}) == 4
