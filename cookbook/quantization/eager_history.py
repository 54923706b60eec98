"""The older, eager-mode quantization of torch.ao, and what replaced each of its calls (appendix of lesson 05).

The model is written for it: stubs say where integers begin and end, modules are fused by name, and every operation that
shall be quantized has to be a module. torch warns that it will be removed; the cookbook's own path is `quantize`.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.ao.quantization as eager
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.deploy.deprecations import expected_deprecations
from cookbook.errors import UsageError
from cookbook.quantization.rounding import CHUNK, first_images
from cookbook.training import Recipe, fit

REPLACED = (
    ("QuantStub(), DeQuantStub() in the model", "torch.export captures the graph: quantize(model, …)",
     "the model stays as it was written"),
    ("nn.quantized.FloatFunctional().add", "a + b", "an operator in the graph is annotated, it need be no module"),
    ("fuse_modules(model, [['conv', 'bn', 'relu']])", "the quantizer annotates conv, BatchNorm and ReLU as one",
     "names of modules can be mistyped, and what is forgotten stays in float"),
    ("get_default_qat_qconfig('x86')", "Scheme(…)", "a frozen dataclass says what is quantized to what"),
    ("prepare(model), prepare_qat(model)", "prepare_pt2e, prepare_qat_pt2e of torchao, inside quantize and "
     "quantize_aware_training", "observers are put into the graph, also between functions"),
    ("convert(model)", "convert_pt2e of torchao", "modules of torch.ao.nn.quantized became operators that can be exported"),
    ("torch.jit.trace(converted)", "Quantized.export(path)", "TorchScript is deprecated; ONNX Runtime runs the file"),
)  # fmt: skip


class EagerNet(nn.Module):
    """A small network as eager mode wants it: stubs at both ends, a sum that is a module, nothing twice.

    Args:
        channels: of its convolutions.
        in_channels: of the images.
        classes: length of the output.
    """

    def __init__(self, channels: int = 8, *, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.begin, self.end = eager.QuantStub(), eager.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(in_channels, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)
        self.sum = torch.ao.nn.quantized.FloatFunctional()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, H, W) to logits (B, classes)."""
        found = self.relu1(self.bn1(self.conv1(self.begin(images))))
        found = self.sum.add_relu(self.bn2(self.conv2(found)), found)
        return self.end(self.head(self.pool(found).flatten(1)))


FUSED = (("conv1", "bn1", "relu1"), ("conv2", "bn2"))


def quantize_eagerly(
    model: EagerNet, train: Loader, recipe: Recipe | None = None, *, images: int = 256
) -> tuple[torch.jit.ScriptModule, list[warnings.WarningMessage]]:
    """Quantize in the old way and return the traced module with the deprecation warnings that the way gave.

    The steps, as texts of its time teach them (https://docs.pytorch.org/docs/2.8/quantization.html, "Eager Mode
    Quantization"): fuse, set a configuration, prepare, calibrate or train, convert, trace.

    Args:
        model: trained; it is not changed.
        train: its role must be ``train``.
        recipe: of training with rounding; None: calibrate after training instead.
        images: that observers see.

    Raises:
        UsageError: the split has another role, or torch has no kernels of the configuration ``x86`` here.
    """
    require_role(train.role, ("train",), "calibrate")
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UsageError("This torch has no 'x86' kernels for eager-mode quantization: run the appendix on an x86 processor.")
    batch = first_images(train, images)
    with expected_deprecations("torch.ao.quantization is deprecated|`torch.jit") as said:
        work = copy.deepcopy(model)
        if recipe is None:
            work = eager.fuse_modules(work.eval(), [list(names) for names in FUSED])
            work.qconfig = eager.get_default_qconfig("x86")
            prepared = eager.prepare(work)
            with torch.no_grad():
                for part in batch.split(CHUNK):
                    prepared(part)
        else:
            work = eager.fuse_modules_qat(work.train(), [list(names) for names in FUSED])
            work.qconfig = eager.get_default_qat_qconfig("x86")
            prepared = eager.prepare_qat(work)
            fit(prepared, train, recipe, progress=False)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "x86"
        try:
            converted = eager.convert(prepared.eval())
            with torch.no_grad():
                traced: Any = torch.jit.trace(converted, batch[:1])
        finally:
            torch.backends.quantized.engine = before
    return traced, said
