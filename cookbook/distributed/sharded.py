"""Models that do not fit one device: every rank keeps a share of weights, gradients and optimizer state (lesson 03)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from cookbook.environment import pick_device
from cookbook.errors import UsageError
from cookbook.precision import Precision, PrecisionName

Model = TypeVar("Model", bound=nn.Module)


def shard(
    model: Model,
    *,
    precision: PrecisionName = "fp32",
    blocks: Sequence[nn.Module] | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """Split the parameters of `model` over all ranks, in place, and return it.

    A rank keeps one slice along the first dimension of each parameter, of its gradient and of the optimizer's
    state. The parameters of a block are gathered before its forward and its backward pass and freed
    afterwards; its gradients are averaged over the ranks while they are split again. The batch stays each
    rank's own, so the result is that of one process with all ranks' batches, as under
    DistributedDataParallel. Build the optimizer afterwards, from the parameters as they are then. To
    accumulate gradients without communication, call ``model.set_requires_gradient_sync(False)``.

    All ranks start from the weights and buffers of rank 0. A model that was built under
    ``torch.device("meta")``, which takes no memory, is given memory after the split and filled with NaN:
    fill it with `load_sharded`.

    Source: Zhao et al., PyTorch FSDP, arXiv 2304.11277; Rajbhandari et al., ZeRO, arXiv 1910.02054;
    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

    Args:
        model: in float32, the same architecture on every rank, on the rank's own device or on ``meta``.
        precision: ``fp32``, or ``bf16`` to gather and compute in bfloat16, while shares, optimizer and the sum
            of the gradients stay in float32. Unlike autocast it also computes norms in bfloat16.
        blocks: submodules that are gathered one at a time; what is in none of them is gathered with the whole
            model. Without it: the members of the outermost ``ModuleList`` and ``Sequential`` containers.
        device: where a model on ``meta`` gets its memory; by default what `pick_device` picks.

    Raises:
        UsageError: no process group is initialized, the model is sharded already, holds something whose
            result would depend on the number of ranks, or cannot be split as it is.
    """
    if not dist.is_initialized():
        raise UsageError(
            "There are no ranks to shard over: start the program with torchrun and call torch.distributed.init_process_group."
        )
    _require_shardable(model, precision)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    place = torch.device(device) if device is not None else pick_device() if on_meta else next(model.parameters()).device
    if on_meta:
        _require_restorable(model)
    else:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(place.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=Precision(precision, place.type).autocast_dtype, reduce_dtype=torch.float32)
    groups: list[nn.Module] = [*(_outermost_members(model) if blocks is None else list(blocks)), model]
    for block in groups:
        try:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        except (ValueError, NotImplementedError) as error:
            raise UsageError(
                f"{type(block).__name__} cannot be sharded ({error}): name other blocks of a fresh model."
            ) from error
    if on_meta:
        model.to_empty(device=place)
        _fill(itertools.chain(model.parameters(), model.buffers()))
    return model


def _require_shardable(model: nn.Module, precision: PrecisionName) -> None:
    if isinstance(model, FSDPModule):
        raise UsageError("The model is sharded already: shard a fresh one.")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"precision is {precision!r}: a sharded model computes in 'fp32' or 'bf16'.")
    if not any(True for _ in model.parameters()):
        raise UsageError("The model has no parameters to shard: give one with weights.")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (precision == "bf16" or not isinstance(module, nn.SyncBatchNorm)):
            raise UsageError(
                f"The layer {name!r} is a {type(module).__name__}, whose statistics would differ between the ranks or lose "
                "precision in bf16: use LayerNorm or GroupNorm, or SyncBatchNorm on GPUs in fp32."
            )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or not parameter.is_contiguous():
            raise UsageError(
                f"The parameter {name!r} is of {parameter.dtype} with strides {parameter.stride()}: "
                "convert the model with .float() and .to(memory_format=torch.contiguous_format) first."
            )


def _require_restorable(model: nn.Module) -> None:
    """Refuse a model on meta with values that no checkpoint could bring back."""
    saved = model.state_dict(keep_vars=True)
    known = {id(tensor) for tensor in saved.values()}
    lost = [name for name, buffer in model.named_buffers() if id(buffer) not in known]
    if lost:
        raise UsageError(
            f"The buffer {lost[0]!r} is in no state_dict, so that a model on the meta device would never get its values: "
            "make it persistent, or build the model on a device with memory."
        )


def _outermost_members(module: nn.Module) -> list[nn.Module]:
    """Return the members with parameters of the outermost containers, from the first to the last."""
    found: list[nn.Module] = []
    for child in module.children():
        member = isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if not member:
            found += _outermost_members(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def _fill(tensors: Iterable[torch.Tensor]) -> None:
    """Make values that were never loaded show in the first loss."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
