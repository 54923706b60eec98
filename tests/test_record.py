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
from cookbook.experiments.capstone import PACKED
from cookbook.record import (
    FIGURES,
    MARKERS,
    PEER_MARKERS,
    numbers_block,
    peers_block,
    record_baseline,
    rows_digest,
    scoreboard_rows,
    write_numbers,
)

README = Path(__file__).resolve().parents[1] / "README.md"
ALL_MARKERS = "\n".join([*MARKERS, *PEER_MARKERS, ""])


def test_the_readme_quotes_the_recorded_evidence() -> None:
    for (begin, end), block in ((MARKERS, numbers_block), (PEER_MARKERS, peers_block)):
        quoted = README.read_text(encoding="utf-8").split(f"{begin}\n")[1].split(end)[0]
        assert quoted == block(Ledger.recorded()), "run 'cookbook record --no-measure --readme README.md'"


def test_the_readmes_figures_show_the_recorded_evidence() -> None:
    rows = scoreboard_rows(Ledger.recorded())
    text = README.read_text(encoding="utf-8")
    for name in FIGURES.values():
        drawn = (README.parent / name).read_text(encoding="utf-8")
        assert f"<dc:description>{rows_digest(rows)}<" in drawn, "run 'cookbook record --no-measure --readme README.md'"
        assert text.count(f'"{name}"') == 1
    assert text.index(FIGURES["light"]) < text.index("| subject |")


def test_the_capstones_newest_run_stands_for_all_techniques(tmp_path: Path) -> None:
    base = Ledger.recorded().measurements(profile="full")[0]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(base)
    assert [row.subject for row in scoreboard_rows(ledger)] == [base.subject]
    for subject, recorded, split in (("old", "1", "test"), ("b", "3", "test"), ("a", "3", "test"), ("v", "4", "validation")):
        ledger.append(replace(base, subject=subject, recorded=recorded, split=split, lesson="08", values={PACKED: 9.0}))
    quick = replace(base.provenance, profile="quick")
    ledger.append(replace(base, subject="quick", recorded="5", lesson="08", values={PACKED: 9.0}, provenance=quick))
    ledger.append(replace(base, subject="peer", recorded="6", lesson="08", values={"lines_of_code": 3.0}))
    ledger.append(replace(base, subject="an order of techniques", recorded="7", lesson="08"))
    assert [row.subject for row in scoreboard_rows(ledger)] == ["b", "a"]
    assert "| peer |" in peers_block(ledger)
    readme = tmp_path / "README.md"
    readme.write_text(ALL_MARKERS, encoding="utf-8")
    write_numbers(readme, ledger)
    light, dark = ((tmp_path / name).read_bytes() for name in FIGURES.values())
    assert light != dark
    write_numbers(readme, ledger)
    assert [(tmp_path / name).read_bytes() for name in FIGURES.values()] == [light, dark], "the same rows, other bytes"
    write_numbers(readme, Ledger(tmp_path / "nothing.jsonl"))
    assert not any((tmp_path / name).exists() for name in FIGURES.values()) and "<img" not in readme.read_text()


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    begin, end = MARKERS
    readme = tmp_path / "README.md"
    first, last = PEER_MARKERS
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter \\1\n{first}\nold\n{last}\n", encoding="utf-8")
    empty = Ledger(tmp_path / "ledger.jsonl")
    write_numbers(readme, empty)
    peers = f"{first}\n{peers_block(empty)}{last}\n"
    assert readme.read_text(encoding="utf-8") == f"before\n{begin}\n{numbers_block(empty)}{end}\nafter \\1\n{peers}"


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


def test_a_readme_is_brought_in_step_without_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Ledger.recorded().path.read_bytes()
    readme = tmp_path / "README.md"
    readme.write_text(ALL_MARKERS, encoding="utf-8")
    record(measure=False, readme=readme)
    assert numbers_block(Ledger.recorded()) in readme.read_text(encoding="utf-8")
    assert "quotes the ledger" in capsys.readouterr().out
    assert Ledger.recorded().path.read_bytes() == recorded
    for options in ({"readme": None}, {"readme": readme, "gpu": True}):
        with pytest.raises(UsageError, match="--no-measure only brings"):
            record(measure=False, **options)  # type: ignore[arg-type]


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
