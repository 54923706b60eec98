"""What can be chosen: residual networks by depth, widths, pruning and the bits of their weights (lesson 09)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, build
from cookbook.models.registry import config_from_json, config_to_json
from cookbook.models.sizes import require_sizes

STAGES = 3
FLOAT_BITS = 32  # weights that stay as they are


@dataclass(frozen=True)
class Candidate:
    """One network of a search space: equal candidates are the same network.

    Attributes:
        config: the architecture.
        weight_bits: 32 for floats; fewer for a network that is quantized, with activations of 8 bits.

    Raises:
        UsageError: the architecture is no `ResNetConfig`, or there is no such number of bits.
    """

    config: ResNetConfig
    weight_bits: int = FLOAT_BITS

    def __post_init__(self) -> None:
        if not isinstance(self.config, ResNetConfig):
            raise UsageError(f"{type(self.config).__name__} is no architecture of a search space: use a ResNetConfig.")
        require_bits((self.weight_bits,))

    @property
    def blocks_per_stage(self) -> int:
        """Residual blocks in each of the three stages."""
        return self.config.blocks // STAGES

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels that leave each stage."""
        return self.config.outer_channels[:: self.blocks_per_stage]

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels between the two convolutions of the blocks, by stage."""
        return self.config.inner_channels[:: self.blocks_per_stage]

    def at_depth(self, depth: int, stem_stride: int | None = None) -> Candidate:
        """Return the network with the same stages in another depth, and with another stride of the stem where one is given."""
        stride = self.config.stem_stride if stem_stride is None else stem_stride
        channels, classes = self.config.in_channels, self.config.classes
        return replace(self, config=staged_config(depth, self.widths, self.inner_widths, channels, classes, stride))

    def build(self) -> nn.Module:
        """Return the network in floats, with fresh weights."""
        return build(self.config)

    def to_json(self) -> str:
        """Return what `from_json` reads; equal candidates give equal text."""
        return json.dumps({"config": json.loads(config_to_json(self.config)), "weight_bits": self.weight_bits}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Candidate:
        """Rebuild what `to_json` returned.

        Raises:
            UsageError: the text describes no candidate.
        """
        try:
            found = json.loads(text)
            config, bits = config_from_json(json.dumps(found["config"])), found["weight_bits"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{text[:80]!r} describes no candidate: pass what Candidate.to_json wrote.") from error
        return cls(config, bits)

    def __str__(self) -> str:
        parts = [f"ResNet-{self.config.depth}", f"widths {'-'.join(map(str, self.widths))}"]
        if self.inner_widths != self.widths:
            parts.append(f"inner {'-'.join(map(str, self.inner_widths))}")
        if self.config.stem_stride > 1:
            parts.append(f"stem stride {self.config.stem_stride}")
        if self.weight_bits < FLOAT_BITS:
            parts.append(f"{self.weight_bits}-bit weights")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The choices along each axis; their product is the space.

    Every axis is ordered from the choice that gives the smallest network, so that a sampler can learn that
    neighbours are alike.

    Attributes:
        depths: 6·n + 2 each, as `ResNetConfig` takes them.
        widths: three tuples, the channels of each stage; the first stage's are the stem's too.
        pruning: shares of the channels inside each block, between its two convolutions, that are left out; a
            share a stage.
        stem_strides: 2 halves the resolution at once.
        weight_bits: 32 for floats; 2, 3, 4, 6 or 8.
        in_channels: of the images.
        classes: of the labels.
        multiple: of which the channels inside a block are a multiple, where the stage is wide enough.

    Raises:
        UsageError: an axis is empty or holds an impossible choice, or the whole space is a single network.
    """

    depths: tuple[int, ...] = (8, 14, 20)
    widths: tuple[tuple[int, ...], ...] = ((8, 16, 32), (16, 32, 64), (32, 64, 128))
    pruning: tuple[float, ...] = (0.0,)
    stem_strides: tuple[int, ...] = (1,)
    weight_bits: tuple[int, ...] = (FLOAT_BITS,)
    in_channels: int = 1
    classes: int = 10
    multiple: int = 8

    def __post_init__(self) -> None:
        for name in ("depths", "pruning", "stem_strides", "weight_bits"):
            object.__setattr__(self, name, _choices(name, getattr(self, name)))
        if isinstance(self.widths, str) or len(tuple(self.widths)) != STAGES:
            raise UsageError(f"widths is {self.widths!r}: give the choices of each of the {STAGES} stages, as {STAGES} tuples.")
        object.__setattr__(self, "widths", tuple(_choices("widths", stage) for stage in self.widths))
        if not all(0 <= share < 1 for share in self.pruning):
            raise UsageError(f"pruning is {self.pruning}: use shares of the channels from 0 up to, not including, 1.")
        require_bits(self.weight_bits)
        require_sizes(multiple=self.multiple)
        for depth, stride in itertools.product(self.depths, self.stem_strides):
            ResNetConfig(depth, 1, self.in_channels, self.classes, stride)
        require_sizes(widths=sum(self.widths, ()))
        if self.smallest == self.largest:
            raise UsageError(f"The space holds a single network, {self.largest}: give an axis two choices or more.")

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The choices by the name of each axis, the one of the smallest network first."""
        return {
            "depth": self.depths,
            **{f"width {stage}": choices for stage, choices in enumerate(self.widths, 1)},
            **{f"pruning {stage}": self.pruning[::-1] for stage in range(1, STAGES + 1)},
            "stem stride": self.stem_strides[::-1],
            "weight bits": self.weight_bits,
        }

    @property
    def smallest(self) -> Candidate:
        """The network that is smallest along every axis."""
        return self._choose(lambda name, count: 0)

    @property
    def largest(self) -> Candidate:
        """The network that is largest along every axis."""
        return self._choose(lambda name, count: count - 1)

    @property
    def combinations(self) -> int:
        """Number of ways to choose; rounding can make two of them the same network."""
        return math.prod(len(choices) for choices in self.axes.values())

    def candidates(self) -> Iterator[Candidate]:
        """Yield every network once, the smallest first."""
        seen = set()
        for chosen in itertools.product(*self.axes.values()):
            candidate = self._build(dict(zip(self.axes, chosen, strict=True)))
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def uniform(self, depth: int, width: int) -> Candidate:
        """Return the network that hands design: twice as wide in the second stage, four times in the third.

        It need not be one of the space's. With widths up to the largest network's first stage it is a part of the supernet,
        where the largest network doubles its widths too.
        """
        widths = (width, 2 * width, 4 * width)
        config = staged_config(depth, widths, widths, self.in_channels, self.classes, self.largest.config.stem_stride)
        return Candidate(config)

    def sample(self, trial: optuna.trial.BaseTrial) -> Candidate:
        """Ask the trial's sampler for a place on every axis that has a choice (`optuna.Trial.suggest_int`)."""
        return self._choose(lambda name, count: trial.suggest_int(name, 0, count - 1) if count > 1 else 0)

    def draw(self, generator: torch.Generator | None = None) -> Candidate:
        """Return a network at random, each choice of an axis equally likely; None: torch's global generator."""
        return self._choose(lambda name, count: int(torch.randint(count, (), generator=generator)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types that identify the space."""
        return json.loads(json.dumps(asdict(self)))

    def _choose(self, pick: Callable[[str, int], int]) -> Candidate:
        return self._build({name: choices[pick(name, len(choices))] for name, choices in self.axes.items()})

    def _build(self, chosen: dict[str, Any]) -> Candidate:
        stages = range(1, STAGES + 1)
        outer = [chosen[f"width {stage}"] for stage in stages]
        inner = [self._pruned(width, chosen[f"pruning {stage}"]) for stage, width in enumerate(outer, 1)]
        config = staged_config(chosen["depth"], outer, inner, self.in_channels, self.classes, chosen["stem stride"])
        return Candidate(config, chosen["weight bits"])

    def _pruned(self, width: int, share: float) -> int:
        if not share:
            return width
        return min(width, max(1, round(width * (1 - share) / self.multiple)) * self.multiple)


def require_bits(bits: Sequence[int]) -> None:
    """Refuse numbers of bits that no weights have.

    Raises:
        UsageError: naming what is possible.
    """
    if set(bits) == {FLOAT_BITS}:
        return
    from cookbook.quantization.scheme import WEIGHT_BITS  # torchao takes seconds to import: only who quantizes waits

    known = (*WEIGHT_BITS, FLOAT_BITS)
    if not set(bits) <= set(known):
        raise UsageError(f"Weights of {', '.join(map(str, bits))} bits were asked for: use {', '.join(map(str, known))}.")


def staged_config(
    depth: int, outer: Sequence[int], inner: Sequence[int], in_channels: int, classes: int, stem_stride: int
) -> ResNetConfig:
    """Return the architecture whose blocks are alike within each stage.

    Args:
        depth: 6·n + 2.
        outer: channels that leave each of the three stages; the first number is the stem's too.
        inner: channels between the convolutions of a block, by stage.
        in_channels: of the images.
        classes: of the labels.
        stem_stride: of the first convolution.
    """
    blocks = (depth - 2) // 2 // STAGES
    return ResNetConfig(
        depth, outer[0], in_channels, classes, stem_stride, outer[0],
        tuple(width for width in inner for _ in range(blocks)), tuple(width for width in outer for _ in range(blocks)),
    )  # fmt: skip


def _choices(name: str, values: Any) -> tuple[Any, ...]:
    """Return the choices of an axis once each, ascending."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UsageError(f"{name} has {values!r} to choose from: give a tuple with one choice or more.")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise UsageError(f"{name} is {values!r}: use numbers.")
    return tuple(sorted(set(values)))
