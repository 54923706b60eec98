"""Evaluation mode for the length of a block (lesson 00), also for graphs that torch.export captured (lesson 05)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.fx import GraphModule, Node

# Operators that behave differently in training, with the position of the argument that says so. `torch.export` writes the
# mode into the graph, so that `model.eval()` alone changes nothing.
MODE_ARGUMENTS: dict[object, int] = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
}


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` into eval mode inside the block, and every submodule back into its own mode after it.

    Graphs that ``torch.export`` captured, whose own ``eval()`` raises, are switched in their operators.
    """
    modes = {module: module.training for module in model.modules()}
    written = {module: written_modes(module) for module in modes if is_captured(module)}
    to_eval(model)
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, before in written.items():
            write_modes(module, before)


def to_eval(model: nn.Module) -> None:
    """Put `model` into eval mode, with captured graphs inside of it."""
    captured = [module for module in model.modules() if is_captured(module)]
    if not captured:
        model.eval()
        return
    for module in model.modules():
        module.training = False
    for module in captured:
        write_modes(module, dict.fromkeys(written_modes(module), False))


def simulates(model: nn.Module) -> str | None:
    """Return the integers that a quantized graph computes with in floats, such as ``int8``; None for any other model.

    `cookbook.quantization.convert` writes it into the graph. The speed of such a graph says nothing about integers.
    """
    for module in model.modules():
        if isinstance(module, GraphModule) and "simulates" in module.meta:
            return str(module.meta["simulates"])
    return None


def is_captured(module: nn.Module) -> bool:
    """Say whether a module is a graph of ATen operators, as ``torch.export`` makes it."""
    return isinstance(module, GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    )


def written_modes(module: nn.Module) -> dict[Node, bool]:
    """Return which operators of a captured graph have a mode, and whether it is training."""
    assert isinstance(module, GraphModule)
    return {
        node: bool(node.args[MODE_ARGUMENTS[node.target]])
        for node in module.graph.nodes
        if node.op == "call_function" and node.target in MODE_ARGUMENTS
    }


def write_modes(module: nn.Module, modes: Mapping[Node, bool]) -> None:
    """Write the modes of operators into a captured graph."""
    assert isinstance(module, GraphModule)
    changed = {node: mode for node, mode in modes.items() if node.args[MODE_ARGUMENTS[node.target]] != mode}
    for node, mode in changed.items():
        node.update_arg(MODE_ARGUMENTS[node.target], mode)
    if changed:
        module.recompile()
