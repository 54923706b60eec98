"""The long experiment in miniature: trained once, resumed, never repeated; what is recorded is what the networks do on test."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.data import Splits
from cookbook.errors import UsageError
from cookbook.evidence import Ledger
from cookbook.experiments import quantization
from cookbook.experiments.quantization import main, record, recorded_widths
from cookbook.experiments.quantization_runs import REHEARSAL, Experiment, Plan, Task
from cookbook.models import ResNetConfig, build, save

TINY = replace(
    REHEARSAL, images=200, epochs=1, widths=(4,), learned_widths=(), budgets=(1,), calibration=10, counts=(10,), imbalance=2.0,
    student=ResNetConfig(depth=8, width=2, stem_stride=2), batch_size=20, tested=100,
)  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Splits) -> Experiment:
    small = replace(fashion_mnist, validation=fashion_mnist.validation.subset(100))
    monkeypatch.setattr("cookbook.experiments.quantization_runs.load_fashion_mnist", lambda: small)
    monkeypatch.setattr(quantization, "CORRUPTIONS", ("blur",))
    return Experiment(TINY, tmp_path / "runs")


def test_everything_is_trained_once_and_recorded(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in itertools.chain(*experiment.tasks(TINY.seeds)):
        experiment.train(task)
    states = {file: file.stat().st_mtime_ns for file in experiment.folder.glob("*.state")}
    assert len(states) == 3 * 4  # float, long tail, more float epochs, four bits
    monkeypatch.setattr(quantization, "_baseline", lambda *arguments: [])  # which times exported files
    ledger = Ledger(tmp_path / "ledger.jsonl")
    table = str(record(experiment, ledger, tmp_path / "none"))
    assert {file: file.stat().st_mtime_ns for file in states} == states, "a finished training was run again"
    assert "4 bits, trained with rounding" in table
    (drops,), (gains,), (epochs,) = (ledger.claim_evidence(f"quant-0{number}") for number in (3, 4, 5))
    assert drops.seeds == gains.seeds == epochs.seeds == (0, 1, 2)
    named = [drops.values[f"{name}_drop_points"] for name in ("blur", "10_images", "long_tail")]
    assert drops.values["largest_drop_points"] == max(named)
    assert drops.values["largest_drop_points_low"] <= drops.values["largest_drop_points"]
    values = gains.values
    difference = values["trained_accuracy_4bit"] - values["nearest_accuracy_4bit"]
    assert values["gain_points_4bit"] == pytest.approx(difference)
    assert epochs.values["epochs_needed"] == 1
    widths = recorded_widths(ledger)
    (cells,) = widths.rows
    assert cells[0] == "4"
    assert cells[1:3] == (f"{values['nearest_accuracy_4bit']:.2f}%", f"{values['trained_accuracy_4bit']:.2f}%")
    assert cells[3].startswith(f"{difference:+.2f} [")
    assert cells[4] == "not measured"
    assert f"{values['longer_accuracy']:.2f}%" in str(widths)


def test_the_table_of_widths_says_when_nothing_was_recorded(tmp_path: Path) -> None:
    table = recorded_widths(Ledger(tmp_path / "ledger.jsonl"))
    assert not table.rows
    assert "Nothing was recorded yet" in str(table)


def test_learned_rounding_is_kept_and_equal_when_read_again(experiment: Experiment) -> None:
    first = experiment.learned_rounding(0, 2).state_dict()
    (file,) = experiment.folder.glob("*.packed")
    written = file.stat().st_mtime_ns
    again = experiment.learned_rounding(0, 2).state_dict()
    assert file.stat().st_mtime_ns == written
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_the_control_has_the_same_start_data_and_epochs(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def note(name: str):
        def trained(network, loader, recipe, **settings):
            seen[name] = (loader.describe(), recipe, next(loader.batches(0))[0])
            raise InterruptedError

        return trained

    experiment.train(Task("float", 0))
    for arm, function in (("longer", "fit"), ("rounded", "quantize_aware_training")):
        task = Task(arm, 0, *((4, TINY.extra) if arm == "rounded" else ()))
        with monkeypatch.context() as patch:
            original = experiment.network(Task("float", 0))
            patch.setattr(Experiment, "network", _with_float(Experiment.network, original))
            patch.setattr(f"cookbook.experiments.quantization_runs.{function}", note(arm))
            with pytest.raises(InterruptedError):
                experiment.network(task)
    (one, recipe, images), (other, other_recipe, others) = seen["longer"], seen["rounded"]  # type: ignore[misc]
    assert one == other
    assert recipe == other_recipe
    assert torch.equal(images, others)


def _with_float(original, network):
    return lambda self, task: network if task.arm == "float" else original(self, task)


def test_plans_have_their_own_folders_and_commands_their_limits(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Plan().digest() != REHEARSAL.digest() != TINY.digest()
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    with pytest.raises(UsageError, match="full profile only"):
        main(["--folder", str(tmp_path)])
    with pytest.raises(UsageError, match="name some of them"):
        main(["--rehearse", "--seeds", "7", "--folder", str(tmp_path)])
    with pytest.raises(UsageError, match="must be 1 or more"):
        main(["--rehearse", "--threads", "0"])
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    with pytest.raises(UsageError, match="A rehearsal is no evidence"):
        main(["--rehearse"])


def test_the_baseline_is_measured_beside_its_file(experiment: Experiment, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = save(build(ResNetConfig(depth=8, width=8)), tmp_path / "baseline.safetensors")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ((name, text),) = quantization._baseline(experiment, ledger, file, 1, 3)
    assert name.startswith("baseline, int8")
    assert "points" in text
    (row,) = ledger.claim_evidence("quant-02")
    measured = {entry.subject: entry for entry in ledger.measurements()}
    floats, integers = (measured[f"baseline {kind}"] for kind in ("fp32, exported", "int8, PTQ"))
    assert row.values["bytes_ratio"] == pytest.approx(floats.bytes / integers.bytes)
    assert row.values["drop_points"] == pytest.approx(100 * (floats.correct - integers.correct) / 100)
