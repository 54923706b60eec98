"""The capstone's experiment in miniature: equal pictures for both arms, one run for all rows, targets told from the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.data import Splits
from cookbook.deploy import Runtime
from cookbook.evidence import Ledger
from cookbook.experiments.capstone import BASELINE, INT8, PACKED, REHEARSAL, Experiment, Plan, record, recorded_targets, strided
from cookbook.measure import bytes_on_disk, count_macs, count_parameters
from cookbook.models import ResNetConfig, build, save
from cookbook.pipeline import pack_onnx
from cookbook.record import scoreboard_rows

TINY = replace(REHEARSAL, images=60, epochs=1, tested=64)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits, one_thread: None) -> Experiment:
    """Return the tiny plan with a small network in the running model's place."""
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cookbook.experiments.capstone.load_fashion_mnist", lambda: fashion_mnist)
    torch.manual_seed(0)
    baseline = save(build(ResNetConfig(depth=8, width=16)), tmp_path / "baseline.safetensors")
    return Experiment(TINY, baseline, tmp_path / "runs")


def test_the_control_differs_in_the_teacher_alone() -> None:
    plan = Plan(precision="bf16")
    taught, control = (plan.student(arm) for arm in plan.arms)
    assert (taught.alpha, control.alpha) == (0.9, 0.0) and replace(taught, alpha=0.0) == control
    assert taught.recipe is not None and (taught.recipe.epochs, taught.recipe.precision) == (40, "bf16")
    assert len({made.digest() for made in (plan, Plan(), TINY, REHEARSAL)}) == 4


def test_the_strided_shape_has_the_channels_and_half_of_the_resolution() -> None:
    network = build(strided(4, 6, 8))
    assert (network.stem[0].out_channels, network.head.in_features) == (4, 8)
    example = torch.zeros(1, 1, 28, 28)
    plain = replace(strided(4, 6, 8), stem_stride=1)
    assert 3.5 < count_macs(build(plain), example) / count_macs(network, example) < 4.5
    assert count_parameters(build(plain)) == count_parameters(network)


def test_every_arm_is_measured_in_one_run_and_the_targets_are_told_from_it(experiment: Experiment, tmp_path: Path) -> None:
    empty = recorded_targets(Ledger(tmp_path / "nothing.jsonl"))
    assert [row[0] for row in empty.rows] == ["target"] and "Nothing was recorded" in str(empty)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    table = record(experiment, ledger, rounds=3, requests=32)
    rows = {row.subject: row for row in ledger.measurements()}
    arms = [task.arm for task in experiment.tasks()]
    assert list(rows) == [BASELINE, "baseline fp32", INT8, *(name for arm in arms for name in (arm, f"{arm}, int8"))]
    assert len({row.recorded for row in rows.values()}) == 1 and {row.split for row in rows.values()} == {"test"}

    task = experiment.tasks()[0]
    shipped = experiment.train(task).stages[-1].path
    row = rows[f"{task.arm}, int8"]
    assert row.bytes == bytes_on_disk(shipped)
    assert row.values[PACKED] == bytes_on_disk(pack_onnx(shipped, tmp_path / "packed"))
    test = experiment.splits.test
    right = Runtime(shipped)(test.normalized()).argmax(1) == test.labels
    assert (row.correct, row.images) == (int(right.sum()), 64)

    told = {cells[0]: cells[1:] for cells in table.rows}
    assert set(told) == {"target", INT8, *(f"{arm}, int8" for arm in arms)}
    base = rows[BASELINE]
    faster = base.latency[64].median / row.latency[64].median
    assert told[row.subject][1].startswith(f"{faster:.2f}×")
    assert told[row.subject][2] == f"{base.bytes / row.bytes:.1f}×"  # type: ignore[operator]
    assert told[row.subject][4] == f"{100 * (base.correct - row.correct) / 64:.2f}"  # type: ignore[operator]
    (cost,) = ledger.claim_evidence("combine-02")
    assert cost.values["macs_gain"] == base.macs / row.macs  # type: ignore[operator]
    gain = cost.values["requests_per_cpu_second_gain"]
    assert 0 < cost.values["requests_per_cpu_second_gain_low"] <= gain <= cost.values["requests_per_cpu_second_gain_high"]
    full = Ledger(tmp_path / "full.jsonl")
    for one in rows.values():
        full.append(replace(one, provenance=replace(one.provenance, profile="full")))
    assert [one.subject for one in scoreboard_rows(full)] == list(rows)
