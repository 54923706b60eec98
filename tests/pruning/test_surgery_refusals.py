"""What cannot be pruned is refused in a sentence, before anything is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_nets import Dense, Flat, make
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, VisionTransformerConfig
from cookbook.pruning import prune_channels

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RESNET = ResNetConfig(depth=8, width=8)


class Net(nn.Module):
    """Two convolutions and a head, with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution that thins its groups, which no layer of ours can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3, groups=4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ratio": 0.0}, "ratio is 0.0: use a share of the channels between 0 and 1"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": -0.5}, "ratio is -0.5"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"ratio": {"stem.0": 1.0}}, "The ratio of stem.0 is 1.0"),
        ({"ratio": {"stem.0": 0.0}}, "name no layer that shall lose channels"),
        ({"ratio": {}}, "name no layer that shall lose channels"),
        ({"ratio": {"steam.0": 0.5}}, "no layer 'steam.0' in ResNet: did you mean stem.0"),
        ({"ratio": {"head": 0.5}}, "channels of head must stay, because they are the model's output"),
        ({"ratio": {"pool": 0.5}}, "pool makes no channels"),
        (
            {"ratio": {"stem.0": 0.5, "blocks.0.conv2": 0.4}},
            "blocks.0.conv2 has the ratio 0.4 and shares its channels with stem.0",
        ),
        ({"ratio": {"stem.0": 0.5}, "scope": "global"}, "leaves nothing to rank"),
        ({"ratio": 0.5, "scope": "local"}, "scope is 'local': use uniform or global"),
        ({"ratio": 0.5, "importance": "l3"}, "importance is 'l3': use l1, l2"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs gradients: pass batches"),
        ({"ratio": 0.5, "multiple": 0}, "multiple is 0: use a whole number"),
        ({"ratio": 0.5, "multiple": 64}, "No channel leaves ResNet in multiples of 64"),
        ({"ratio": 0.5, "steps": 0}, "steps is 0"),
        ({"ratio": 0.5, "exclude": ["blocks.9"]}, "no layer 'blocks.9' in ResNet"),
        ({"ratio": 0.5, "exclude": "blocks"}, "use a list of names"),
        ({"ratio": 0.5, "exclude": ["stem", "blocks"]}, "Nothing in ResNet can be pruned: the channels of stem.0 stay"),
    ],
)
def test_an_argument_that_cannot_work_is_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        prune_channels(make(RESNET), X, **{"multiple": 1, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda x: x.detach(), "first runs, but autograd does not connect it with the output"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "first runs, but autograd does not connect"),
        (lambda x: x.view(len(x), 8, 6, 6), "does not run with fewer channels"),
        (lambda x: x.flip(1), "computes something across its channels"),
        (lambda x: x - x.mean(1, keepdim=True), "computes something across its channels"),
        (lambda x: {}["missing"], "Net cannot be traced on images of shape"),
    ],
)
def test_a_forward_pass_that_the_graph_does_not_show_is_refused(between: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prune_channels(Net(between), X, ratio=0.5, multiple=1)


def test_an_output_without_a_graph_or_of_another_type_is_refused() -> None:
    net = make(Flat)
    with pytest.raises(UsageError, match="returns a tuple"):
        prune_channels(Wrapped(net, lambda y: (y, y)), torch.randn(2, 2, 8, 8), ratio=0.5)
    with pytest.raises(UsageError, match="autograd does not connect its output with its weights"):
        prune_channels(Wrapped(net, lambda y: y.argmax(1).float()), torch.randn(2, 2, 8, 8), ratio=0.5)


class Wrapped(nn.Module):
    """A network and what becomes of its output."""

    def __init__(self, net: nn.Module, then: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.then = net, then

    def forward(self, x: Tensor) -> object:
        return self.then(self.net(x))


def test_a_model_that_is_wrapped_compiled_masked_or_parametrized_is_refused() -> None:
    masked, normed = Net(), Net()
    prune.l1_unstructured(masked.first, "weight", 0.5)
    parametrizations.weight_norm(normed.first)
    cases = {
        nn.DataParallel(Net()): "wraps the model", torch.compile(Net()): "wraps the model",
        masked: "permanent before surgery", normed: "permanent before surgery",
    }  # fmt: skip
    for model, words in cases.items():
        with pytest.raises(UsageError, match=words):
            prune_channels(model, X, ratio=0.5)


@pytest.mark.parametrize("example", [torch.zeros(0, 1, 8, 8), torch.tensor(1.0), [X]])
def test_an_example_that_is_no_batch_is_refused(example: object) -> None:
    with pytest.raises(UsageError, match="no batch of images"):
        prune_channels(Net(), example, ratio=0.5)  # type: ignore[arg-type]


def test_an_example_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Net cannot be traced on images of shape \(2, 3, 8, 8\)"):
        prune_channels(Net(), torch.zeros(2, 3, 8, 8), ratio=0.5)


def test_channels_that_depend_on_one_another_stay_and_the_reason_is_said() -> None:
    transformer = make(VisionTransformerConfig(image_size=8, embedding=8, layers=1, heads=2, head_dim=4, hidden=12))
    for layer, words in {
        "blocks.0.attention.q": "go through an attention", "patches": "LayerNorm takes its statistics",
        "head": "model's output",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=words):
            prune_channels(transformer, X, ratio={layer: 0.5}, multiple=1)
    normed = Net(nn.GroupNorm(2, 8))
    with pytest.raises(UsageError, match="GroupNorm takes its statistics"):
        prune_channels(normed, X, ratio={"first": 0.5}, multiple=1)
    with pytest.raises(UsageError, match="other channels going in than coming out"):
        prune_channels(Grouped(), X, ratio={"first": 0.5}, multiple=1)


def test_channels_cannot_be_judged_by_weights_that_are_not_numbers() -> None:
    model = make(Dense)
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="stem has channels whose l1 score is NaN"):
        prune_channels(model, torch.randn(2, 2, 8, 8), ratio=0.5, multiple=1)
