"""Every criterion against its definition, computed channel by channel."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small_nets import Dense, Grouped, Squeeze, make
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Split
from cookbook.errors import DataError, UsageError
from cookbook.models import PerceptronConfig, ResNetConfig, SeparableConfig
from cookbook.pruning import channel_scores, prune_channels
from cookbook.pruning.torch_pruning_site import Surgery

RESNET = ResNetConfig(depth=8, width=4, classes=3)
X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1])
STREAM = ("stem.0", "blocks.0.conv2")  # the convolutions whose outputs are added in the first stage


def scores(model: nn.Module, importance: str, x: Tensor = X, **arguments: object) -> dict[str, list[float]]:
    surgery = Surgery(copy.deepcopy(model), x)
    surgery.close()
    free = [group for group in surgery.groups if not group.frozen]
    return {name: score.tolist() for name, score in channel_scores(model, free, importance, **arguments).items()}


def rows(model: nn.Module, layer: str) -> list[list[float]]:
    return model.get_submodule(layer).weight.detach().double().flatten(1).tolist()


def test_l1_and_l2_take_the_filters_of_all_layers_that_make_the_channel() -> None:
    model = make(RESNET)
    for importance, norm in {
        "l1": lambda values: sum(abs(v) for v in values),
        "l2": lambda values: math.sqrt(sum(v * v for v in values)),
    }.items():
        found = scores(model, importance)
        inner, stem, other = rows(model, "blocks.0.conv1"), *(rows(model, layer) for layer in STREAM)
        assert found["blocks.0.conv1"] == pytest.approx([norm(values) for values in inner])
        assert found["stem.0"] == pytest.approx([norm(a + b) for a, b in zip(stem, other, strict=True)])


def test_the_smallest_sums_leave() -> None:
    model = make(RESNET)
    sums = [sum(abs(v) for v in values) for values in rows(model, "blocks.2.conv1")]
    kept = sorted(sorted(range(len(sums)), key=sums.__getitem__)[len(sums) // 2 :])
    pruned = prune_channels(model, X, ratio={"blocks.2.conv1": 0.5}, multiple=1)
    assert torch.equal(pruned.blocks[2].conv1.weight, model.blocks[2].conv1.weight[kept])
    assert torch.equal(pruned.blocks[2].bn1.running_mean, model.blocks[2].bn1.running_mean[kept])
    assert torch.equal(pruned.blocks[2].conv2.weight, model.blocks[2].conv2.weight[:, kept])


def test_the_depthwise_filter_counts_too() -> None:
    model = make(SeparableConfig(stem=4, channels=(4,), strides=(1,)))
    stem, depthwise = rows(model, "stem.0"), rows(model, "blocks.0.depthwise")
    sums = [sum(map(abs, a)) + sum(map(abs, b)) for a, b in zip(stem, depthwise, strict=True)]
    assert scores(model, "l1")["stem.0"] == pytest.approx(sums)


def test_fpgm_sums_the_distances_within_each_layer() -> None:
    model = make(RESNET)
    found = scores(model, "fpgm")
    for layers in (("blocks.1.conv1",), STREAM):
        sums = [sum(math.dist(a, b) for layer in layers for a, b in _pairs(rows(model, layer), n)) for n in range(4)]
        assert found[layers[0]][:4] == pytest.approx(sums)


def _pairs(filters: list[list[float]], number: int) -> list[tuple[list[float], list[float]]]:
    return [(filters[number], other) for other in filters]


def test_gamma_is_the_mean_absolute_scale_and_groups_without_batch_norm_stay_whole() -> None:
    model = make(RESNET)
    scales = zip(model.stem[1].weight.tolist(), model.blocks[0].bn2.weight.tolist(), strict=True)
    assert scores(model, "gamma")["stem.0"] == pytest.approx([(abs(a) + abs(b)) / 2 for a, b in scales])
    dense = make(Dense)
    x = torch.randn(2, 2, 8, 8)
    assert list(scores(dense, "gamma", x)) == ["stem"]
    pruned = prune_channels(dense, x, ratio=0.5, multiple=1, importance="gamma")
    assert (pruned.stem.out_channels, pruned.second.out_channels, pruned.third.out_channels) == (4, 4, 6)
    with pytest.raises(UsageError, match="Squeeze has no BatchNorm where channels can leave"):
        prune_channels(make(Squeeze), x, ratio=0.5, multiple=1, importance="gamma")


class Preactivated(nn.Module):
    """BatchNorm behind a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.norm(torch.cat([x, self.second(x)], 1)).relu().mean((2, 3)))


def test_behind_a_concatenation_each_channel_has_its_own_scale() -> None:
    model = make(Preactivated)
    scales = model.norm.weight.abs().tolist()
    assert scores(model, "gamma", torch.randn(2, 2, 8, 8)) == {"stem": scales[:8], "second": scales[8:]}


@pytest.mark.parametrize(
    ("description", "group", "places"),
    [
        (RESNET, "blocks.0.conv1", ["blocks.0.bn1"]),
        (RESNET, "stem.0", ["stem.1", "blocks.0.bn2"]),
        (PerceptronConfig(height=8, width=8, hidden=(6, 5), classes=3), "hidden.0", ["hidden.0"]),
    ],
)
def test_taylor_is_the_squared_slope_of_the_loss_along_a_gate(description: object, group: str, places: list[str]) -> None:
    model = make(description)
    batches = [(X, LABELS), (X.flip(0) * 0.5, LABELS)]
    found = scores(model, "taylor", batches=batches)[group]
    exact = copy.deepcopy(model).double()
    width, step = len(found), 1e-5

    def loss(gate: Tensor, images: Tensor, labels: Tensor) -> float:
        def scale(module: nn.Module, given: object, output: Tensor) -> Tensor:
            return output * gate.view(1, -1, *[1] * (output.ndim - 2))

        hooks = [exact.get_submodule(place).register_forward_hook(scale) for place in places]
        with torch.no_grad():
            value = F.cross_entropy(exact(images.double()), labels).item()
        for hook in hooks:
            hook.remove()
        return value

    for channel in range(width):
        nudge = F.one_hot(torch.tensor(channel), width).double() * step
        slopes = [(loss(1 + nudge, *batch) - loss(1 - nudge, *batch)) / (2 * step) for batch in batches]
        assert found[channel] == pytest.approx(sum(slope**2 for slope in slopes) / 2, rel=1e-3, abs=1e-9)


def test_taylor_leaves_modes_gradients_and_flags_alone() -> None:
    model = make(RESNET).train().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    scores(model, "taylor", batches=[(X, LABELS)])
    assert all(module.training for module in model.modules())
    assert all(value.grad is None and not value.requires_grad for value in model.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_loader_gives_its_first_epoch_and_must_not_be_the_test_split() -> None:
    model = make(ResNetConfig(depth=8, width=4))
    images = torch.randint(0, 255, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def loader(role: str) -> ResidentLoader:
        split = Split(images, torch.arange(6), role, tuple("abcdefghij"), (0.5,), (0.5,))  # type: ignore[arg-type]
        return ResidentLoader(split, 3, shuffle=False)

    train = loader("train")
    assert scores(model, "taylor", batches=train) == scores(model, "taylor", batches=list(train.batches(0)))
    with pytest.raises(UsageError, match="test split must not be used to judge channels"):
        scores(model, "taylor", batches=loader("test"))
    with pytest.raises(DataError, match="no batch to take gradients from"):
        scores(model, "taylor", batches=[])


def test_chance_follows_from_the_seed_alone() -> None:
    model, state = make(RESNET), torch.get_rng_state()
    first, again, other = (scores(model, "random", seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({score for values in first.values() for score in values}) == sum(map(len, first.values()))
    assert torch.equal(state, torch.get_rng_state())


def test_neighbors_of_a_grouped_convolution_share_the_mean() -> None:
    model = make(Grouped)
    sums = [sum(map(abs, a)) + sum(map(abs, b)) for a, b in zip(rows(model, "expand"), rows(model, "middle"), strict=True)]
    expected = [sum(sums[3 * (n // 3) : 3 * (n // 3) + 3]) / 3 for n in range(12)]
    assert scores(model, "l1", torch.randn(1, 2, 8, 8))["expand"] == pytest.approx(expected)
