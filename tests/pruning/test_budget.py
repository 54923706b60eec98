"""Budgets are met as an independent count says, or it is said what can be met."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_pruning
from small_nets import CASES, make
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.measure import count_parameters
from cookbook.models import ResNetConfig, SeparableConfig, VisionTransformerConfig
from cookbook.models.widths import layer_sizes
from cookbook.pruning import MACs, Parameters, prunable_layers, prune, prune_channels
from cookbook.pruning.budget import RETOLD

RESNET = ResNetConfig(depth=8, width=16)
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BY_SCOPE = [("uniform", 2), ("global", 2), ("uniform", 4)]


@pytest.mark.parametrize(("scope", "multiple"), BY_SCOPE)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_multiplications_that_remain_are_those_that_were_asked_for(share: float, scope: str, multiple: int) -> None:
    model = make(RESNET)
    result = prune(model, X, target=MACs(share, tolerance=0.1), scope=scope, multiple=multiple)
    counts = [_macs(network) for network in (model, result.model)]
    assert counts[1] / counts[0] == pytest.approx(share, rel=0.1)
    assert result.reached == pytest.approx(counts[1] / counts[0], rel=0.01)  # the library counts what BatchNorm does too
    assert all(size % multiple == 0 for size in (result.model.config.stem, *result.model.config.inner))


def _macs(model: nn.Module) -> float:
    _, _, by_layer, _ = torch_pruning.utils.count_ops_and_params(model, X[:1], layer_wise=True)
    return sum(count for layer, count in by_layer.items() if isinstance(layer, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("config", [RESNET, SeparableConfig(stem=16, channels=(16, 32), strides=(2, 1))])
def test_the_parameters_that_remain_are_those_that_were_asked_for(share: float, config: object) -> None:
    model = make(config)
    result = prune(model, X, target=Parameters(share), multiple=1)
    counts = [sum(p.numel() for p in network.parameters()) for network in (model, result.model)]
    assert result.reached == counts[1] / counts[0] == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_a_candidate_has_the_sizes_of_the_network_that_is_pruned(name: str) -> None:
    description, shape, _, _ = CASES[name]
    seen: list[dict[str, int]] = []
    model = make(description)
    result = prune(model, torch.randn(2, *shape), target=Spying(seen), multiple=2)
    assert layer_sizes(result.model) in seen
    assert layer_sizes(result.model) != layer_sizes(model)


class Spying:
    """A target that keeps the sizes of every candidate."""

    share, tolerance, needs_weights = 0.8, 0.2, True

    def __init__(self, seen: list[dict[str, int]]) -> None:
        self.seen = seen

    def predictor(self, model: nn.Module, example: Tensor) -> Callable[[nn.Module], float]:
        def value(candidate: nn.Module) -> float:
            assert candidate(example).shape == model(example).shape
            self.seen.append(layer_sizes(candidate))
            return count_parameters(candidate) / count_parameters(model)

        return value

    def confirmer(self, model: nn.Module, example: Tensor) -> None:
        """There is nothing to measure."""


class Crooked(Spying):
    """A target whose prediction is off by a factor, so that only the measurement tells."""

    share, tolerance = 0.5, 0.05

    def __init__(self, factor: float) -> None:
        super().__init__([])
        self.factor, self.measured = factor, 0

    def predictor(self, model: nn.Module, example: Tensor) -> Callable[[nn.Module], float]:
        truth = super().predictor(model, example)
        return lambda candidate: truth(candidate) * self.factor

    def confirmer(self, model: nn.Module, example: Tensor) -> Callable[[nn.Module], float]:
        def measure(candidate: nn.Module) -> float:
            self.measured += 1
            return count_parameters(candidate) / count_parameters(model)

        return measure


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_prediction_that_is_off_is_corrected_by_measuring(factor: float) -> None:
    model, target = make(RESNET), Crooked(factor)
    result = prune(model, X, target=target, multiple=1)
    assert result.reached == count_parameters(result.model) / count_parameters(model) == pytest.approx(0.5, rel=0.05)
    assert 1 <= target.measured - RETOLD <= 3


def test_what_cannot_be_reached_is_said() -> None:
    transformer = make(VisionTransformerConfig(image_size=8, embedding=8, layers=1, heads=2, head_dim=4, hidden=16))
    with pytest.raises(UsageError, match=r"MACs\(share=0.1.*the least 0\.\d+ of the unpruned"):
        prune(transformer, X, target=MACs(0.1), multiple=1)
    with pytest.raises(UsageError, match="cannot be reached within 1% in multiples of 16: the nearest is"):
        prune(make(ResNetConfig(depth=8, width=16)), X, target=MACs(0.97, 0.01))


@pytest.mark.parametrize("kind", [MACs, Parameters])
@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_outside_0_to_1_is_refused(kind: type, share: float) -> None:
    with pytest.raises(UsageError, match="use a share between 0 and 1"):
        kind(share)
    with pytest.raises(UsageError, match="tolerance is 0"):
        kind(0.5, 0)


def test_proportions_decide_who_gives_how_much() -> None:
    model = make(RESNET)
    result = prune(model, X, target=Parameters(0.8), multiple=1, proportions={"blocks.2.conv1": 0.8, "blocks.1.conv1": 0.4})
    changed = {name: 1 - after / before for name, (before, after) in result.widths.items() if before != after}
    assert set(changed) == {"blocks.2.conv1", "blocks.1.conv1"}
    assert changed["blocks.2.conv1"] == pytest.approx(2 * changed["blocks.1.conv1"], abs=0.05)
    quarter = {"blocks.2.conv1": 0.2, "blocks.1.conv1": 0.1}
    assert prune(model, X, target=Parameters(0.8), multiple=1, proportions=quarter).widths == result.widths
    with pytest.raises(UsageError, match=r"no layer 'blocks\.7'"):
        prune(model, X, target=Parameters(0.8), proportions={"blocks.7": 0.5})


def test_rounds_end_in_the_widths_that_were_found() -> None:
    model, widths = make(RESNET), []
    once = prune(model, X, target=MACs(0.5), multiple=1)
    rounds = prune(
        model, X, target=MACs(0.5), multiple=1, steps=2, after_step=lambda net: widths.append(net.blocks[2].conv1.out_channels)
    )
    assert rounds.widths == once.widths
    assert 64 > widths[0] > widths[1] == once.widths["blocks.2.conv1"][1]


def test_the_table_names_every_layer_and_what_was_reached() -> None:
    result = prune(make(RESNET), X, target=MACs(0.5), exclude=["stem.0"], multiple=2)
    lines = str(result).splitlines()
    assert lines[0] == f"MACs(share=0.5, tolerance=0.05): {result.reached:.3f} reached"
    assert [line.split() for line in lines[2:]] == [[name, str(a), str(b)] for name, (a, b) in result.widths.items()]
    assert result.widths["stem.0"] == (16, 16) and result.widths["head"] == (10, 10)


def test_the_same_widths_come_from_the_same_ratio() -> None:
    model = make(RESNET)
    result = prune(model, X, target=MACs(0.5, 0.2), multiple=8)
    ratios = {name: 1 - result.widths[name][1] / result.widths[name][0] for name in prunable_layers(model, X)}
    by_ratio = prune_channels(model, X, ratio={name: ratio for name, ratio in ratios.items() if ratio}, multiple=1)
    assert all(torch.equal(a, b) for a, b in zip(by_ratio.parameters(), result.model.parameters(), strict=True))
