"""How candidates are timed while one is chosen: exported, in ONNX Runtime, in turns (lesson 04)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cookbook.deploy import Runtime, export
from cookbook.errors import UsageError
from cookbook.measure import Timing, interleave

Shapes = tuple[tuple[int, ...], ...]
Clock = Callable[[Mapping[str, nn.Module], Tensor], Mapping[str, Timing]]
"""Times models by name on images like the example; their samples belong together round by round."""


@dataclass(frozen=True)
class OrtClock:
    """Exports models to ONNX and times them in turns in ONNX Runtime on the CPU.

    A model is exported when it is met for the first time, and again when the shape of a weight has changed: for how
    long a call takes, the values do not matter.

    Attributes:
        threads: of each session.
        batch: images a call.
        rounds: samples of each model; 3 or more, so that their ratio has an interval.

    Raises:
        UsageError: a number is too small.
    """

    threads: int = 1
    batch: int = 1
    rounds: int = 30
    _known: WeakKeyDictionary[nn.Module, tuple[Shapes, Runtime]] = field(
        init=False, repr=False, compare=False, default_factory=WeakKeyDictionary
    )

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("batch", 1), ("rounds", 3)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: use {least} or more.")

    def __call__(self, models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
        """Return the timings of all models, by name.

        Args:
            models: in any mode, on the CPU; they are left in it.
            example: images (B, C, H, W); the first one is repeated.

        Raises:
            UsageError: there is no model, or no image.
            DeploymentError: a model cannot be exported.
        """
        images = torch.repeat_interleave(example[:1], self.batch, 0).contiguous()
        calls = {name: functools.partial(self._runtime(model, example), images) for name, model in models.items()}
        return interleave(calls, batch=self.batch, rounds=self.rounds, threads=self.threads, device="cpu")

    def _runtime(self, model: nn.Module, example: Tensor) -> Runtime:
        shapes = (tuple(example.shape[1:]), *(tuple(value.shape) for value in model.state_dict().values()))
        if model not in self._known or self._known[model][0] != shapes:
            with tempfile.TemporaryDirectory() as folder:
                runtime = Runtime(export(model, example, Path(folder) / "model.onnx"), threads=self.threads)
            self._known[model] = shapes, runtime
        return self._known[model][1]
