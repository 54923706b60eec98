"""What a compressed model may take of the one that it comes from, and which bounds it breaks (lesson 08)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from cookbook.errors import UsageError
from cookbook.measure import Measurement

ROUNDING = 1e-9  # of differences between floats that stand for whole counts


@dataclass(frozen=True)
class Relative:
    """What was measured of a candidate, in proportion to the fp32 model that was timed in turns with it.

    Attributes:
        latency: median of a call over the baseline's, at batch 1; below 1 is faster.
        accuracy_drop: points of accuracy that were lost, on the same images; negative: gained.
        bytes: on disk, over the baseline's.
    """

    latency: float
    accuracy_drop: float
    bytes: float

    @classmethod
    def of(cls, candidate: Measurement, baseline: Measurement) -> Relative:
        """Return the proportions of two measurements of one run.

        Raises:
            UsageError: they were not measured together, or one lacks accuracy, bytes or latency at batch 1.
        """
        for one in (candidate, baseline):
            if one.accuracy is None or one.bytes is None or 1 not in one.latency:
                raise UsageError(f"{one.subject!r} lacks accuracy, bytes or latency at batch 1: measure all three first.")
        if (candidate.recorded, candidate.split, candidate.images) != (baseline.recorded, baseline.split, baseline.images):
            raise UsageError(
                f"{candidate.subject!r} and {baseline.subject!r} were not measured together: pass two rows of one run."
            )
        assert candidate.accuracy is not None and baseline.accuracy is not None
        assert candidate.bytes is not None and baseline.bytes is not None
        return cls(
            latency=candidate.latency[1].median / baseline.latency[1].median,
            accuracy_drop=100 * (baseline.accuracy - candidate.accuracy),
            bytes=candidate.bytes / baseline.bytes,
        )

    @property
    def points_gained(self) -> float:
        """The opposite of `accuracy_drop`, to two digits and without a negative zero, for tables."""
        return round(-self.accuracy_drop, 2) + 0.0


@dataclass(frozen=True)
class Violation:
    """A bound that does not hold.

    Attributes:
        bound: its name, as in `Budget`.
        allowed: the bound.
        found: what was measured, in the same unit.
    """

    bound: str
    allowed: float
    found: float

    @property
    def by(self) -> float:
        """How far the measured value lies beyond the bound, in its unit."""
        return self.found - self.allowed

    def __str__(self) -> str:
        if self.bound == "accuracy_drop":
            return f"accuracy drops by {self.found:.2f} points, {self.by:.2f} more than the {self.allowed:.2f} allowed"
        verb = "are" if self.bound == "bytes" else "is"
        return (
            f"{self.bound} {verb} {self.found:.3f} of the baseline's, {self.by:.3f} more than the {self.allowed:.3f} allowed "
            f"({1 / self.found:.1f}× instead of {1 / self.allowed:.1f}×)"
        )


@dataclass(frozen=True)
class Budget:
    """What a compressed model may take. None: not bounded.

    Attributes:
        latency: of a call with one image, in ONNX Runtime on one thread, as a ratio to the fp32 model's there;
            0.1 asks for ten times the speed.
        accuracy_drop: points of accuracy that may be lost on the validation images, 0 or more.
        bytes: of the file, as a ratio to the fp32 model's ONNX file; 0.05 asks for a twentieth.

    Raises:
        UsageError: a bound is out of range, or there is none.
    """

    latency: float | None = 0.1
    accuracy_drop: float | None = 0.5
    bytes: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency", "bytes"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 < ratio < math.inf:
                raise UsageError(f"The budget's {name} is {ratio}: use a positive ratio to the fp32 model, such as 0.1.")
        if self.accuracy_drop is not None and not 0 <= self.accuracy_drop < math.inf:
            raise UsageError(f"The budget's accuracy_drop is {self.accuracy_drop}: use 0 or more points, such as 0.5.")
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise UsageError("The budget has no bound: give at least one of latency, accuracy_drop and bytes.")

    def check(self, measured: Relative) -> tuple[Violation, ...]:
        """Return the bounds that `measured` breaks, each with by how much; empty: it is within the budget."""
        found = []
        for field in fields(self):
            allowed, value = getattr(self, field.name), getattr(measured, field.name)
            if allowed is not None and not value <= allowed + ROUNDING:
                found.append(Violation(field.name, allowed, value))
        return tuple(found)

    def excess(self, measured: Relative) -> float:
        """Return how far `measured` is beyond the budget as one number, to compare candidates by; 0: within it.

        A ratio counts by the logarithm of how many times too large it is, accuracy by its points: to be
        e times too slow weighs as much as a point.
        """
        total = 0.0
        for violation in self.check(measured):
            ratio = violation.bound != "accuracy_drop"
            total += math.log(violation.found / violation.allowed) if ratio else violation.by
        return total

    def __str__(self) -> str:
        parts = []
        if self.latency is not None:
            parts.append(f"at most {self.latency:g} of the latency ({1 / self.latency:.3g}× as fast)")
        if self.accuracy_drop is not None:
            parts.append(f"at most {self.accuracy_drop:g} points of accuracy lost")
        if self.bytes is not None:
            parts.append(f"at most {self.bytes:g} of the bytes ({1 / self.bytes:.3g}× as small)")
        return ", ".join(parts)
