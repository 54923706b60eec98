"""Verdicts: which row decides, with which word, and what is said when none can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import LATER, evidence, origin

from cookbook.errors import UsageError
from cookbook.evidence import Claim, Ledger, Rule, decide, load_claims, verdicts

NEEDS_ACCELERATOR = "needs an accelerator (not recorded yet)"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def claim() -> Claim:
    return load_claims()["measure-01"]


def recorded(points: float, **changes: Any) -> Any:
    return evidence(values={"accuracy_range_points": points, "step_time_range_percent": 3.0}, **changes)


@pytest.mark.parametrize(("points", "word"), [(0.5, "held"), (0.25, "held"), (0.24, "did not hold"), (0.0, "did not hold")])
def test_the_threshold_decides(ledger: Ledger, claim: Claim, points: float, word: str) -> None:
    ledger.append(recorded(points))
    verdict = decide(claim, ledger)
    assert (verdict.word, verdict.quick, verdict.evidence) == (word, False, (recorded(points),))


@pytest.mark.parametrize(("sign", "words"), [("<", "100"), ("<=", "110"), (">", "001"), (">=", "011")])
def test_every_operator_means_what_it_says(ledger: Ledger, claim: Claim, sign: str, words: str) -> None:
    assert claim.rule is not None
    found = ""
    for step, points in enumerate((1.0, 2.0, 3.0)):
        ledger.append(recorded(points, recorded=f"2026-11-21T12:00:0{step}+00:00"))
        verdict = decide(replace(claim, rule=replace(claim.rule, operator=sign, threshold=2.0)), ledger)
        found += {"held": "1", "did not hold": "0"}[verdict.word]
    assert found == words


def test_without_evidence_nothing_is_decided(ledger: Ledger, claim: Claim) -> None:
    verdict = decide(claim, ledger)
    assert (verdict.word, verdict.evidence) == ("not recorded yet", ())
    ledger.append(recorded(0.5, seeds=(0, 1, 1)))
    assert decide(claim, ledger).word == "not recorded yet"
    assert "2 were recorded" in decide(claim, ledger).reason
    ledger.append(evidence(values={"something_else": 1.0}))
    assert decide(claim, ledger).word == "not recorded yet"


def test_the_newest_sufficient_row_decides_whatever_the_order_and_the_ledger(tmp_path: Path, claim: Claim) -> None:
    one, two = Ledger(tmp_path / "one"), Ledger(tmp_path / "two")
    one.append(recorded(0.1, recorded=LATER))
    one.append(recorded(0.5))
    two.append(recorded(0.9, recorded="2026-11-22T00:00:00+00:00", seeds=()))  # newer, but it does not suffice
    assert decide(claim, one, two).word == decide(claim, two, one).word == "did not hold"
    two.append(recorded(0.5, recorded="2026-11-22T00:00:00+00:00"))
    assert decide(claim, one, two).word == decide(claim, two, one).word == "held"


def test_a_quick_row_never_decides_against_a_full_one_and_is_labelled(ledger: Ledger, claim: Claim) -> None:
    ledger.append(recorded(0.5, provenance=origin("quick"), recorded=LATER))
    verdict = decide(claim, ledger)
    assert (verdict.word, verdict.quick) == ("held", True)
    assert "quick profile: not evidence" in str(verdict)
    ledger.append(recorded(0.1))
    verdict = decide(claim, ledger)
    assert (verdict.word, verdict.quick) == ("did not hold", False)
    assert "quick" not in str(verdict)


def test_a_verdict_is_one_line_with_id_wording_word_and_numbers(ledger: Ledger, claim: Claim) -> None:
    ledger.append(recorded(0.512, note="two\nlines"))
    line = str(decide(claim, ledger))
    assert "\n" not in line
    for part in ("measure-01", claim.wording, "held", "0.512 > 0.24", "step time range percent 3", "3 seeds", "2026-11-21"):
        assert part in line
    ledger.append(recorded(0.1, recorded=LATER))
    assert "0.1 not > 0.24" in str(decide(claim, ledger))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.1, 0.4, "no difference"), (0.0, 0.4, "no difference"), (0.1, 0.4, "held")]
)
def test_an_interval_that_contains_no_effect_means_no_difference(
    ledger: Ledger, claim: Claim, low: float, high: float, word: str
) -> None:
    rule = Rule(value="gain", operator=">", threshold=0.0, threshold_source="no gain", neutral=0.0)
    ledger.append(evidence(values={"gain": 0.3, "gain_low": low, "gain_high": high}))
    verdict = decide(replace(claim, rule=rule), ledger)
    assert verdict.word == word
    assert f"(interval {low:.4g} to {high:.4g})" in verdict.reason
    assert decide(replace(claim, rule=replace(rule, neutral=None)), ledger).word == "held"


@pytest.mark.parametrize("device", ["gpu", "gpu, cpu", "gpu, cpu analogue", "gpus>=2"])
def test_a_row_from_a_cpu_does_not_decide_what_needs_an_accelerator(ledger: Ledger, claim: Claim, device: Any) -> None:
    claim = replace(claim, device=device)
    ledger.append(recorded(0.5))
    assert decide(claim, ledger).word == NEEDS_ACCELERATOR
    ledger.append(evidence(values={"accuracy_range_points": 0.5, "gpus": 1}, provenance=origin(device="cuda (a GPU)")))
    assert decide(claim, ledger).word == (NEEDS_ACCELERATOR if device == "gpus>=2" else "held")
    ledger.append(evidence(values={"accuracy_range_points": 0.5, "gpus": 2}, provenance=origin(device="cuda (a GPU)")))
    assert decide(claim, ledger).word == "held"


def test_a_claim_without_a_rule_is_not_decided(ledger: Ledger, claim: Claim) -> None:
    ledger.append(recorded(0.5))
    assert decide(replace(claim, rule=None), ledger).word == "not recorded yet"
    assert decide(replace(claim, rule=None, device="gpu"), ledger).word == NEEDS_ACCELERATOR


def test_a_lessons_table_shows_its_claims_and_says_what_was_skipped(ledger: Ledger) -> None:
    ledger.append(recorded(0.5, provenance=origin("quick")))
    table = verdicts("00", ledger)
    assert [(row[0], row[2]) for row in table.rows] == [("measure-01", "held (quick profile: not evidence)")]
    assert "Torch-Pruning" in table.note
    assert "skipped" not in table.note
    with ledger.path.open("ab") as file:
        file.write(b"{torn\n")
    assert "1 damaged line skipped." in verdicts("00", ledger).note
    assert "2 damaged lines skipped." in verdicts("00", ledger, ledger).note
    wanted = [claim.id for claim in load_claims().values() if claim.lessons == ("01",)]
    assert [row[0] for row in verdicts("01", ledger).rows] == wanted
    with pytest.raises(UsageError, match="'77'"):
        verdicts("77", ledger)


def test_the_recorded_and_the_local_ledger_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: Claim
) -> None:
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("COOKBOOK_LEDGER", str(tmp_path / "local.jsonl"))
    assert decide(claim).word == "not recorded yet"
    Ledger.local().append(recorded(0.5, provenance=origin("quick"), recorded=LATER))
    assert decide(claim).quick
    Ledger.recorded().append(recorded(0.1))
    assert decide(claim).word == "did not hold"
    assert verdicts("00").rows[0][2] == "did not hold"
