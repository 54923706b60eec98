"""The one import site of Torch-Pruning: which channels of a network depend on one another (lesson 04)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from cookbook.errors import UsageError
from cookbook.models import eval_mode

ATTENTION = ("scaleddotproduct", "bmm", "softmax")  # in the names of autograd's operations
RESHAPING = ("EXPAND", "SPLIT", "UNBIND", "SLICE")


@dataclass(frozen=True, eq=False)
class Member:
    """One layer's share of a group.

    Attributes:
        layer: its name in the model.
        side: ``out`` for channels that the layer makes or passes on, ``in`` for those that it mixes.
        channels: int64 (n,), positions on that side of the layer.
        units: int64 (n,), the group's channel to which each belongs.
    """

    layer: str
    side: Literal["out", "in"]
    channels: Tensor
    units: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only leave together, because layers add, scale or normalize them together.

    Attributes:
        name: the first convolution or linear layer that makes them, in the model's order.
        width: number of channels.
        block: so many neighbours leave together: the channels of one group of a grouped convolution; else 1.
        members: every layer concerned.
        frozen: why no channel may leave, without a full stop; empty: they may.
    """

    name: str
    width: int
    block: int
    members: tuple[Member, ...]
    frozen: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers that make or pass on these channels."""
        return tuple(member.layer for member in self.members if member.side == "out")


class Surgery:
    """A traced network whose channels can be taken out, in place.

    The dependencies are those of Fang et al., DepGraph (arXiv 2301.12900), as Torch-Pruning finds them from
    autograd's graph. Grouped convolutions lose whole groups here, where the library thins every group.

    Args:
        model: is traced in eval mode; its modes are left as they were.
        example: images (B, C, H, W) on the model's device.

    Raises:
        UsageError: the network cannot run on the example, or autograd does not see a part of it.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        grouped: list[Any] = [module for module in model.modules() if _loses_whole_groups(module)]
        for module in grouped:
            module.__class__ = _GroupedConv  # the library finds its pruner by the class
        self._graph = torch_pruning.DependencyGraph()
        self._roots: dict[str, tuple[nn.Module, Any]] = {}
        ran: list[nn.Module] = []
        layers = [module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]
        hooks = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(parameter.is_floating_point())
            with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
                self._graph.build_dependency(
                    model, example.detach().clone(), forward_fn=_run, output_transform=_marked,
                    customized_pruners={_GroupedConv: _WholeGroups()}, verbose=False,
                )  # fmt: skip
            unseen = [self._names[module] for module in ran if module not in self._graph.module2node]
            if unseen:
                raise UsageError(
                    f"{type(model).__name__} cannot be traced: {unseen[0]} runs, but autograd does not connect it with the "
                    "output, so remove detach, no_grad, .data or NumPy from the forward pass."
                )
            place = {name: number for number, name in enumerate(self._names.values())}
            self.groups = tuple(sorted(self._found(), key=lambda group: place[group.name]))
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in frozen:
                parameter.requires_grad_(False)

    def remove(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Take the given channels of each named group out of all layers concerned."""
        for name, channels in removed.items():
            root, handler = self._roots[name]
            if channels:
                self._graph.get_pruning_group(root, handler, sorted(channels)).prune(record_history=False)

    def close(self) -> None:
        """Give the layers back their own classes; nothing can be removed after this."""
        grouped: list[Any] = [module for module in self._names if type(module) is _GroupedConv]
        for module in grouped:
            module.__class__ = nn.Conv2d

    def _found(self) -> Iterator[ChannelGroup]:
        for found in self._graph.get_all_groups(root_module_types=[_ConvNd, nn.Linear]):
            width = len(found[0].idxs)
            members, reasons, blocks = [], [], [1]
            for item in found.items:
                module, side = item.dep.target.module, "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
                reasons.append(_reason(item.dep.target, item.root_idxs))
                if reasons[-1] or module not in self._names:
                    continue
                channels, units = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
                members.append(Member(self._names[module], "in" if side == "in" else "out", channels, units))
                if isinstance(module, _GroupedConv):
                    blocks.append(module.out_channels // module.groups)
                    if channels.tolist() != list(range(width)) or units.tolist() != list(range(width)):
                        reasons.append(f"{self._names[module]} is a grouped convolution of concatenated channels")
            made = {self._names[item.dep.target.module] for item in found.items if _makes_channels(item.dep)}
            name = next(name for name in self._names.values() if name in made)
            block = math.lcm(*blocks)
            if width % block:
                reasons.append("its grouped convolutions do not fit together")
            group = ChannelGroup(name, width, block, tuple(members))
            self._roots[name] = found[0].dep.target.module, found[0].dep.handler
            yield replace(group, frozen=next(filter(None, reasons), ""))


class _GroupedConv(nn.Conv2d):
    """A grouped convolution while it is under the knife."""


class _WholeGroups:
    """How a grouped convolution loses channels: whole groups, on both of its sides at once."""

    pruning_dim = 1

    def prune_out_channels(self, layer: nn.Conv2d, channels: Sequence[int]) -> nn.Conv2d:
        keep = sorted(set(range(layer.out_channels)) - set(channels))
        block = layer.out_channels // layer.groups
        layer.weight = nn.Parameter(layer.weight.detach()[keep])
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[keep])
        layer.in_channels = layer.out_channels = len(keep)
        layer.groups = len(keep) // block
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Conv2d) -> int:
        return layer.out_channels

    get_in_channels = get_out_channels

    def get_out_channel_groups(self, layer: nn.Conv2d) -> int:
        return 1

    get_in_channel_groups = get_out_channel_groups


def _run(model: nn.Module, example: Tensor) -> Any:
    try:
        output = model(example)
    except Exception as error:  # of whatever the user's forward pass calls
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"{type(model).__name__} cannot be traced on images of shape {tuple(example.shape)} ({said}): "
            "pass an example of the shape, dtype and device that it was built for."
        ) from error
    if not isinstance(output, Tensor):
        raise UsageError(f"{type(model).__name__} returns a {type(output).__name__}: wrap it so that it returns one tensor.")
    if output.grad_fn is None:
        raise UsageError(
            f"{type(model).__name__} cannot be traced, because autograd does not connect its output with its weights: "
            "remove detach, no_grad, .data or NumPy from the forward pass."
        )
    return output


def _marked(output: Tensor) -> Tensor:
    """Add an operation behind the last layer, so that the graph knows which channels are the output."""
    return output * 1


def _loses_whole_groups(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and 1 < module.groups < module.out_channels and module.in_channels == module.out_channels


def _makes_channels(dependency: Any) -> bool:
    return isinstance(dependency.target.module, _ConvNd | nn.Linear) and dependency.handler.__name__ == "prune_out_channels"


def _reason(node: Any, units: Sequence[int | None]) -> str:
    """Say why the channels that reach this node cannot leave one by one; empty: they can."""
    module, kind = node.module, node.type.name
    if kind == "OUTPUT":
        return "they are the model's output"
    if kind == "MHA" or None in units or any(word in str(node.name).lower() for word in ATTENTION):
        return "they go through an attention, whose heads are pruned as a whole"
    if kind == "PARAMETER":
        return "they are added to or multiplied by a parameter that belongs to no layer"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return f"a {type(module).__name__} takes its statistics over all of them"
    if kind in RESHAPING:
        return f"they are cut or repeated by an operation of the kind {kind.lower()}"
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution is not supported"
    if isinstance(module, _GroupedConv | _BatchNorm | nn.Linear):
        return ""
    if isinstance(module, _ConvNd):
        whole = module.groups == 1 or module.groups == module.in_channels == module.out_channels
        return "" if whole else "a grouped convolution has other channels going in than coming out"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return ""
    if isinstance(module, _InstanceNorm) or next(module.parameters(), None) is not None:
        return f"{type(module).__name__} is not supported"
    return ""
