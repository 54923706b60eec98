"""What a ledger holds besides measurements: evidence for a claim, and ratios of the benchmark (lesson 00)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from cookbook.environment import Provenance, provenance
from cookbook.errors import EvidenceError
from cookbook.measure.latency import Ratio
from cookbook.measure.measurement import Measurement, now

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True)
class ClaimEvidence:
    """Numbers that bear on one claim.

    Attributes:
        claim: its id, such as ``measure-01``.
        lesson: two digits, of the lesson that recorded them.
        values: finite numbers by name and unit, such as ``accuracy_range_points``.
        seeds: of the trainings that the numbers rest on; empty where nothing was trained.
        note: one sentence for readers.
        provenance: machine, libraries and commit.
        recorded: time in UTC, ISO 8601.

    Raises:
        EvidenceError: a value is not a finite number.
    """

    claim: str
    lesson: str
    values: dict[str, float]
    seeds: tuple[int, ...] = ()
    note: str = ""
    provenance: Provenance = field(default_factory=provenance)
    recorded: str = field(default_factory=now)

    def __post_init__(self) -> None:
        _require_finite(self.values, self.claim)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "seeds": list(self.seeds), "provenance": self.provenance.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ClaimEvidence:
        """Rebuild what `to_dict` returned.

        Raises:
            EvidenceError: a field is missing, unknown or of the wrong form.
        """
        try:
            fields = dict(fields)
            origin, seeds = _read_provenance(fields.pop("provenance")), tuple(fields.pop("seeds"))
            return cls(**fields, seeds=seeds, provenance=origin)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvidenceError(f"This is no evidence for a claim: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class BenchRatio:
    """One line of the benchmark: how many times better a candidate is than what it is compared with.

    Attributes:
        name: of the comparison, such as ``fit``.
        baseline: what the ratio divides by, in words.
        candidate: what is compared, in words.
        ratio: with its 95 % interval.
        what: the quantity, such as ``wall time of a step``.
        values: further finite numbers by name and unit, such as ``microseconds_per_step``.
        provenance: machine, libraries and commit.
        recorded: time in UTC, ISO 8601.

    Raises:
        EvidenceError: a value is not a finite number.
    """

    name: str
    baseline: str
    candidate: str
    ratio: Ratio
    what: str
    values: dict[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=provenance)
    recorded: str = field(default_factory=now)

    def __post_init__(self) -> None:
        _require_finite(self.values, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "provenance": self.provenance.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BenchRatio:
        """Rebuild what `to_dict` returned.

        Raises:
            EvidenceError: a field is missing, unknown or of the wrong form.
        """
        try:
            fields = dict(fields)
            bounds = {name: float(value) for name, value in fields.pop("ratio").items()}
            return cls(ratio=Ratio(**bounds), provenance=_read_provenance(fields.pop("provenance")), **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvidenceError(f"This is not a ratio of the benchmark: {error}.") from error


Row = Measurement | ClaimEvidence | BenchRatio
KINDS: dict[str, type[Measurement] | type[ClaimEvidence] | type[BenchRatio]] = {
    "measurement": Measurement,
    "claim": ClaimEvidence,
    "bench": BenchRatio,
}


class Rows(list[RowT]):
    """Rows read from a ledger.

    Attributes:
        skipped: damaged lines that were passed over; tables made from these rows say so.
    """

    def __init__(self, rows: Iterable[RowT] = (), skipped: int = 0) -> None:
        super().__init__(rows)
        self.skipped = skipped


def latest(measurements: Iterable[Measurement]) -> Rows[Measurement]:
    """Keep the newest row for each subject, runtime, profile and device, in order of first appearance.

    Of two rows of the same second, the later in `measurements` is the newer. The number of damaged
    lines is passed on.
    """
    newest: dict[tuple[str, str, str, str], Measurement] = {}
    for row in measurements:
        key = (row.subject, row.runtime, row.provenance.profile, row.provenance.device)
        if key not in newest or row.recorded >= newest[key].recorded:
            newest[key] = row
    return Rows(newest.values(), measurements.skipped if isinstance(measurements, Rows) else 0)


def _require_finite(values: dict[str, float], owner: str) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise EvidenceError(f"The value {name} of {owner} is {value!r}: record finite numbers only.")


def _read_provenance(fields: dict[str, Any]) -> Provenance:
    return Provenance(**{**fields, "instruction_sets": tuple(fields["instruction_sets"])})
