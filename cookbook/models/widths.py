"""The sizes of every layer as numbers, so that a pruned network can be described, built and stored (lesson 04)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from cookbook.errors import UsageError
from cookbook.models.perceptron import Perceptron
from cookbook.models.resnet import ResNet, projects
from cookbook.models.separable import SeparableNet
from cookbook.models.transformer import VisionTransformer

SIZES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (_ConvNd, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (_BatchNorm, ("num_features",)),
)


def layer_sizes(model: nn.Module) -> dict[str, int]:
    """Return the sizes of convolutions, linear layers and BatchNorm, such as ``{"stem.0.out_channels": 32}``."""
    return {f"{name}.{size}": getattr(layer, size) for name, layer in model.named_modules() for size in _sizes_of(layer)}


def resize(model: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    """Cut layers down to the given sizes, in place, and return the model; each keeps its leading weights.

    The result has the architecture of a pruned network; which channels survived is a matter of the weights
    that are loaded into it. Freshly initialized weights keep the spread of the wider layer.

    Args:
        model: the network in its original widths.
        sizes: by names as `layer_sizes` has them; layers that are not named stay as they are.

    Raises:
        UsageError: a name is no size of this model, or a size is larger than the layer's or below 1.
    """
    known = layer_sizes(model)
    for name, size in sizes.items():
        if name not in known:
            raise UsageError(f"{name!r} is no size of {type(model).__name__}: use names such as {next(iter(known), 'none')!r}.")
        if not isinstance(size, int) or not 1 <= size <= known[name]:
            raise UsageError(f"{name} is {size!r}: use a whole number from 1 to {known[name]}, the size of the unpruned layer.")
    for layer in {name.rpartition(".")[0] for name in sizes}:
        module = model.get_submodule(layer)
        for attribute in _sizes_of(module):
            setattr(module, attribute, sizes.get(f"{layer}.{attribute}", getattr(module, attribute)))
        _cut(module)
    return model


def config_of_widths(model: Any, original: nn.Module) -> Any:
    """Return the configuration that describes a pruned model of the cookbook's families; None for any other.

    Args:
        model: with the layers of the pruned network, and the `config` of the unpruned one.
        original: the network before the surgery.
    """
    if isinstance(model, ResNet):
        blocks: list[Any] = list(model.blocks)
        pruned = replace(
            model.config, stem=_out(model.stem[0]), inner=tuple(_out(block.conv1) for block in blocks),
            outer=tuple(_out(block.conv2) for block in blocks), projections=None,
        )  # fmt: skip
        projections = tuple(not isinstance(block.shortcut, nn.Identity) for block in blocks)
        return pruned if projects(pruned) == projections else replace(pruned, projections=projections)
    if isinstance(model, SeparableNet):
        blocks = list(model.blocks)
        return replace(model.config, stem=_out(model.stem[0]), channels=tuple(_out(block.pointwise) for block in blocks))
    if isinstance(model, VisionTransformer):
        blocks = list(model.blocks)
        return replace(model.config, hidden=tuple(_out(block.mlp[0]) for block in blocks))
    if isinstance(model, Perceptron):
        return replace(model.config, hidden=tuple(_out(layer) for layer in model.hidden if isinstance(layer, nn.Linear)))
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "widths"):
        return None
    before = layer_sizes(original)
    changed = {name: size for name, size in layer_sizes(model).items() if size != before[name]}
    return replace(config, widths={**dict(config.widths), **changed})


def _sizes_of(layer: nn.Module) -> tuple[str, ...]:
    return next((sizes for kind, sizes in SIZES if isinstance(layer, kind)), ())


def _out(layer: Any) -> int:
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert isinstance(size, int)
    return size


def _cut(module: nn.Module) -> None:
    """Cut the tensors of one layer to the sizes that its attributes name."""
    if isinstance(module, _ConvTransposeNd):
        shape: tuple[int, ...] = (module.in_channels, module.out_channels // module.groups)
    elif isinstance(module, _ConvNd):
        shape = (module.out_channels, module.in_channels // module.groups)
    elif isinstance(module, nn.Linear):
        shape = (module.out_features, module.in_features)
    else:
        shape = (int(module.num_features),)  # type: ignore[arg-type]
    out = _out(module) if len(shape) == 2 else shape[0]
    for name, parameter in list(module.named_parameters(recurse=False)):
        cut = _leading(parameter.detach(), shape if parameter.ndim >= len(shape) and name == "weight" else (out,))
        setattr(module, name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(module, name, _leading(buffer, (out,)))


def _leading(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    for dimension, length in enumerate(shape):
        tensor = tensor.narrow(dimension, 0, length)
    return tensor.clone()
