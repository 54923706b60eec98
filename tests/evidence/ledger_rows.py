"""Rows with invented numbers, for the tests of the ledger and of what is made from it."""

from __future__ import annotations

from typing import Any

from cookbook.environment import Provenance
from cookbook.evidence import BenchRatio, ClaimEvidence, Measurement
from cookbook.measure.latency import Ratio, Timing

NOON = "2026-11-21T12:00:00+00:00"
LATER = "2026-11-21T13:00:00+00:00"


def origin(profile: str = "full", device: str = "cpu", processor: str = "a processor") -> Provenance:
    return Provenance(
        profile=profile,
        device=device,
        processor=processor,
        instruction_sets=("avx2",),
        threads=1,
        python="3.11.0",
        libraries={"torch": "2.15.0"},
        commit="0123456789ab",
    )


def timing(milliseconds: float, rounds: int = 5, batch: int = 1) -> Timing:
    return Timing(tuple(milliseconds * 1e-3 * (1 + 0.01 * step) for step in range(rounds)), threads=1, batch=batch)


def measurement(subject: str = "net", milliseconds: float = 2.0, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "lesson": "00",
        "runtime": "torch eager",
        "split": "test",
        "correct": 9481,
        "images": 10_000,
        "parameters": 1_081_898,
        "macs": 30_812_345,
        "bytes": 4_350_000,
        "latency": {1: timing(milliseconds), 64: timing(40 * milliseconds, batch=64)},
        "values": {"seconds": 1.5},
        "provenance": origin(),
        "recorded": NOON,
    }
    return Measurement(subject=subject, **{**fields, **changes})


def evidence(claim: str = "measure-01", **changes: Any) -> ClaimEvidence:
    fields: dict[str, Any] = {
        "lesson": "00",
        "values": {"accuracy_range_points": 0.5, "step_time_range_percent": 3.0},
        "seeds": (0, 1, 2),
        "provenance": origin(),
        "recorded": NOON,
    }
    return ClaimEvidence(claim=claim, **{**fields, **changes})


def bench_ratio() -> BenchRatio:
    return BenchRatio(
        name="fit",
        baseline="a bare loop",
        candidate="fit",
        ratio=Ratio(0.99, 0.98, 1.01),
        what="wall time of a step",
        provenance=origin(),
        recorded=NOON,
    )
