from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import DeploymentError, UsageError
from cookbook.models import eval_mode
from cookbook.quantization.capture import capture
from cookbook.quantization.graphs import BATCH_NORM, QuantizableGraph, layer_names
from cookbook.quantization.prepare import convert, freeze_batch_norm, prepare, set_observers
from cookbook.quantization.pt2e import FakeQuantize, FakeQuantizeBase
from cookbook.quantization.scheme import Scheme

aten = torch.ops.aten
WIDTHS = (2, 3, 4, 6, 8)


class Block(nn.Module):
    """A convolution, a BatchNorm with an epsilon and a momentum of its own, a ReLU, and a linear layer."""

    def __init__(self, *, bias: bool = True, affine: bool = True, padding: str | int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel, padding=padding, bias=bias)
        self.norm = nn.BatchNorm2d(8, eps=0.1, momentum=0.3, affine=affine)
        self.head = nn.Linear(8, 5)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        if affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def targets(graph: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes]


def test_capture_computes_the_same_at_another_batch_size_and_leaves_the_model_alone(images: Tensor) -> None:
    model = Block().train()
    before = copy.deepcopy(model.state_dict())
    graph = capture(model, images)
    with torch.inference_mode(), eval_mode(model):
        assert torch.allclose(graph(images), model(images), atol=1e-6)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter is not own for parameter in graph.parameters() for own in model.parameters())


def test_layers_are_named_as_in_the_model(small_resnet: nn.Module, small_images: Tensor) -> None:
    names = layer_names(capture(small_resnet, small_images))
    expected = {name for name, module in small_resnet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(names) == expected and len(names) == len(expected)


class Writing(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.conv(x)).mean((2, 3))


def reads_afterwards(y: Tensor) -> Tensor:
    cut = F.relu_(y)
    return cut + y


def test_what_reads_a_tensor_after_it_was_written_reads_the_result(images: Tensor) -> None:
    model = Writing(reads_afterwards).eval()
    graph = capture(model, images)
    assert torch.allclose(graph(images), model(images), atol=1e-6)
    assert aten.relu_.default not in targets(graph) and aten.relu.default in targets(graph)


def writes_into_a_view(y: Tensor) -> Tensor:
    y[:, :2].relu_()
    return y


def test_a_model_that_capturing_would_change_is_refused(images: Tensor) -> None:
    with pytest.raises(DeploymentError, match="computes something else once it is captured"):
        capture(Writing(writes_into_a_view).eval(), images)


def test_silu_becomes_a_product_with_a_sigmoid(images: Tensor) -> None:
    model = Writing(F.silu).eval()
    graph = capture(model, images)
    assert {aten.sigmoid.default, aten.mul.Tensor} <= set(targets(graph)) and aten.silu.default not in targets(graph)
    assert torch.allclose(graph(images), model(images), atol=1e-6)


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words_folds_like_padding_in_numbers(images: Tensor, qat: bool, padding: str) -> None:
    prepared = prepare(Block(padding=padding).eval(), images, qat=qat)
    prepared(images)
    converted = convert(prepared)
    assert BATCH_NORM not in targets(converted)
    assert aten.conv2d.default in targets(converted) and aten.conv2d.padding not in targets(converted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_separated_batch_norm_computes_what_the_model_computes(images: Tensor, bias: bool, affine: bool) -> None:
    model = Block(bias=bias, affine=affine).eval()
    prepared = prepare(model, images, qat=True)
    set_observers(prepared, observe=False, quantize=False)
    with torch.no_grad():
        assert torch.allclose(prepared(images), model(images), atol=1e-5)


def test_statistics_follow_the_models_own_momentum_and_stop_when_frozen(images: Tensor) -> None:
    model = Block()
    prepared = prepare(model, images, qat=True)
    set_observers(prepared, observe=False, quantize=False)
    model.train()
    prepared.train()
    with torch.no_grad():
        assert torch.allclose(prepared(images), model(images), atol=1e-4)
    expected = model.norm.running_var.clone()
    running = dict(prepared.named_buffers())["norm.running_var"]
    assert torch.allclose(running, expected, rtol=1e-4)
    freeze_batch_norm(prepared)
    prepared.train()
    assert prepared.training
    before = running.clone()
    prepared(images + 3)
    assert torch.equal(dict(prepared.named_buffers())["norm.running_var"], before)
    freeze_batch_norm(prepared, False)
    prepared(images + 3)
    assert not torch.equal(dict(prepared.named_buffers())["norm.running_var"], before)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_scale_trained_on_is_the_scale_written(images: Tensor, bits: int, per_channel: bool) -> None:
    prepared = prepare(Block(), images, Scheme(weight_bits=bits, per_channel=per_channel), qat=True)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    prepared.train()
    for step in range(4):
        loss = F.cross_entropy(prepared(images), torch.arange(6) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 2:
            freeze_batch_norm(prepared)
    prepared.eval()
    with torch.no_grad():
        trained = prepared(images)
        set_observers(prepared, observe=False)
        assert torch.allclose(prepared(images), trained, atol=1e-6)
        assert torch.allclose(convert(prepared)(images), trained, atol=1e-5)


def test_the_scale_written_is_that_of_the_weights_after_the_last_step(images: Tensor) -> None:
    prepared = prepare(Block(), images, qat=True)
    prepared(images)
    with torch.no_grad():
        prepared.get_parameter("conv.weight").mul_(3)
    converted = convert(prepared)
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase) and not module.is_per_channel:
            module.enable_observer(False)
    with torch.no_grad():
        assert torch.allclose(converted(images), prepared(images), atol=1e-5)


def test_dropout_stands_behind_what_is_quantized(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Dropout(0.9), nn.Conv2d(8, 4, 1), nn.Flatten())
    prepared = prepare(model, images, qat=True)
    dropout = next(node for node in prepared.graph.nodes if node.target == aten.dropout.default)
    assert dropout.args[0].op == "call_module" and [user.target for user in dropout.users] == [aten.conv2d.default]
    prepared.train()
    prepared(images)
    largest = prepared.get_submodule(str(dropout.args[0].target)).activation_post_process.max_val
    with torch.no_grad():
        assert largest == pytest.approx(F.relu(model[0](images)).max().item(), rel=0.02)  # not ten times as large


def test_every_weight_has_a_fake_quantizer_that_is_not_the_fused_one(images: Tensor) -> None:
    prepared = prepare(Block(), images, qat=True)
    assert {type(module) for module in prepared.modules() if isinstance(module, FakeQuantizeBase)} == {FakeQuantize}


def test_an_uncalibrated_graph_is_refused(images: Tensor) -> None:
    prepared = prepare(Block().eval(), images)
    with pytest.raises(UsageError, match="observers saw no data"):
        convert(prepared)
    with pytest.raises(UsageError, match="has no observers"):
        convert(capture(Block().eval(), images))


def test_convert_leaves_the_prepared_graph_as_it_is(images: Tensor) -> None:
    prepared = prepare(Block(), images, qat=True)
    prepared(images)
    first, again = convert(prepared), convert(prepared)
    assert torch.equal(first(images), again(images))
    assert any(isinstance(module, FakeQuantizeBase) for module in prepared.modules())


def test_a_converted_graph_says_that_it_simulates(images: Tensor) -> None:
    prepared = prepare(Block(), images)
    prepared(images)
    assert convert(prepared).meta["simulates"] == "int8"


def test_a_copy_keeps_its_modes(images: Tensor) -> None:
    prepared = prepare(Block(), images, qat=True)
    freeze_batch_norm(prepared)
    copied = copy.deepcopy(prepared)
    assert isinstance(copied, QuantizableGraph)
    copied.train()
    assert [node.args[5] for node in copied.graph.nodes if node.target == BATCH_NORM] == [False]
    freeze_batch_norm(copied, False)
    assert [node.args[5] for node in copied.graph.nodes if node.target == BATCH_NORM] == [True]
    assert [node.args[5] for node in prepared.graph.nodes if node.target == BATCH_NORM] == [False]


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (Scheme(exclude=("tail",)), "no layer 'tail' to exclude: the layers are conv, head"),
        (Scheme(exclude=("conv", "head")), "nothing to quantize"),
    ],
)
def test_exclusions_that_cannot_be_meant_are_refused(images: Tensor, scheme: Scheme, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        prepare(Block(), images, scheme)


def test_a_model_of_two_outputs_is_refused(images: Tensor) -> None:
    class Two(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    with pytest.raises(UsageError, match="returns a tuple"):
        capture(Two().eval(), images)
