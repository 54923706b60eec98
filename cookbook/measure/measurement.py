"""The one record that every candidate is reduced to (lesson 00)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cookbook.environment import Provenance, provenance
from cookbook.errors import EvidenceError
from cookbook.measure.latency import Timing
from cookbook.measure.statistics import wilson_interval


def now() -> str:
    """Return the time in UTC to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one candidate, and where the numbers come from. None: not measured.

    Attributes:
        subject: the candidate's name, the first column of every table.
        lesson: two digits.
        runtime: what executed it, such as ``torch eager`` or ``ONNX Runtime``.
        split: the split of the accuracy.
        correct: right predictions.
        images: images that were predicted.
        parameters: weights and biases.
        macs: multiply-accumulates for one image.
        bytes: on disk, of every file that must be shipped.
        latency: seconds for a batch, by batch size.
        peak_memory: bytes, during inference at the largest of the batch sizes.
        step_seconds: median wall time of a training step.
        energy_joules: for one image; None where no counter is readable.
        seed: of the training that made the weights.
        values: further figures of a lesson, by name and unit, such as ``accuracy_spread_points``.
        provenance: machine, libraries and commit.
        recorded: time in UTC, ISO 8601.
    """

    subject: str
    lesson: str
    runtime: str
    split: str | None = None
    correct: int | None = None
    images: int | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency: dict[int, Timing] = field(default_factory=dict)
    peak_memory: int | None = None
    step_seconds: float | None = None
    energy_joules: float | None = None
    seed: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=provenance)
    recorded: str = field(default_factory=now)

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, 0 to 1."""
        return None if self.correct is None or not self.images else self.correct / self.images

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the accuracy."""
        return None if self.correct is None or not self.images else wilson_interval(self.correct, self.images)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        fields = asdict(self)
        fields["provenance"] = self.provenance.to_dict()
        fields["latency"] = {str(batch): timing.to_dict() for batch, timing in self.latency.items()}
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Measurement:
        """Rebuild what `to_dict` returned.

        Raises:
            EvidenceError: a field is missing, unknown or of the wrong form.
        """
        try:
            fields = dict(fields)
            origin = dict(fields.pop("provenance"))
            origin["instruction_sets"] = tuple(origin["instruction_sets"])
            timings = {int(batch): Timing.from_dict(timing) for batch, timing in fields.pop("latency").items()}
            return cls(**fields, latency=timings, provenance=Provenance(**origin))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvidenceError(f"This is not a measurement: {error}.") from error
