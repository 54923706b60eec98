"""The same model compressed in each of the ways that users would pick, every way as short as its documentation (lesson 08).

A recipe takes what is `Given` and writes the file that is shipped. What it says is what its user has to write, so its
statements are counted; how the file is loaded and measured is the benchmark's business.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.deploy import export
from cookbook.deploy.openvino_format import export_openvino
from cookbook.pruning import MACs, fine_tune, prune
from cookbook.quantization import Scheme, quantize, saturates
from cookbook.quantization.peers import CalibrationImages
from cookbook.training import Recipe


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every recipe starts from.

    Attributes:
        model: trained in float32, in eval mode, a `cookbook.models.ResNet`. A recipe leaves it as it is.
        images: float32 (N, C, H, W), from the training split, to calibrate on.
        calibration: a loader of the same images.
        train: a loader of the training split, to fine-tune with.
        tuning: how; the same for every recipe that prunes.
        share: of the multiply-accumulates that pruning leaves.
    """

    model: nn.Module
    images: Tensor
    calibration: Loader
    train: Loader
    tuning: Recipe
    share: float = 0.5


@dataclass(frozen=True)
class Way:
    """One way to compress.

    Attributes:
        name: the first column of the table.
        make: the recipe: it writes the file and returns its path.
        suffix: of the file, which says what runs it: ``.onnx`` ONNX Runtime, ``.xml`` OpenVINO, ``.pt`` TorchScript,
            ``.pt2`` torch.compile.
        parts: what the user has to write besides the recipe.
        packages: whose versions belong to the result, by the names under which they are installed.
    """

    name: str
    make: Callable[[Given, Path], Path]
    suffix: str = ".onnx"
    parts: tuple[Callable[..., Any], ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def lines_of_code(self) -> int:
        """Statements that the user writes, with imports, however they are laid out; docstrings do not count."""
        return sum(statements(part) for part in (self.make, *self.parts))


def statements(part: Callable[..., Any]) -> int:
    """Return the number of statements in the body of a function or a class, at every depth, without docstrings."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node is not tree]
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in inside)


def in_float(given: Given, file: Path) -> Path:
    """Write the model as it is, in float32: what all others are compared with."""
    return export(given.model, given.images, file)


def in_float_by_openvino(given: Given, file: Path) -> Path:
    """Write the model as it is for OpenVINO: what NNCF's result is to be compared with in the same runtime."""
    return export_openvino(export(given.model, given.images, file.with_suffix(".onnx")), file)


def in_float_compiled(given: Given, file: Path) -> Path:
    """Write the model as it is for ``torch.compile``: what torchao's result is to be compared with in the same runtime."""
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.export.save(torch.export.export(given.model, (given.images[:2],), dynamic_shapes=(batch,)), file)
    return file


def by_cookbook(given: Given, file: Path) -> Path:
    """Quantize by this cookbook; the weights get 7 bits where this processor's sums would overflow with 8."""
    scheme = Scheme(reduce_range=saturates())
    return quantize(given.model, given.calibration, scheme=scheme).export(file)


def by_cookbook_pruned(given: Given, file: Path) -> Path:
    """Prune by this cookbook, fine-tune, quantize."""
    small = prune(given.model, given.images[:2], target=MACs(given.share, tolerance=0.1)).model
    fine_tune(small, given.train, given.tuning)
    return by_cookbook(replace(given, model=small.eval()), file)


def by_onnxruntime(given: Given, file: Path) -> Path:
    """Quantize by ONNX Runtime's own tool with the settings that its documentation advises for this processor.

    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    plain = export(given.model, given.images, file.with_suffix(".float.onnx"))
    quantize_static(
        plain, file, CalibrationImages(given.images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=saturates(),
    )  # fmt: skip
    return file


def by_torch_pruning(given: Given, file: Path) -> Path:
    """Prune by Torch-Pruning's defaults, fine-tune, quantize by ONNX Runtime's tool.

    One ratio for every layer leaves about its complement's square of the multiply-accumulates
    (https://github.com/VainF/Torch-Pruning).
    """
    import torch_pruning

    small: Any = copy.deepcopy(given.model)
    importance = torch_pruning.importance.GroupMagnitudeImportance()
    torch_pruning.BasePruner(
        small, given.images[:1], importance=importance, pruning_ratio=1 - given.share**0.5, ignored_layers=[small.head]
    ).step()
    fine_tune(small, given.train, given.tuning)
    return by_onnxruntime(replace(given, model=small.eval()), file)


def by_nncf(given: Given, file: Path) -> Path:
    """Quantize by NNCF for OpenVINO, with its defaults (https://docs.openvino.ai/2026/openvino-workflow/model-optimization.html)."""
    import nncf
    import openvino

    plain = openvino.Core().read_model(export(given.model, given.images, file.with_suffix(".onnx")))
    dataset = nncf.Dataset(given.images.split(1), Tensor.numpy)
    openvino.save_model(nncf.quantize(plain, dataset, subset_size=len(given.images)), file)
    return file


def by_torchao(given: Given, file: Path) -> Path:
    """Quantize by torchao for ``torch.compile`` on x86.

    It leaves the float weights beside the integers; whoever ships the file takes them out.
    (https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_x86_inductor.html)
    """
    from cookbook.quantization.pt2e import convert_pt2e, prepare_pt2e, x86_quantizer

    batch = {0: torch.export.Dim.DYNAMIC}
    captured = torch.export.export(given.model, (given.images[:2],), dynamic_shapes=(batch,))
    prepared = prepare_pt2e(captured.module(), x86_quantizer())
    for part in given.images.split(64):
        prepared(part)
    converted = convert_pt2e(prepared)
    read = {node.target for node in converted.graph.nodes}
    for name in [name for name, _ in converted.named_parameters() if name not in read]:
        owner, _, own_name = name.rpartition(".")
        delattr(converted.get_submodule(owner), own_name)
    torch.export.save(torch.export.export(converted, (given.images[:2],), dynamic_shapes=(batch,)), file)
    return file


class EagerBlock(nn.Module):
    """A residual block written again for eager mode, where whatever is quantized has to be a module."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first = nn.Sequential(block.conv1, block.bn1, nn.ReLU())
        self.second = nn.Sequential(block.conv2, block.bn2)
        self.shortcut = block.shortcut
        self.sum = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the block's output."""
        return self.sum.add_relu(self.second(self.first(x)), self.shortcut(x))


def by_eager_mode(given: Given, file: Path) -> Path:
    """Quantize in torch's older eager mode with its configuration for x86, and trace (lesson 05's appendix)."""
    import torch.ao.quantization as eager

    model: Any = copy.deepcopy(given.model)
    model.blocks = nn.Sequential(*map(EagerBlock, model.blocks))
    chains = [name for name, part in model.named_modules() if isinstance(part, nn.Sequential) and name != "blocks"]
    names = [[f"{chain}.{number}" for number in range(len(model.get_submodule(chain)))] for chain in chains]
    wrapped = eager.QuantWrapper(eager.fuse_modules(model.eval(), names))
    wrapped.qconfig = eager.get_default_qconfig("x86")
    prepared = eager.prepare(wrapped)
    for part in given.images.split(64):
        prepared(part)
    torch.jit.save(torch.jit.trace(eager.convert(prepared), given.images[:1]), file)
    return file


FLOAT = "float32"
WAYS = (
    Way(FLOAT, in_float),
    Way("float32 in OpenVINO", in_float_by_openvino, ".xml", packages=("openvino",)),
    Way("float32 in torch.compile", in_float_compiled, ".pt2"),
    Way("this cookbook: quantize", by_cookbook),
    Way("ONNX Runtime's tool", by_onnxruntime, parts=(CalibrationImages,)),
    Way("NNCF", by_nncf, ".xml", packages=("nncf", "openvino")),
    Way("torchao", by_torchao, ".pt2", packages=("torchao",)),
    Way("eager mode", by_eager_mode, ".pt", parts=(EagerBlock,)),
    Way("this cookbook: prune, quantize", by_cookbook_pruned, parts=(by_cookbook,)),
    Way(
        "Torch-Pruning, ONNX Runtime's tool", by_torch_pruning, parts=(by_onnxruntime, CalibrationImages),
        packages=("torch-pruning",),
    ),
)  # fmt: skip
