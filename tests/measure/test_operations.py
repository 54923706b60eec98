import pytest
import torch
import torch.nn.functional as F
import torch_pruning
import torchvision
from torch import nn
from torch.utils import flop_counter

from cookbook.errors import UsageError
from cookbook.measure import count_macs, count_parameters
from cookbook.models import ResNet, ResNetConfig


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(12, 5), (12,), 12 * 5),
        (nn.Linear(12, 5, bias=False), (7, 12), 7 * 12 * 5),
        (nn.Conv2d(6, 8, 3, padding=1), (6, 5, 5), 25 * 9 * 6 * 8),
        (nn.Conv2d(6, 8, 3, stride=2), (6, 9, 9), 16 * 9 * 6 * 8),
        (nn.Conv2d(6, 8, (3, 1), dilation=2), (6, 9, 9), 5 * 9 * 3 * 6 * 8),
        (nn.Conv2d(6, 8, 3, padding=1, groups=2), (6, 5, 5), 25 * 9 * 3 * 8),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 5, 5), 25 * 9 * 6),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), (6, 5, 5), 25 * 9 * 6 * 8),
        (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2), (6, 5, 5), 25 * 9 * 6 * 4),
        (nn.Conv1d(4, 4, 3), (4, 10), 8 * 3 * 16),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout()), (3, 4, 4), 0),
    ],
)  # fmt: skip
def test_layers_are_counted_by_their_closed_form(layer, shape, macs):
    assert count_macs(layer, torch.randn(4, *shape)) == macs
    assert count_macs(layer, torch.randn(1, *shape)) == macs


class Attention(nn.Module):
    def forward(self, tokens):
        heads = tokens.unflatten(2, (4, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads)


def test_attention_is_counted_where_the_counter_does_not_know_the_fused_kernel(monkeypatch):
    for kernel in [kernel for kernel in flop_counter.flop_registry if "attention" in str(kernel)]:
        monkeypatch.delitem(flop_counter.flop_registry, kernel)
    assert count_macs(Attention(), torch.randn(1, 7, 16)) == 2 * 7 * 7 * 16


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_counted_by_its_closed_form(training):
    tokens, width, hidden = 7, 16, 32
    projections, products, mlp = 4 * tokens * width * width, 2 * tokens * tokens * width, 2 * tokens * width * hidden
    example = torch.randn(3, tokens, width)
    assert count_macs(Attention().train(training), example) == products
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True).train(training)
    assert count_macs(layer, example) == projections + products + mlp
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ResNet(ResNetConfig(depth=20, width=32)), (1, 28, 28)),
        (torchvision.models.resnet18(), (3, 64, 64)),
        (torchvision.models.mobilenet_v2(), (3, 64, 64)),
    ],
)  # fmt: skip
def test_networks_are_counted_as_torch_pruning_counts_them(model, shape):
    example = torch.randn(1, *shape)
    _, parameters, by_layer, _ = torch_pruning.utils.count_ops_and_params(model.eval(), example, layer_wise=True)
    # it also counts BatchNorm, activations and pooling, which are left out here, and an addition for each bias
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    biases = [layer.bias.numel() for layer in layers if layer.bias is not None]
    assert len(biases) == 1  # that of the head, which is applied once
    assert count_macs(model, example) == sum(by_layer[layer] for layer in layers) - sum(biases)
    assert count_parameters(model) == parameters


def test_the_running_model_has_the_parameters_that_the_course_names():
    assert count_parameters(ResNet(ResNetConfig(depth=20, width=32))) == 1_084_010


def test_shared_parameters_are_counted_once_and_buffers_never():
    linear = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(linear, nn.BatchNorm1d(3), linear)) == 12 + 6


def test_counting_leaves_no_trace_in_the_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(36, 2)).train()
    model[2].eval()
    graphs = []
    model[4].register_forward_hook(lambda module, images, logits: graphs.append(logits.requires_grad))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert count_macs(model, torch.randn(2, 3, 5, 5)) == 9 * 9 * 3 * 4 + 72
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert graphs == [False] and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (nn.Linear(3, 2), torch.randn(0, 3), "holds no image"),
        (nn.Linear(3, 2), torch.tensor(1.0), "holds no image"),
        (nn.Linear(3, 2), torch.randn(1, 4), r"Linear cannot process an image of shape \(4,\)"),
        (nn.Sequential(nn.LSTM(3, 2)), torch.randn(1, 4, 3), "recurrent"),
    ],
)
def test_what_cannot_be_counted_is_refused(model, example, words):
    with pytest.raises(UsageError, match=words):
        count_macs(model.train(), example)
    assert model.training
