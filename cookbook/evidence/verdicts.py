"""From a claim and the ledgers to a verdict: the word is computed, never typed (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cookbook.errors import UsageError
from cookbook.evidence.claims import OPERATORS, Claim, Rule, load_claims
from cookbook.evidence.ledger import Ledger
from cookbook.evidence.rows import ClaimEvidence
from cookbook.evidence.tables import Table, skipped_note

VerdictWord = Literal["held", "did not hold", "no difference", "needs an accelerator (not recorded yet)", "not recorded yet"]
QUICK_LABEL = "quick profile: not evidence"


@dataclass(frozen=True)
class Verdict:
    """What the recorded evidence says about a claim.

    Attributes:
        claim: that is judged.
        word: the verdict.
        reason: the deciding numbers, or what is missing.
        evidence: the row that decided; empty when none could.
        quick: the row comes from the quick profile: it shows how the verdict is found and is no evidence.
    """

    claim: Claim
    word: VerdictWord
    reason: str
    evidence: tuple[ClaimEvidence, ...] = ()
    quick: bool = False

    @property
    def label(self) -> str:
        """The word, marked where it rests on the quick profile."""
        return f"{self.word} ({QUICK_LABEL})" if self.quick else self.word

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.claim.wording}: {self.label}. {self.reason}"


def decide(claim: Claim, *ledgers: Ledger) -> Verdict:
    """Judge a claim by the newest row that suffices.

    A row suffices when it holds the value of the claim's rule, rests on enough seeds, and comes
    from the device that the claim needs. A row of the full profile goes before any of the quick one.

    Args:
        claim: from `load_claims`.
        ledgers: where to look; without any, the recorded evidence and this machine's ledger.
    """
    rows = [row for ledger in ledgers or (Ledger.recorded(), Ledger.local()) for row in ledger.claim_evidence(claim.id)]
    fitting = [row for row in rows if _device_suffices(claim, row)]
    if not fitting and claim.device != "any":
        where = "two or more GPUs" if claim.device == "gpus>=2" else "an accelerator"
        return Verdict(claim, "needs an accelerator (not recorded yet)", f"Nothing was recorded on {where}.")
    if claim.rule is None:
        return Verdict(claim, "not recorded yet", "No rule decides it yet.")
    rule = claim.rule
    usable = [row for row in fitting if rule.value in row.values and len(set(row.seeds)) >= rule.minimum_seeds]
    if not usable:
        return Verdict(claim, "not recorded yet", _what_is_missing(rule, fitting))
    row = max(usable, key=lambda row: (row.provenance.profile == "full", row.recorded))
    return Verdict(claim, _word(rule, row), _numbers(rule, row), (row,), row.provenance.profile != "full")


def verdicts(lesson: str, *ledgers: Ledger) -> Table:
    """Return the claims of a lesson with their verdicts.

    Args:
        lesson: two digits.
        ledgers: as in `decide`.

    Raises:
        UsageError: no claim belongs to the lesson.
    """
    claims = [claim for claim in load_claims().values() if lesson in claim.lessons]
    if not claims:
        raise UsageError(f"No claim belongs to lesson {lesson!r}: use two digits, such as '00'.")
    ledgers = ledgers or (Ledger.recorded(), Ledger.local())
    decided = [decide(claim, *ledgers) for claim in claims]
    rows = [(verdict.claim.id, verdict.claim.wording, verdict.label, verdict.reason) for verdict in decided]
    ruled = [(claim.id, claim.rule) for claim in claims if claim.rule]
    sources = [f"{id_}: the threshold {rule.threshold:.4g} is {rule.threshold_source}." for id_, rule in ruled]
    note = "\n".join(filter(None, [*sources, skipped_note(sum(ledger.skipped for ledger in ledgers))]))
    return Table(("claim", "what is said", "verdict", "why"), rows, note, title=f"Claims of lesson {lesson}")


def _device_suffices(claim: Claim, row: ClaimEvidence) -> bool:
    if claim.device == "any":
        return True
    if row.provenance.device.startswith("cpu"):
        return False
    return claim.device != "gpus>=2" or row.values.get("gpus", 0) >= 2


def _word(rule: Rule, row: ClaimEvidence) -> VerdictWord:
    value, values = row.values[rule.value], row.values
    if rule.neutral is not None:
        low, high = (values.get(name, value) for name in _ends(rule))
        if low <= rule.neutral <= high:
            return "no difference"
    return "held" if OPERATORS[rule.operator](value, rule.threshold) else "did not hold"


def _ends(rule: Rule) -> tuple[str, str]:
    """Return the names of the values that bound the deciding one."""
    return f"{rule.value}_low", f"{rule.value}_high"


def _numbers(rule: Rule, row: ClaimEvidence) -> str:
    """Return the deciding numbers with their origin, as one sentence."""
    value = row.values[rule.value]
    relation = rule.operator if OPERATORS[rule.operator](value, rule.threshold) else f"not {rule.operator}"
    parts = [f"{_words(rule.value)} {value:.4g} {relation} {rule.threshold:.4g}"]
    interval = [f"{row.values[name]:.4g}" for name in _ends(rule) if name in row.values]
    if len(interval) == 2:
        parts[0] += f" (interval {' to '.join(interval)})"
    parts += [f"{_words(name)} {row.values[name]:.4g}" for name in rule.also if name in row.values]
    seeds = f"{len(set(row.seeds))} seeds, " if row.seeds else ""
    return f"{'; '.join(parts)} ({seeds}{row.provenance.device}, {row.recorded[:10]})."


def _what_is_missing(rule: Rule, rows: list[ClaimEvidence]) -> str:
    with_value = [row for row in rows if rule.value in row.values]
    if not with_value:
        return f"No row holds {_words(rule.value)}."
    most = max(len(set(row.seeds)) for row in with_value)
    return f"It takes {rule.minimum_seeds} seeds; {most} were recorded."


def _words(name: str) -> str:
    return name.replace("_", " ")
