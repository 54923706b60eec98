"""A subnet is the supernet with the rest silenced; the sandwich trains the largest, the smallest and some between."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_space import SPACE, loader
from torch import Tensor, nn

from cookbook.errors import CheckpointError, UsageError
from cookbook.models import ResNetConfig, build
from cookbook.search import Candidate, Sandwich, SearchSpace, SuperNet, train_supernet
from cookbook.training import Recipe, evaluate


def settled(seed: int = 0) -> SuperNet:
    """Return a supernet whose weights, shifts and statistics all differ, as after a training."""
    torch.manual_seed(seed)
    supernet = SuperNet(SPACE)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.3)
    return supernet.eval()


def silenced(supernet: SuperNet, candidate: Candidate, alone: nn.Module) -> nn.Module:
    """Return the largest network in which all that the candidate lacks is silent, with the candidate's statistics."""
    network: Any = copy.deepcopy(supernet.network)
    own: Any = alone
    length, longest = candidate.blocks_per_stage, SPACE.largest.blocks_per_stage
    pairs = [(network.stem[1], own.stem[1])]
    for stage in range(3):
        for place in range(longest):
            block = network.blocks[stage * longest + place]
            if place >= length:  # a block that adds nothing hands on what it is given, which no ReLU has left negative
                nn.init.zeros_(block.bn2.weight), nn.init.zeros_(block.bn2.bias)
                continue
            twin = own.blocks[stage * length + place]
            pairs += [(block.bn1, twin.bn1), (block.bn2, twin.bn2)]
            if not isinstance(block.shortcut, nn.Identity):
                pairs.append((block.shortcut[1], twin.shortcut[1]))
    for wide, narrow in pairs:
        kept = narrow.num_features
        wide.running_mean[:kept], wide.running_var[:kept] = narrow.running_mean, narrow.running_var
        with torch.no_grad():
            wide.weight[kept:], wide.bias[kept:] = 0, 0
    return network.eval()


@pytest.mark.parametrize("seed", range(4))
def test_a_subnet_is_the_supernet_with_the_rest_silenced(seed: int) -> None:
    supernet, images = settled(seed), torch.randn(5, 1, 8, 8)
    drawn = SPACE.draw(torch.Generator().manual_seed(seed))
    for candidate in (SPACE.smallest, drawn, SPACE.largest):
        alone = supernet.subnet(candidate, loader())
        with torch.no_grad():
            expected = silenced(supernet, candidate, alone)(images)
            assert torch.allclose(alone(images), expected, atol=1e-5)
        assert alone.config == candidate.config and not alone.training


def test_without_calibration_the_largest_subnet_is_the_network_itself() -> None:
    supernet, images = settled(), torch.randn(5, 1, 8, 8)
    alone = supernet.subnet(SPACE.largest)
    assert torch.equal(alone(images), supernet(images))
    with torch.no_grad():
        next(alone.parameters()).add_(1)
    assert not torch.equal(alone(images), supernet(images))  # the weights were copied


@pytest.mark.parametrize("seed", range(3))
def test_narrow_is_the_subnet_in_training_and_its_gradients_reach_only_its_share(seed: int) -> None:
    supernet, images = settled(seed), torch.randn(6, 1, 8, 8)
    candidate = SPACE.draw(torch.Generator().manual_seed(seed))
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    alone = supernet.subnet(candidate).train()
    logits, expected = supernet.narrow(candidate, images), alone(images)
    assert torch.allclose(logits, expected, atol=1e-6)
    logits.square().sum().backward()
    expected.square().sum().backward()
    stem = supernet.network.stem[0].weight.grad
    own = alone.stem[0].weight.grad
    assert torch.allclose(stem[: len(own)], own, rtol=1e-4, atol=1e-6) and not stem[len(own) :].any()
    assert all(torch.equal(value, before[name]) for name, value in supernet.named_buffers())


def test_the_statistics_are_those_of_the_calibration_images() -> None:
    supernet, train = settled(), loader()
    alone = supernet.subnet(SPACE.smallest, train)
    seen = torch.cat([images for images, _ in train.batches(0)])
    made = alone.stem[0](seen)
    assert torch.allclose(alone.stem[1].running_mean, made.mean((0, 2, 3)), atol=1e-5)
    with pytest.raises(UsageError, match="validation split must not"):
        supernet.subnet(SPACE.smallest, loader("validation"))


def test_sorting_puts_the_channels_that_are_listened_to_first_and_changes_nothing() -> None:
    supernet, images = settled(), torch.randn(5, 1, 8, 8)
    before = supernet(images)
    supernet.sort_inner_channels()
    assert torch.allclose(supernet(images), before, atol=1e-5)
    for block in supernet.network.blocks:
        importance = block.conv2.weight.abs().sum((0, 2, 3))
        assert torch.equal(importance, importance.sort(descending=True).values)


class Recording(SuperNet):
    """Notes which networks were asked."""

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(self.space.largest)
        return super().forward(images)

    def narrow(self, candidate: Candidate, images: Tensor) -> Tensor:
        self.asked.append(candidate)
        return super().narrow(candidate, images)


def test_the_sandwich_draws_the_largest_the_smallest_and_some_between() -> None:
    torch.manual_seed(1)
    supernet = Recording(SPACE)
    middle = set()
    for _ in range(6):
        supernet.asked = []
        Sandwich(drawn=3)(supernet, torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
        assert supernet.asked[:2] == [SPACE.largest, SPACE.smallest] and len(supernet.asked) == 5
        middle |= set(supernet.asked[2:])
    assert len(middle) > 10 and middle <= set(SPACE.candidates())


def test_the_loss_is_hard_for_the_largest_and_soft_for_the_others() -> None:
    supernet, images, labels = settled().train(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    loss = Sandwich(drawn=0)(supernet, images, labels)
    loss.backward()
    large = supernet(images)
    small = supernet.narrow(SPACE.smallest, images)
    p = large.detach().softmax(1)
    divergence = (p * (p.log() - small.log_softmax(1))).sum(1).mean()
    assert loss.item() == pytest.approx(((F.cross_entropy(large, labels) + divergence) / 2).item(), rel=1e-5)
    found = supernet.network.stem[0].weight.grad.clone()
    supernet.zero_grad()
    ((F.cross_entropy(large, labels) + divergence) / 2).backward()
    assert torch.allclose(found, supernet.network.stem[0].weight.grad, atol=1e-6)  # nothing flows into the answers


def test_training_teaches_all_networks_and_resumes(tmp_path: Path, one_thread: None) -> None:
    recipe = Recipe(epochs=10, learning_rate=0.1, weight_decay=0.0)
    torch.manual_seed(0)
    supernet = SuperNet(SPACE)
    twin = copy.deepcopy(supernet)
    train_supernet(supernet, loader(), recipe, drawn=1, progress=False)
    for candidate in (SPACE.smallest, SPACE.largest, SPACE.draw(torch.Generator().manual_seed(2))):
        assert evaluate(supernet.subnet(candidate, loader()), loader("validation")).accuracy > 0.8

    def stop(record: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(twin, loader(), recipe, drawn=1, checkpoint=tmp_path / "state.pt", on_epoch=stop)
    train_supernet(twin, loader(), recipe, drawn=1, checkpoint=tmp_path / "state.pt")
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in supernet.state_dict().items())
    with pytest.raises(CheckpointError):
        train_supernet(twin, loader(), recipe, drawn=2, checkpoint=tmp_path / "state.pt")


def test_what_does_not_fit_is_refused() -> None:
    supernet = settled()
    other = SearchSpace(depths=(8, 20), widths=((8,), (16,), (32,)), classes=2)
    uneven = Candidate(ResNetConfig(depth=14, width=4, classes=2, inner=(4, 2, 8, 8, 16, 16)))
    for candidate in (other.smallest, other.largest, uneven, Candidate(ResNetConfig(depth=8, width=4))):
        for use in (lambda c: supernet.narrow(c, torch.randn(2, 1, 8, 8)), supernet.subnet):
            with pytest.raises(UsageError, match="is no part of"):
                use(candidate)
    with pytest.raises(UsageError, match="not the largest"):
        SuperNet(SPACE, build(ResNetConfig(depth=8, width=4)))
    with pytest.raises(UsageError, match="0 or more"):
        Sandwich(drawn=-1)
    with pytest.raises(UsageError, match="holds no smaller networks"):
        Sandwich()(build(SPACE.largest.config), torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
