"""A network, data and stages so small that a whole compression takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cookbook.data import Splits, make_splits
from cookbook.environment import seed_everything
from cookbook.measure import Measurement, Timing
from cookbook.models import PerceptronConfig, build
from cookbook.pipeline import Compressed, Outcome, Work, compress
from cookbook.training import Recipe

RECIPE = Recipe(epochs=2, learning_rate=0.05)


def tiny_data(seed: int = 0) -> Splits:
    """Return three splits of 8×8 images whose brightness says their class."""
    generator = torch.Generator().manual_seed(seed)

    def images(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(number) % 3
        pixels = torch.randint(0, 90, (number, 1, 8, 8), generator=generator) + 70 * labels.view(-1, 1, 1, 1)
        return pixels.to(torch.uint8), labels

    return make_splits(*images(220), *images(60), ("dark", "grey", "bright"), validation_size=70)


def tiny_net(seed: int = 0) -> nn.Module:
    """Return a perceptron with 32 and 16 hidden channels."""
    seed_everything(seed)
    return build(PerceptronConfig(height=8, width=8, classes=3, hidden=(32, 16)))


@dataclass(frozen=True)
class Scale:
    """A stage of a user's own, without a base class: multiplies every weight, and remembers that it ran."""

    factor: float = 1.0
    name: str = "scale"
    ran: list[str] = field(default_factory=list)
    fail: Callable[[Work], None] | None = None

    def describe(self) -> dict[str, object]:
        return {"stage": self.name, "factor": self.factor}

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        return 0

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        self.ran.append(self.name)
        if self.fail is not None:
            self.fail(work)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.factor)
        return Outcome(model, work.scheme, note=f"Times {self.factor:g}, after {', '.join(work.earlier) or 'nothing'}.")


def shrink(folder: Path, **changed: Any) -> Compressed:
    """Compress the tiny network; arguments of `compress` may be changed."""
    arguments: dict[str, Any] = {"model": tiny_net(), "data": tiny_data(), "recipe": RECIPE, "batch_size": 25, "device": "cpu"}
    arguments |= {"stages": (Scale(),), "rounds": 3, "progress": False, **changed}
    return compress(arguments.pop("model"), arguments.pop("data"), folder=folder, **arguments)


def row(subject: str, *, correct: int = 90, bytes: int = 100, seconds: float = 1.0, recorded: str = "now") -> Measurement:
    """Return a measurement that was never taken."""
    return Measurement(
        subject=subject, lesson="08", runtime="none", split="validation", correct=correct, images=100, bytes=bytes,
        latency={1: Timing((seconds,) * 3, 1, 1)}, recorded=recorded,
    )  # fmt: skip
