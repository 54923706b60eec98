from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Splits
from cookbook.deploy import Runtime, kernels, parity, parity_suite
from cookbook.errors import UsageError
from cookbook.quantization.observers import METHODS, Method
from cookbook.quantization.prepare import prepare
from cookbook.quantization.ptq import calibrate, quantize, quantize_on
from cookbook.quantization.report import Quantized, saturates
from cookbook.quantization.scheme import Scheme

STEP = 0.05  # of the logits' scale: a number on the border between two integers may fall on either side
USUAL = 1e-3  # of the logits' scale: the rounding of biases, where no number lies on such a border


def files_agree(quantized: Quantized, path: Path, images: Tensor) -> None:
    """Compare the file, run as it is written, with the graph, also far out of range."""
    same = parity_suite(quantized.module, Runtime(path, optimize=False), images)
    usual = sorted(case.typical for case in same.cases.values())
    assert same.worst.largest < STEP and usual[len(usual) // 2] < USUAL, str(same)


def test_the_running_model_runs_in_int8_from_end_to_end(small_resnet: nn.Module, small_images: Tensor, tmp_path: Path) -> None:
    before = copy.deepcopy(small_resnet.state_dict())
    quantized = quantize_on(small_resnet, small_images)
    path = quantized.export(tmp_path / "resnet.onnx")
    report = kernels(path)
    assert {family: row.share for family, row in report.coverage.items()} == {"conv": 1, "linear": 1, "add": 1, "pool": 1}
    assert not report.islands and report.conversions == {"QuantizeLinear": 1}
    files_agree(quantized, path, small_images)
    assert parity(small_resnet, quantized.module, small_images).mean < 0.05
    assert all(torch.equal(value, before[name]) for name, value in small_resnet.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["resnet.onnx"]
    assert str(quantized).splitlines()[0].endswith("ranges by min-max, over 16 images")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_calibrates(small_resnet: nn.Module, small_images: Tensor, method: Method) -> None:
    quantized = quantize_on(small_resnet, small_images, method=method)
    assert quantized.method == method
    assert parity(small_resnet, quantized.module, small_images).mean < 0.25


class Network(nn.Module):
    """One operator between two convolutions, and a linear layer at the end."""

    def __init__(self, middle: nn.Module | Callable[[Tensor], Tensor], width: int = 8, before: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()) if before is None else before
        self.middle = middle
        self.last = nn.Conv2d(width, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.first(x))).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.wide(F.relu(self.narrow(F.adaptive_avg_pool2d(x, 1)))))


def norm(channels: int = 8) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.running_mean)
    nn.init.uniform_(layer.weight, 0.5, 2)
    return layer


class Sum(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def convolutions() -> Network:
    """Return grouped, depthwise and dilated convolutions, with what is fused into them."""
    return Network(
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), norm(), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding="same", dilation=2), norm(), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Hardtanh(0, 1),
        )
    )  # fmt: skip


def poolings() -> Network:
    return Network(
        nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.ChannelShuffle(2),
            Apply(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), Apply(lambda x: x.transpose(2, 3)),
        )
    )  # fmt: skip


def branches() -> Network:
    """Return sums, concatenations, the product of squeeze and excitation, and a BatchNorm that follows no convolution."""
    mixed = Apply(lambda x: torch.cat([F.relu(x[:, :4]), x[:, 4:], F.max_pool2d(x, 3, 1, 1)], 1))
    middle = nn.Sequential(
        Sum(nn.Conv2d(8, 8, 1)), Gate(), Sum(nn.AvgPool2d(3, 1, 1)), norm(), nn.ReLU(), nn.Conv2d(8, 8, 1), mixed
    )
    return Network(middle, 16)


CASES = {"convolutions": convolutions, "poolings": poolings, "branches": branches}


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_everything_between_convolutions_runs_in_int8(case: str, photos: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = quantize_on(CASES[case]().eval(), photos)
    path = quantized.export(tmp_path / "network.onnx")
    report = kernels(path)
    assert {family for family, row in report.coverage.items() if row.share < 1} == set(), str(report)
    files_agree(quantized, path, photos)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [(nn.GELU(), "no int8 kernel for GELU"), (nn.GroupNorm(2, 8), "lose what they are for")],
)
def test_what_stays_in_floats_is_said_with_the_reason(photos: Tensor, middle: nn.Module, reason: str, tmp_path: Path) -> None:
    quantized = quantize_on(Network(middle).eval(), photos)
    assert reason in str(quantized)
    report = kernels(quantized.export(tmp_path / "network.onnx"))
    assert report.coverage["conv"].share == 1 and report.coverage["linear"].share == 1


@pytest.mark.parametrize("excluded", ["head", "middle"])
def test_an_excluded_layer_computes_in_floats(photos: Tensor, excluded: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Network(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())).eval()
    quantized = quantize_on(model, photos, scheme=Scheme(exclude=(excluded,)))
    path = quantized.export(tmp_path / "network.onnx")
    report = kernels(path)
    missing = {family: row.total - row.int8 for family, row in report.coverage.items() if row.total != row.int8}
    # before a head in floats, pooling in integers would not pay
    assert missing == ({"linear": 1, "pool": 1} if excluded == "head" else {"conv": 1}), str(report)
    assert "excluded by name" in str(quantized)
    files_agree(quantized, path, photos)


def test_narrow_weights_run_in_the_same_kernels(photos: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = quantize_on(convolutions().eval(), photos, scheme=Scheme(weight_bits=3))
    path = quantized.export(tmp_path / "network.onnx")
    assert kernels(path).coverage["conv"].share == 1
    files_agree(quantized, path, photos)
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer if tensor.data_type == 3]
    assert max(abs(weight.astype(int)).max() for weight in weights if weight.ndim > 1) == 3


def test_one_scale_for_a_tensor_runs_in_the_same_kernels(photos: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = quantize_on(convolutions().eval(), photos, scheme=Scheme(per_channel=False))
    path = quantized.export(tmp_path / "network.onnx")
    assert kernels(path).coverage["conv"].share == 1
    files_agree(quantized, path, photos)


def test_float_activations_leave_only_weights_rounded(photos: Tensor) -> None:
    torch.manual_seed(0)
    model = convolutions().eval()
    quantized = quantize_on(model, photos, scheme=Scheme(activation_bits=None))
    assert parity(model, quantized.module, photos).mean < parity(model, quantize_on(model, photos).module, photos).mean


def test_narrow_activations_are_simulated_but_not_written(photos: Tensor, tmp_path: Path) -> None:
    quantized = quantize_on(convolutions().eval(), photos, scheme=Scheme(activation_bits=4))
    with pytest.raises(UsageError, match="Activations of 4 bits cannot be written"):
        quantized.export(tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


class Saturating(nn.Module):
    """All weights at the end of their range, so that two products of the largest inputs do not fit into 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1) * torch.linspace(0.5, 1, 16)


def test_saturation_happens_where_it_is_said_and_a_reduced_range_prevents_it(tmp_path: Path) -> None:
    full = torch.ones(2, 16, 3, 3)
    images = torch.cat([torch.rand(4, 16, 3, 3), full])
    for scheme, expected in ((Scheme(), saturates()), (Scheme(reduce_range=True), False)):
        quantized = quantize_on(Saturating().eval(), images, scheme=scheme)
        path = quantized.export(tmp_path / f"{scheme.reduce_range}.onnx")
        assert (parity(quantized.module, Runtime(path), full).largest > 1) == expected
        assert parity(quantized.module, Runtime(path, optimize=False), full).largest < STEP
        assert ("reduce_range=True" in str(quantized)) == expected


def test_calibrating_on_another_split_than_train_is_refused(small_resnet: nn.Module, fashion_mnist: Splits) -> None:
    for split in (fashion_mnist.test, fashion_mnist.validation):
        with pytest.raises(UsageError, match="must not be used to calibrate"):
            quantize(small_resnet, ResidentLoader(split, 64))


def test_quantize_takes_so_many_training_images(small_resnet: nn.Module, fashion_mnist: Splits) -> None:
    quantized = quantize(small_resnet, ResidentLoader(fashion_mnist.train, 20), images=50)
    assert quantized.report.images == 50


def test_a_limit_needs_images_to_measure_it_on(small_resnet: nn.Module, fashion_mnist: Splits) -> None:
    loader = ResidentLoader(fashion_mnist.train, 64)
    with pytest.raises(UsageError, match="pass both max_drop and validation, or neither"):
        quantize(small_resnet, loader, max_drop=0.1)


def test_no_images_and_unknown_methods_are_refused(small_resnet: nn.Module, small_images: Tensor) -> None:
    with pytest.raises(UsageError, match="calibration method is 'average'"):
        quantize_on(small_resnet, small_images, method="average")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no images to calibrate on"):
        calibrate(prepare(small_resnet, small_images), small_images[:0])
