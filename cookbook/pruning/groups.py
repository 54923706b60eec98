"""The channels of a network by the names of its layers: finding them, silencing them, checking the surgery (lesson 04)."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import is_pruned

from cookbook.errors import UsageError
from cookbook.models import eval_mode
from cookbook.models.widths import layer_sizes
from cookbook.pruning.torch_pruning_site import ChannelGroup

SAME_ON_CPU = 1e-3  # of the output's scale; a wrong channel is off by much more than summation in another order
SAME_ELSEWHERE = 1e-2  # where convolutions may round their inputs to 11 bits
ROUNDINGS = 32  # of a narrower type, in a network of many layers


def duplicate(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a deep copy of a model on which surgery is possible.

    Raises:
        UsageError: the example is no batch of images, or the model is compiled, wrapped, masked or
            cannot be copied.
    """
    if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
        raise UsageError("The example is no batch of images: pass a float tensor of shape (B, C, H, W).")
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        raise UsageError(f"{kind} wraps the model: prune what is inside it, and compile or wrap the result.")
    if any(is_parametrized(module) for module in model.modules()) or is_pruned(model):
        raise UsageError(f"{kind} computes weights from others: make its masks or parametrizations permanent before surgery.")
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(model)
    except Exception as error:  # of whatever the user keeps in the model
        raise UsageError(f"{kind} cannot be copied ({error}): detach what it keeps besides its parameters.") from error


def freeze(groups: Sequence[ChannelGroup], exclude: Sequence[str], model: nn.Module) -> list[ChannelGroup]:
    """Return the groups, those frozen whose channels a layer named in `exclude`, or inside such a module, makes.

    Raises:
        UsageError: there is no such layer.
    """
    if isinstance(exclude, str):
        raise UsageError(f"exclude is {exclude!r}: use a list of names, such as [{exclude!r}].")
    for name in exclude:
        require_layer(model, name)

    def held(layer: str) -> bool:
        return any(layer == name or layer.startswith(f"{name}.") for name in exclude)

    return [replace(group, frozen="they are excluded") if any(map(held, group.layers)) else group for group in groups]


def require_group(groups: Sequence[ChannelGroup], layer: str, model: nn.Module) -> ChannelGroup:
    """Return the group to which the output channels of a layer belong.

    Raises:
        UsageError: there is no such layer, it makes no channels, or none may leave.
    """
    require_layer(model, layer)
    group = next((group for group in groups if layer in group.layers), None)
    if group is None:
        names = [group.name for group in groups if not group.frozen]
        raise UsageError(f"{layer} makes no channels that can be pruned: name a layer such as {next(iter(names), 'none')}.")
    if group.frozen:
        raise UsageError(f"The channels of {layer} must stay, because {group.frozen}: leave this layer out.")
    return group


def require_layer(model: nn.Module, name: str) -> None:
    """Refuse a name that no layer of the model has, naming the closest ones.

    Raises:
        UsageError: there is no such layer.
    """
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "use a name from model.named_modules()."
        raise UsageError(f"There is no layer {name!r} in {type(model).__name__}: {advice}")


def silence(model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Set the weights to zero with which layers listen to the given channels, in place, and return the model."""
    for group in groups:
        gone = torch.zeros(group.width, dtype=torch.bool)
        gone[list(removed.get(group.name, ()))] = True
        for member in group.members:
            if member.side == "in":
                layer = model.get_submodule(member.layer)
                assert isinstance(layer, _ConvNd | nn.Linear)
                with torch.no_grad():
                    layer.weight[:, member.channels[gone[member.units]]] = 0
    return model


def sizes_after(model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the sizes, by names as `layer_sizes` has them, of those layers that lose the given channels."""
    before, after = layer_sizes(model), dict[str, int]()
    for group in groups:
        gone = torch.zeros(group.width, dtype=torch.bool)
        gone[list(removed.get(group.name, ()))] = True
        for member in group.members:
            lost = int(gone[member.units].sum())
            for size in _sizes(model.get_submodule(member.layer), member.side) if lost else ():
                name = f"{member.layer}.{size}"
                cost = lost if size != "groups" else lost * before[name] // before[f"{member.layer}.out_channels"]
                after[name] = after.get(name, before[name]) - cost
    return after


def require_equal(pruned: nn.Module, silenced: nn.Module, sizes: Mapping[str, int], example: Tensor) -> None:
    """Refuse a surgery after which sizes or outputs are not what they must be.

    Raises:
        UsageError: the pruned model has other sizes, does not run, or does not answer as the silenced one.
    """
    advice = "exclude the layers around it, or write the forward pass so that it takes sizes from its tensors"
    wrong = [name for name, size in layer_sizes(pruned).items() if sizes[name] != size]
    if wrong:
        raise UsageError(f"{type(pruned).__name__} cannot be pruned safely, because {wrong[0]} came out wrong: {advice}.")
    with eval_mode(pruned), eval_mode(silenced), torch.no_grad():
        expected = silenced(example)
        try:
            found = pruned(example)
        except Exception as error:  # of whatever the user's forward pass calls
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(f"{type(pruned).__name__} does not run with fewer channels ({said}): {advice}.") from error
    tolerance = SAME_ON_CPU if example.device.type == "cpu" else SAME_ELSEWHERE
    tolerance = max(tolerance, ROUNDINGS * torch.finfo(expected.dtype).eps)
    scale = expected.abs().max().item() or 1.0
    if found.shape != expected.shape or not torch.allclose(found, expected, 0, tolerance * scale, equal_nan=True):
        raise UsageError(
            f"{type(pruned).__name__} cannot be pruned safely, because it computes something across its channels that the "
            f"graph does not show: {advice}."
        )


def reasons(groups: Sequence[ChannelGroup]) -> str:
    """Return why nothing may leave, without a full stop."""
    return "; ".join(f"the channels of {group.name} stay, because {group.frozen}" for group in groups[:2]) or "it has no layers"


def _sizes(layer: nn.Module, side: str) -> tuple[str, ...]:
    """Return which sizes of a layer shrink when it loses channels on one side."""
    if isinstance(layer, nn.Linear):
        return ("out_features",) if side == "out" else ("in_features",)
    if isinstance(layer, _ConvNd):
        if layer.groups > 1:
            return ("in_channels", "out_channels", "groups")
        return ("out_channels",) if side == "out" else ("in_channels",)
    return ("num_features",)
