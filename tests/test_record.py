"""The README quotes the ledger, and evidence comes from the full profile only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cookbook.errors import EvidenceError, UsageError
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
