"""The README quotes the ledger, evidence comes from the full profile only, and the GPU evidence can be rehearsed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.accelerator import PARTS, Part
from cookbook.cli.record import record
from cookbook.errors import CookbookError, EvidenceError, UsageError
from cookbook.evidence import Ledger
from cookbook.record import MARKERS, numbers_block, record_baseline, write_numbers

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readme_quotes_the_recorded_evidence() -> None:
    begin, end = MARKERS
    quoted = README.read_text(encoding="utf-8").split(f"{begin}\n")[1].split(end)[0]
    assert quoted == numbers_block(Ledger.recorded()), "run 'cookbook record --readme README.md'"
    assert "ONNX Runtime" in quoted


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    begin, end = MARKERS
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter \\1\n", encoding="utf-8")
    empty = Ledger(tmp_path / "ledger.jsonl")
    write_numbers(readme, empty)
    assert readme.read_text(encoding="utf-8") == f"before\n{begin}\n{numbers_block(empty)}{end}\nafter \\1\n"


def test_rows_on_training_steps_stay_out_of_the_numbers(tmp_path: Path) -> None:
    rows = Ledger.recorded().measurements(profile="full")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for row in (*rows, replace(rows[0], subject="a step", correct=None, images=None, latency={}, step_seconds=0.1)):
        ledger.append(row)
    assert numbers_block(ledger) == numbers_block(Ledger.recorded())


@pytest.mark.parametrize("text", ["nothing", "{0}\n", "{1}\n{0}\n", "{0}\na\n{1}\n{0}\nb\n{1}\n"])
def test_markers_must_stand_there_once(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text.format(*MARKERS), encoding="utf-8")
    with pytest.raises(EvidenceError, match="exactly one pair"):
        write_numbers(readme, Ledger(tmp_path / "ledger.jsonl"))
    assert readme.read_text(encoding="utf-8") == text.format(*MARKERS)


def test_the_quick_profile_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(UsageError, match="COOKBOOK_PROFILE=full"):
        record_baseline(ledger)
    assert not ledger.path.exists()


def test_every_part_of_the_gpu_evidence_can_be_rehearsed_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    recorded = Ledger.recorded().path.read_bytes()
    ledger = Ledger(tmp_path / "rehearsal.jsonl")
    record(gpu=True, rehearse=True, out=ledger.path)
    said = capsys.readouterr().out
    parts = [part.name for part in PARTS if part.by_default]
    assert [name for name in parts if f"{name}: recorded in " not in said] == []
    values = {claim: ledger.claim_evidence(claim)[-1].values for claim in DECIDING}
    assert [name for claim, name in DECIDING.items() if not math.isfinite(values[claim][name])] == []
    assert {"tiny ResNet, fp32", "speedrun, seed 1", "speedrun"} <= {row.subject for row in ledger.measurements()}
    assert [row.name for row in ledger.bench()] == ["whole speed stack"]
    assert {row.provenance.profile for row in ledger.measurements()} == {"quick"}
    assert Ledger.recorded().path.read_bytes() == recorded


DECIDING = {
    "amp-01": "memory_ratio",
    "amp-02": "step_time_ratio",
    "amp-03": "accuracy_difference_points",
    "gpu-02": "cases_raised_share",
    "gpu-03": "throughput_gain",
    "gpu-04": "slowdown_every_step",
    "gpu-05": "step_time_ratio",
}


def test_failed_parts_end_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")

    def failing(setting: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("cookbook.accelerator.PARTS", (*(Part(name, "", 1, failing) for name in "ab"), PARTS[0]))  # type: ignore[arg-type]
    with pytest.raises(CookbookError, match=r"^2 of 3 parts failed: a \(OutOfMemoryError: .*\); b \(.*\)\.$"):
        record(gpu=True, rehearse=True, out=tmp_path / "x.jsonl")
    assert len(Ledger(tmp_path / "x.jsonl").claim_evidence("gpu-02")) == 1


@pytest.mark.parametrize("option", [{"out": Path("x")}, {"device": "cuda"}, {"only": "amp"}, {"rehearse": True}])
def test_options_of_the_gpu_evidence_need_it(option: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="add --gpu"):
        record(**option)  # type: ignore[arg-type]


def test_gpu_evidence_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    with pytest.raises(UsageError, match="cannot be recorded on cpu"):
        record(gpu=True, device="cpu", out=tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()
