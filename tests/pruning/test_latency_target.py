"""The latency budget on clocks that count: it lands on what is asked, learns from a wrong table, and says what it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from fake_clocks import BlockClock
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.measure import Timing
from cookbook.models import ResNetConfig, build
from cookbook.pruning.budget import prune
from cookbook.pruning.channels import prune_channels
from cookbook.pruning.latency import Latency, width_of_equal_latency
from cookbook.pruning.layer_table import LayerShape, LayerTable, layer_graph, layer_shapes, time_layers

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build(ResNetConfig(depth=8, width=16)).eval()


def budget(share: float, clock: BlockClock, table: BlockClock | None = None, **settings: Any) -> Latency:
    return Latency(share, clock=clock, table=LayerTable(measure=(table or clock).layers), **settings)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_latency_lands_within_the_tolerance_at_the_first_try(model: nn.Module, share: float) -> None:
    clock = BlockClock(4)
    found = prune(model, EXAMPLE, target=budget(share, clock), multiple=4)
    assert found.reached == pytest.approx(clock.seconds(found.model) / clock.seconds(model))
    assert found.reached == pytest.approx(share, rel=0.05)
    assert clock.asked == [("unpruned", "pruned")] * 3, "what meets the target is timed twice more"
    assert found.model(EXAMPLE).shape == (1, 10)


def test_a_table_that_is_wrong_is_corrected_by_the_whole_network(model: nn.Module) -> None:
    clock = BlockClock(4, overhead=1e-3)  # what the table does not know: a fixed cost of each layer
    found = prune(model, EXAMPLE, target=budget(0.7, clock, table=BlockClock(4)), multiple=4)
    assert len(clock.asked) > 3, "the table was right at once, so nothing was corrected"
    assert clock.seconds(found.model) / clock.seconds(model) == pytest.approx(0.7, rel=0.05)


class Lucky(BlockClock):
    """A machine that takes too long, but by chance not at the first timing of the first network."""

    def __call__(self, models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
        exact = super().__call__(models, example)
        if len(self.asked) == 1:
            return exact
        return {**exact, "pruned": Timing((1.2 * exact["pruned"].median,) * 3, 1, 1)}


def test_one_lucky_timing_does_not_end_the_search(model: nn.Module) -> None:
    clock = Lucky(4)
    found = prune(model, EXAMPLE, target=budget(0.5, clock), multiple=4)
    assert 1.2 * clock.seconds(found.model) / clock.seconds(model) == pytest.approx(found.reached)
    assert found.reached == pytest.approx(0.5, rel=0.05)


class Disturbed(BlockClock):
    """A table on a machine that did other work while the layers of one width were timed."""

    def __init__(self, width: int) -> None:
        super().__init__(1)
        self.width = width

    def _layer(self, weight: Sequence[int], groups: int = 1) -> float:
        return super()._layer(weight, groups) * (6 if weight[0] == self.width else 1)


@pytest.mark.parametrize("width", range(8, 65, 4))
def test_a_wrong_entry_of_the_table_does_not_keep_the_search_from_its_target(model: nn.Module, width: int) -> None:
    clock = BlockClock(1)
    found = prune(model, EXAMPLE, target=budget(0.5, clock, table=Disturbed(width)), multiple=4)
    assert clock.seconds(found.model) / clock.seconds(model) == pytest.approx(0.5, rel=0.05)


def test_a_share_at_the_edge_of_the_tolerance_is_bettered(model: nn.Module) -> None:
    clock = BlockClock(1, overhead=1e-4)
    edge = prune(model, EXAMPLE, target=budget(0.6, BlockClock(1)), multiple=1)
    first = clock.seconds(edge.model) / clock.seconds(model)  # what the table, which knows no overhead, proposes first
    assert first > 0.6
    tolerance = 1.01 * (first / 0.6 - 1)
    found = prune(model, EXAMPLE, target=budget(0.6, clock, table=BlockClock(1), tolerance=tolerance), multiple=1)
    assert len(clock.asked) > 3 + 1, "the first share was within the tolerance, and the search ended at its edge"
    assert abs(found.reached / 0.6 - 1) <= tolerance / 2


def test_the_nearest_share_is_taken_where_no_widths_come_closer(model: nn.Module) -> None:
    clock = BlockClock(16)
    least = clock.seconds(prune_channels(model, EXAMPLE, ratio=0.99, multiple=16)) / clock.seconds(model)
    found = prune(model, EXAMPLE, target=budget(least / 1.08, clock, tolerance=0.1), multiple=16)
    assert found.reached == pytest.approx(least)


def test_a_latency_below_what_is_reachable_is_refused(model: nn.Module) -> None:
    clock = BlockClock(4, overhead=1e-3)
    least = clock.seconds(prune_channels(model, EXAMPLE, ratio=0.99, multiple=4)) / clock.seconds(model)
    words = rf"cannot be reached within 5%.* the nearest is {least:.3f} and the least {least:.3f} "
    with pytest.raises(UsageError, match=words):
        prune(model, EXAMPLE, target=budget(0.01, clock, table=BlockClock(4)), multiple=4)


def test_predictions_and_confirmations_are_shares_of_the_unpruned_model(model: nn.Module) -> None:
    clock, table = BlockClock(4), BlockClock(1)
    target, small = budget(0.5, clock, table), build(ResNetConfig(depth=8, width=6)).eval()
    assert target.predictor(model, EXAMPLE)(small) == pytest.approx(table.seconds(small) / table.seconds(model))
    assert target.confirmer(model, EXAMPLE)(small) == pytest.approx(clock.seconds(small) / clock.seconds(model))
    with pytest.raises(UsageError, match="neither convolutions nor linear layers"):
        target.predictor(nn.Flatten(), EXAMPLE)


class Busy(BlockClock):
    """A machine on which rounds are disturbed, until it has been asked `quiet` times."""

    def __init__(self, quiet: int) -> None:
        super().__init__(4)
        self.quiet = quiet

    def __call__(self, models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
        exact = super().__call__(models, example)
        if len(self.asked) > self.quiet:
            return exact
        noisy = {"unpruned": (1, 1, 3, 3, 3), "pruned": (3, 1, 1, 3, 1)}
        return {name: Timing(tuple(timing.median * k for k in noisy[name]), 1, 1) for name, timing in exact.items()}


def test_a_disturbed_timing_is_repeated_and_never_believed(model: nn.Module) -> None:
    clock = Busy(2)
    exact = BlockClock(4)
    small = build(ResNetConfig(depth=8, width=8)).eval()
    share = budget(0.5, clock).confirmer(model, EXAMPLE)(small)
    assert clock.asked == [("unpruned", "pruned")] * 3
    assert share == pytest.approx(exact.seconds(small) / exact.seconds(model))
    with pytest.raises(UsageError, match="close what else computes on this machine"):
        budget(0.5, Busy(10**6)).confirmer(model, EXAMPLE)(small)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": 0.0}, "target is 0.0"), ({"share": 1.0}, "target is 1.0"),
        ({"share": 0.5, "tolerance": 0}, "tolerance is 0"), ({"share": 0.5, "rounds": 2}, "rounds is 2"),
        ({"share": 0.5, "threads": 0}, "threads is 0"), ({"share": 0.5, "batch": 0}, "batch is 0"),
    ],
)  # fmt: skip
def test_a_budget_out_of_range_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Latency(**settings)
    assert words in str(caught.value)


def family(width: int) -> nn.Module:
    return build(ResNetConfig(depth=8, width=width))


def test_the_width_of_equal_latency_is_the_closest(model: nn.Module) -> None:
    clock = BlockClock(1)
    pruned = prune_channels(model, EXAMPLE, ratio=0.5, multiple=1)  # all widths halved
    assert width_of_equal_latency(pruned, family, (4, 8, 16), EXAMPLE, clock=clock) == (8, pytest.approx(1.0))
    width, share = width_of_equal_latency(pruned, family, (10, 16), EXAMPLE, clock=clock)
    assert (width, share) == (10, pytest.approx(clock.seconds(family(10)) / clock.seconds(pruned)))
    assert clock.asked == [("reference", "4", "8", "16"), ("reference", "10", "16")]
    for widths in ((), (4, 4), (0,)):
        with pytest.raises(UsageError, match="give one or more different numbers"):
            width_of_equal_latency(pruned, family, widths, EXAMPLE, clock=clock)


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", dilation=2), nn.Conv2d(8, 8, 3, stride=(2, 1), padding=(1, 0), groups=4),
        nn.Conv2d(8, 8, (3, 1), padding="same"), nn.Flatten(2), nn.Linear(24, 5),
    )  # fmt: skip


def test_a_layers_graph_has_its_shape_and_runs_like_the_layer() -> None:
    model, images = mixed(), torch.rand(2, 3, 8, 8)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer in model:
        layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    shapes = layer_shapes(model, images)
    ran = [entry for entry in seen if isinstance(entry[0], nn.Conv2d | nn.Linear)]
    assert len(shapes) == len(ran) == 4
    for shape, (layer, inputs, output) in zip(shapes, ran, strict=True):
        graph = layer_graph(shape)
        onnx.checker.check_model(graph)
        weight, bias = (onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer)
        layer.weight.data = torch.from_numpy(weight.T.copy() if isinstance(layer, nn.Linear) else weight.copy())
        layer.bias.data = torch.from_numpy(bias.copy())
        (found,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(inputs), rtol=1e-4, atol=1e-5)
        assert found.shape == output.shape


def test_each_shape_is_measured_once_and_counted_as_often_as_it_runs() -> None:
    asked: list[LayerShape] = []

    def measure(shapes: Any) -> list[float]:
        asked.extend(shapes)
        return [float(shape.weight[0]) for shape in shapes]

    twice = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(twice, twice, nn.Conv2d(4, 6, 1))
    table, images = LayerTable(measure=measure), torch.zeros(1, 4, 5, 5)
    assert table.seconds(model, images) == 4 + 4 + 6
    assert table.seconds(nn.Sequential(twice), images) == 4
    assert len(asked) == len(set(asked)) == len(table.known) == 2
    assert table.seconds(model, torch.zeros(1, 4, 6, 6)) == 14
    assert len(asked) == 4, "another size of image is another shape"


def test_layers_are_timed_alone() -> None:
    seconds = time_layers(list(layer_shapes(mixed(), torch.zeros(1, 3, 8, 8))), rounds=3)
    assert len(seconds) == 4
    assert all(second > 0 for second in seconds)
