"""Rows of the ledger: their forms, and which of several counts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ledger_rows import LATER, NOON, bench_ratio, evidence, measurement, origin

from cookbook.errors import EvidenceError
from cookbook.evidence import BenchRatio, ClaimEvidence, Rows, latest


@pytest.mark.parametrize("row", [evidence(), bench_ratio()], ids=["claim", "bench"])
def test_a_row_survives_json(row: ClaimEvidence | BenchRatio) -> None:
    assert type(row).from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True])
def test_evidence_is_finite_numbers(value: Any) -> None:
    with pytest.raises(EvidenceError, match="accuracy_range_points of measure-01"):
        evidence(values={"accuracy_range_points": value})


def test_a_ratio_carries_finite_values_and_reads_rows_from_before_it_did() -> None:
    row = replace(bench_ratio(), values={"microseconds_per_step": 21.5})
    assert BenchRatio.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    older = bench_ratio().to_dict()
    del older["values"]
    assert BenchRatio.from_dict(older) == bench_ratio()
    with pytest.raises(EvidenceError, match="microseconds_per_step of fit is nan"):
        replace(row, values={"microseconds_per_step": float("nan")})


def test_the_newest_row_counts_and_keeps_the_place_of_the_first() -> None:
    old, other, new = measurement("a"), measurement("b"), measurement("a", correct=9000, recorded=LATER)
    assert latest([old, other, new]) == [new, other]
    assert latest([new, other, old]) == [new, other]


def test_of_one_second_the_later_line_counts() -> None:
    rows = [measurement("a", correct=number, recorded=NOON) for number in (1, 2, 3)]
    assert latest(rows) == rows[2:]


@pytest.mark.parametrize(
    "changes",
    [{"runtime": "ONNX Runtime"}, {"provenance": origin("quick")}, {"provenance": origin(device="cuda (a GPU)")}],
    ids=["runtime", "profile", "device"],
)
def test_rows_of_another_kind_do_not_replace_each_other(changes: dict[str, Any]) -> None:
    rows = [measurement("a"), measurement("a", recorded=LATER, **changes)]
    assert latest(rows) == rows


def test_the_number_of_damaged_lines_is_passed_on() -> None:
    assert latest(Rows([measurement()], skipped=3)).skipped == 3
    assert latest([measurement()]).skipped == 0
