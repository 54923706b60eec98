"""Measurements, the ledger that keeps them, claims, verdicts and tables."""

from cookbook.evidence.claims import Claim, Rule, load_claims
from cookbook.evidence.ledger import Ledger
from cookbook.evidence.rows import BenchRatio, ClaimEvidence, Rows, latest
from cookbook.evidence.tables import Table, scoreboard
from cookbook.evidence.verdicts import Verdict, decide, verdicts
from cookbook.measure.measurement import Measurement

__all__ = [
    "BenchRatio",
    "Claim",
    "ClaimEvidence",
    "Ledger",
    "Measurement",
    "Rows",
    "Rule",
    "Table",
    "Verdict",
    "decide",
    "latest",
    "load_claims",
    "scoreboard",
    "verdicts",
]
