"""The long experiment in miniature: it cuts to the budget, trains each network once, resumes, and records what it paired."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, Splits
from cookbook.errors import CheckpointError, EvidenceError
from cookbook.evidence import Ledger, Measurement
from cookbook.experiments import pruning
from cookbook.experiments.pruning import Scores, record_baseline, record_small, recorded_networks
from cookbook.experiments.pruning_networks import Experiment, Task, peer
from cookbook.experiments.pruning_plan import Plan, plan_of
from cookbook.measure import Candidate, Timing, count_macs
from cookbook.models import ResNetConfig, build, load, save
from cookbook.pruning import LayerTable
from cookbook.training import Recipe

RECIPE = Recipe(epochs=1, learning_rate=0.05)
NARROW = replace(RECIPE, channels_last=True)  # which so few channels cannot have
TINY = Plan(
    images=40, original=RECIPE, augmentation=Augmentation(crop=1), views=1, latencies={"half": 0.5}, tolerance=0.3,
    criteria=("l1", "random"), judged=20, tested=50, equal_macs=0.5, widths=(4, 6),
    small=ResNetConfig(depth=8, width=2, stem_stride=2), small_recipe=NARROW, small_multiple=1, multiple=1, batch_size=10,
)  # fmt: skip


def clock(models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
    """Take as long as there are multiplications, whatever the machine does."""
    return {name: Timing((1e-6 * count_macs(model, example),) * 3, 1, 1) for name, model in models.items()}


def slower_by_operations(candidates: Sequence[Candidate], *arguments: object, **options: object) -> list[Measurement]:
    """Measure exported files whose time is their multiplications."""
    return [
        Measurement(subject=one.name, lesson="04", runtime="none", macs=one.macs, recorded="2000-01-01T00:00:00+00:00",
                    latency={batch: Timing((1e-6 * (one.macs or 0),) * 3, batch, 1) for batch in (1, 64)})
        for one in candidates
    ]  # fmt: skip


@pytest.fixture
def experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits, request: pytest.FixtureRequest
) -> Experiment:
    """Return the tiny plan on a part of the validation and the test images."""
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    small = replace(fashion_mnist, validation=fashion_mnist.validation.subset(50), test=fashion_mnist.test.subset(50))
    monkeypatch.setattr("cookbook.experiments.pruning_networks.load_fashion_mnist", lambda: small)
    torch.manual_seed(0)
    baseline = save(build(ResNetConfig(depth=8, width=8)), tmp_path / "baseline.safetensors")
    table = LayerTable(measure=lambda shapes: [1e-6 * math.prod(shape.weight) for shape in shapes])
    return Experiment(TINY, baseline, tmp_path / "runs", clock=clock, table=table)


def test_every_network_is_trained_once_and_recorded(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment.prepare()
    example = experiment.example
    macs = {arm: count_macs(load(experiment.cut_file(arm)), example) for arm in ("half", "peer", "narrow")}
    whole = count_macs(experiment.model, example)
    assert macs["half"] / whole == pytest.approx(0.5, rel=0.3)
    family = {width: count_macs(build(ResNetConfig(depth=8, width=width)), example) for width in (4, 6)}
    assert macs["narrow"] == min(family.values(), key=lambda count: abs(count - macs["half"]))
    cut = {file: file.stat().st_mtime_ns for file in experiment.folder.glob("cut-*")}
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for stage in pruning.PARTS["small"]:
        for task in experiment.tasks(stage):
            experiment.train(task)
    assert "l1 over chance, small" in str(record_small(experiment, ledger))
    with pytest.raises(CheckpointError, match="There is no file"):
        record_baseline(experiment, ledger)
    assert not ledger.claim_evidence("prune-02")
    for stage in pruning.PARTS["baseline"]:
        for task in experiment.tasks(stage):
            experiment.train(task)
    assert not list(experiment.folder.glob("*.state"))
    trained = {file: file.stat().st_mtime_ns for file in experiment.folder.glob("*-seed*.safetensors")}
    assert len(trained) == 3 + 3 * (2 + 1) + 3 * 2 + 3
    experiment.prepare()
    experiment.train(experiment.tasks("small")[0])
    assert {file: file.stat().st_mtime_ns for file in (*cut, *trained)} == cut | trained, "something was made again"

    assert not recorded_networks(ledger).rows
    monkeypatch.setattr(pruning, "measure_candidates", slower_by_operations)
    assert "half over peer" in str(record_baseline(experiment, ledger))
    (second,), (third,), (fourth,) = (ledger.claim_evidence(f"prune-0{number}") for number in (2, 3, 4))
    assert second.seeds == third.seeds == fourth.seeds == (0, 1, 2)
    values = third.values
    assert values["least_gain_points"] == values["gain_points_l1"], "gamma was not among the criteria"
    assert values["least_gain_points_low"] <= values["least_gain_points"] <= values["least_gain_points_high"]
    values = fourth.values
    gain = values["tuned_accuracy"] - values["scratch_accuracy"]
    assert values["gain_over_scratch_points"] == pytest.approx(gain)
    values = second.values
    assert values["macs_peer_over_half"] == macs["peer"] / macs["half"]
    assert values["speedup_half_batch1"] == pytest.approx(whole / macs["half"])
    assert values["speedup_at_half_macs"] == pytest.approx(2, rel=0.1)
    scores = Scores(experiment)
    assert values["points_over_narrow"] == pytest.approx(scores.over("half", [0])[0] - scores.over("narrow", [0])[0])
    assert f"× where widths are multiples of {TINY.multiple} only" in recorded_networks(ledger).note
    shown = {row[0]: row[1:] for row in recorded_networks(ledger).rows}
    assert list(shown) == [words for name, words in pruning.NETWORKS.items() if name != "third"]
    seeds, points, asked, share, speed, _ = shown[pruning.NETWORKS["half"]]
    assert (seeds, asked, share) == ("3", "-0.3", f"{macs['half'] / whole:.2f}")
    assert points.startswith(f"{values['points_half']:+.2f} [") and speed.startswith(f"{whole / macs['half']:.2f}×")
    assert shown[pruning.NETWORKS["scratch"]][0] == "1"


def test_an_interrupted_training_ends_as_an_undisturbed_one(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("small", 1)
    experiment.train(task)
    whole = load(experiment.file(task)).state_dict()
    experiment.file(task).unlink()
    with monkeypatch.context() as broken:
        broken.setattr("cookbook.experiments.pruning_networks.save", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiment.train(task)
    assert (experiment.folder / f"{task.name}.state").exists()
    experiment.train(task)
    again = load(experiment.file(task)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    with pytest.raises(CheckpointError, match="There is no file"):
        experiment.network(Task("small", 2))


def test_the_best_cut_is_chosen_on_validation_at_one_shape(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    accuracies = iter([0.1, 0.3, 0.2, 0.25])

    class Score:
        accuracy = 0.0

    def judge(model: nn.Module, loader: Any) -> Score:
        seen.append((model, loader.role))
        score = Score()
        score.accuracy = next(accuracies, 0.0)
        return score

    monkeypatch.setattr("cookbook.experiments.pruning_networks.evaluate", judge)
    widths = {"blocks.0.conv1": 8, "blocks.1.conv1": 16}
    best = experiment._best(0.5, widths, {"blocks.0.conv1": 0.2, "blocks.1.conv1": 0.8})
    assert [role for _, role in seen] == ["validation"] * 4
    assert best is seen[1][0]


def test_the_peer_has_the_asked_operations_or_is_refused(experiment: Experiment) -> None:
    whole = count_macs(experiment.model, experiment.example)
    found = peer(experiment.model, experiment.example, whole // 2, 0.2)
    assert count_macs(found, experiment.example) / whole == pytest.approx(0.5, rel=0.2)
    with pytest.raises(EvidenceError, match="does not come near"):
        peer(experiment.model, experiment.example, whole // 10_000, 0.2)


def test_the_plan_comes_from_the_record_of_the_baseline(tmp_path: Path) -> None:
    text = json.dumps(
        {"recipe": {"epochs": 14, "learning_rate": 0.2, "ema_decay": 0.998},
         "augmentation": {"crop": 2, "flip": True, "resolutions": [[0, 20], [9, 24], [11, 28]]}}
    )  # fmt: skip
    file = tmp_path / "baseline.json"
    file.write_text(text)
    plan = plan_of(file)
    assert (plan.tuning.epochs, plan.tuning.learning_rate, plan.tuning.ema_decay) == (3, pytest.approx(0.05), None)
    assert plan.augmentation.resolutions == ((0, 20), (11, 24), (13, 28))  # the same shares of 17 epochs
    assert plan_of(file, rehearse=True).augmentation.resolutions == ()
    assert len({made.digest() for made in (TINY, plan, replace(plan, rate=0.5))}) == 3
    file.write_text("{}")
    with pytest.raises(EvidenceError, match="is not the record of a training"):
        plan_of(file)
