"""What a compression returns: the file, what was measured of it, and whether the budget holds (lesson 08)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook.measure import Measurement
from cookbook.pipeline.budget import Budget, Relative, Violation


@dataclass(frozen=True)
class StageResult:
    """What one stage cost and gave.

    Attributes:
        name: of the stage.
        path: the ONNX file that could be shipped after it.
        measurement: of that file, on validation, in turns with the baseline and all other stages' files.
        seconds: that the stage took; what an interruption lost is not counted.
        training_seconds: of these, in training steps.
        note: what the stage says of itself.
    """

    name: str
    path: Path
    measurement: Measurement
    seconds: float
    training_seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the path is that of the folder's part."""
        return {
            "name": self.name, "part": self.path.parent.name, "measurement": self.measurement.to_dict(), "note": self.note,
            "seconds": self.seconds, "training_seconds": self.training_seconds,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], folder: Path) -> StageResult:
        """Rebuild what `to_dict` returned."""
        return cls(
            fields["name"], folder / fields["part"] / "model.onnx", Measurement.from_dict(fields["measurement"]),
            float(fields["seconds"]), float(fields["training_seconds"]), fields["note"],
        )  # fmt: skip


@dataclass(frozen=True)
class Compressed:
    """A compressed model, and what it is worth. Validation decided; test was looked at once, afterwards.

    Attributes:
        path: the ONNX file to ship.
        measurement: of it, on validation.
        baseline: of the fp32 model in the same runtime, in the same run.
        violations: the bounds of the budget that it breaks; empty: it keeps them all.
        budget: what was asked.
        report: a page that says all this, with pictures; it needs no other file.
        stages: in their order.
        chosen: number of the stage whose file this is, counted from 0; −1: the unchanged model.
        test: measurements of the baseline and of the file on test.
        packed: the file once more, entropy-coded; None: it was not asked for.
        guessing: share of the most frequent class on validation, which a model reaches that has learned nothing.
    """

    path: Path
    measurement: Measurement
    baseline: Measurement
    violations: tuple[Violation, ...]
    budget: Budget
    report: Path
    stages: tuple[StageResult, ...]
    chosen: int
    test: tuple[Measurement, Measurement]
    packed: Path | None = None
    guessing: float = 0.0

    @property
    def met(self) -> bool:
        """Whether every bound of the budget holds on validation."""
        return not self.violations

    @property
    def relative(self) -> Relative:
        """The figures in proportion to the baseline's, on validation."""
        return Relative.of(self.measurement, self.baseline)

    @property
    def verdict(self) -> str:
        """Met, or which bounds fail by how much; and a warning where the unchanged model knows no more than a guess."""
        found = f"met: {self.budget}" if self.met else f"not met: {'; '.join(map(str, self.violations))}"
        low, _ = self.baseline.accuracy_interval or (1.0, 1.0)
        if low > self.guessing:
            return f"The budget is {found}."
        return (
            f"The budget is {found}. But the unchanged model, right on {self.baseline.accuracy:.1%} of validation, is not "
            f"shown to be better than guessing ({self.guessing:.1%}), so that its accuracy is no measure: train it first."
        )

    def __str__(self) -> str:
        found = self.relative
        base, own = self.test
        lines = [
            self.verdict,
            f"{1 / found.latency:.2f}× as fast, {1 / found.bytes:.2f}× as small, "
            f"{found.points_gained:+.2f} points on validation",
            f"test: {100 * (own.accuracy or 0):.2f} % after {100 * (base.accuracy or 0):.2f} %",
            f"file: {self.path}",
        ]
        if self.packed is not None:
            lines.append(f"packed: {self.packed} ({self.packed.stat().st_size:,} bytes)")
        return "\n".join([*lines, f"report: {self.report}"])
