"""The learned step: its gradient by formula, by finite differences and by torch's own kernel, and what is written."""

from __future__ import annotations

import math

import pytest
import torch
from narrow_models import blobs, plain_net, resnet
from torch import Tensor

from cookbook.errors import UsageError
from cookbook.quantization.lsq import LearnedStepQuantize, first_step, learn_steps, learned_step
from cookbook.quantization.prepare import convert, prepare
from cookbook.quantization.scheme import Scheme

IMAGES = blobs(12).normalized()


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 7, dtype=torch.float64, generator=generator)
    return values.requires_grad_(), torch.rand(4, 1, dtype=torch.float64, generator=generator).add(0.2).requires_grad_()


@pytest.mark.parametrize("bounds", [(-1, 1), (-3, 3), (-7, 7), (0, 15)])
def test_gradients_follow_the_papers_formula(bounds: tuple[int, int]) -> None:
    low, high = bounds
    values, step = case()
    weights = torch.randn(4, 7, dtype=torch.float64)
    (learned_step(values, step, low, high) * weights).sum().backward()
    for channel in range(4):
        size, expected = float(step[channel].detach()), 0.0
        for place in range(7):
            x = float(values[channel, place].detach()) / size
            inside = low < x < high
            slope = round(x) - x if inside else float(low if x <= low else high)
            expected += float(weights[channel, place]) * slope
            gradient = float(weights[channel, place]) if inside else 0.0
            assert float(values.grad[channel, place]) == pytest.approx(gradient)
        assert float(step.grad[channel]) == pytest.approx(expected / math.sqrt(7 * high))


def test_where_values_are_clipped_the_gradient_is_the_derivative() -> None:
    values, step = torch.full((2, 5), 9.0, dtype=torch.float64), torch.tensor([[0.3], [0.5]], dtype=torch.float64)
    values[1] = -9.0
    step.requires_grad_()
    learned_step(values, step, -3, 3).sum().backward()
    moved = [learned_step(values, step.detach() + epsilon, -3, 3).sum(1) for epsilon in (-1e-6, 1e-6)]
    numeric = (moved[1] - moved[0]) / 2e-6
    torch.testing.assert_close(step.grad.flatten() * math.sqrt(5 * 3), numeric)


def test_forward_and_gradients_equal_torchs_own_kernel() -> None:
    values, step = (tensor.detach().float() for tensor in case(3))
    mine = [values.clone().requires_grad_(), step.clone().requires_grad_()]
    theirs = [values.clone().requires_grad_(), step.flatten().clone().requires_grad_()]
    found = learned_step(*mine, -7, 7)
    factor = 1 / math.sqrt(7 * 7)
    expected = torch._fake_quantize_learnable_per_channel_affine(theirs[0], theirs[1], torch.zeros(4), 0, -7, 7, factor)
    assert torch.equal(found, expected)
    upstream = torch.randn(4, 7)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(mine[0].grad, theirs[0].grad)
    torch.testing.assert_close(mine[1].grad.flatten(), theirs[1].grad)


def test_the_first_step_is_best_channel_by_channel_and_keeps_a_single_weight() -> None:
    values = torch.randn(6, 3, 2)
    steps = first_step(values, 1, 0)
    for channel, step in zip(values.flatten(1), steps, strict=True):
        tried = [float((learned_step(channel, torch.tensor(n / 200), -1, 1) - channel).square().sum()) for n in range(5, 600)]
        assert float((learned_step(channel, step, -1, 1) - channel).square().sum()) < 1.02 * min(tried) + 1e-9
    assert first_step(values, 7, None).shape == (1,)
    torch.testing.assert_close(first_step(values.transpose(0, 1), 1, 1), steps)
    alone = torch.tensor([[0.7], [-0.2]])
    torch.testing.assert_close(learned_step(alone, first_step(alone, 1, 0).view(-1, 1), -1, 1), alone)


def test_descent_on_the_step_comes_close_to_the_best_one() -> None:
    values = torch.randn(1, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    step = torch.full((1, 1), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([step], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        (learned_step(values, step, -1, 1) - values).square().mean().backward()
        optimizer.step()
    errors = {n: float((learned_step(values, torch.full((1, 1), n / 100).double(), -1, 1) - values).square().mean())
              for n in range(50, 250)}  # fmt: skip
    found = float((learned_step(values, step, -1, 1) - values).square().mean().detach())
    # rounding's gradient is a stand-in, so that descent ends near the best step, not on it
    assert found < 1.15 * min(errors.values()) < 0.7 * errors[200]


@pytest.mark.parametrize(("bits", "per_channel"), [(2, True), (3, False), (4, True)])
def test_the_step_that_is_learned_is_the_scale_that_is_written(bits: int, per_channel: bool) -> None:
    model = plain_net() if per_channel else resnet()
    scheme = Scheme(weight_bits=bits, per_channel=per_channel)
    prepared = prepare(model, IMAGES, scheme, qat=True)
    count = learn_steps(prepared, IMAGES)
    learned = {name: module for name, module in prepared.named_modules() if isinstance(module, LearnedStepQuantize)}
    assert len(learned) == count == (5 if per_channel else 10)
    with torch.no_grad():
        for module in learned.values():
            module.step.mul_(torch.empty_like(module.step).uniform_(-1.3, -0.7))  # no observer would find these
        prepared(IMAGES)
        for module in prepared.modules():
            if hasattr(module, "disable_observer"):
                module.disable_observer()
        for name, value in prepared.state_dict().items():
            if "running_var" in name:  # so that gamma/sigma is not near one
                value.mul_(torch.empty_like(value).uniform_(0.1, 10.0))
        simulated = prepared(IMAGES)
        converted = convert(prepared)
        torch.testing.assert_close(converted(IMAGES), simulated, atol=1e-5, rtol=1e-5)
    written = [scales_of(node, converted) for node in converted.graph.nodes if "dequantize_per" in str(node.target)]
    units = {str(node.target): unit_of(prepared, node) for node in prepared.graph.nodes if str(node.target) in learned}
    assert any(not torch.equal(unit, torch.ones_like(unit)) for unit in units.values()) == per_channel
    for name, module in learned.items():
        used = module.scale * units[name]
        assert any(found.shape == used.shape and torch.allclose(found, used) for found in written)


def unit_of(prepared: torch.fx.GraphModule, node: torch.fx.Node) -> Tensor:
    """Return |gamma|/sigma of the BatchNorm after a weight, computed from its names alone; one where there is none."""
    (convolution,) = node.users
    norm = next((user for user in reached(convolution) if "batch_norm" in str(user.target)), None)
    if norm is None or len(node.args) == 1:
        return torch.ones(1)
    state = prepared.state_dict()
    name = str(norm.args[3].target).removesuffix(".running_mean")
    return state[f"{name}.weight"].abs() / (state[f"{name}.running_var"] + norm.args[7]).sqrt()


def reached(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return the next three nodes along a chain: the division by the scale, the bias if there is one, and BatchNorm."""
    found = [node]
    while len(found) < 4 and len(found[-1].users) == 1:
        found.append(next(iter(found[-1].users)))
    return found[1:]


@pytest.mark.parametrize("bits", [2, 4])
def test_what_batchnorm_does_to_its_statistics_leaves_the_integers_as_they_are(bits: int) -> None:
    prepared = prepare(plain_net(), IMAGES, Scheme(weight_bits=bits), qat=True)
    learn_steps(prepared, IMAGES)
    with torch.no_grad():
        prepared(IMAGES)
        before = integers_of(convert(prepared))
        for name, value in prepared.state_dict().items():
            if "running_var" in name:
                value.mul_(torch.empty_like(value).uniform_(1e-3, 1e3))
        prepared(IMAGES)
        after = integers_of(convert(prepared))
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


def integers_of(converted: torch.fx.GraphModule) -> dict[str, Tensor]:
    return {name: value for name, value in converted.state_dict().items() if value.dtype is torch.int8}


def test_in_units_of_a_scale_the_gradient_is_that_of_the_unscaled_weight() -> None:
    values, step = case(2)
    unit = torch.tensor([[0.01], [-3.0], [40.0], [1.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 7, dtype=torch.float64)
    (learned_step(values * unit, step, -3, 3, unit) / unit * upstream).sum().backward()
    plain = [tensor.detach().clone().requires_grad_() for tensor in (values, step)]
    (learned_step(*plain, -3, 3) * upstream).sum().backward()
    torch.testing.assert_close(values.grad, plain[0].grad)
    torch.testing.assert_close(step.grad, plain[1].grad)
    torch.testing.assert_close(unit.grad, torch.zeros(4, 1, dtype=torch.float64))


def scales_of(node: torch.fx.Node, graph: torch.fx.GraphModule) -> Tensor:
    scale = node.args[1]
    if isinstance(scale, torch.fx.Node):
        return graph.get_buffer(str(scale.target)).float()
    return torch.tensor([float(scale)])


def test_switched_off_it_passes_values_and_a_graph_without_weights_is_refused() -> None:
    prepared = prepare(plain_net(), IMAGES, Scheme(weight_bits=2), qat=True)
    learn_steps(prepared, IMAGES)
    module = next(module for module in prepared.modules() if isinstance(module, LearnedStepQuantize))
    values = torch.randn(module.step.numel(), 5)
    assert not torch.equal(module(values), values)
    module.disable_fake_quant()
    assert torch.equal(module(values), values)
    with pytest.raises(UsageError, match="no fake quantizers of weights"):
        learn_steps(convert(_seen(prepare(plain_net(), IMAGES))), IMAGES)


def _seen(prepared: torch.fx.GraphModule) -> torch.fx.GraphModule:
    with torch.no_grad():
        prepared(IMAGES)
    return prepared
