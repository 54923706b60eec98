"""How several processes share one training, as data, and the model wrapped for it (lesson 03)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cookbook.errors import UsageError

Data = Literal["shared", "own"]
Compression = Literal["fp16", "bf16", "powersgd"]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the processes of a group train one model together; in a single process it has no effect.

    What is learned does not depend on it, but for `data`, `sync_batchnorm` and `compression`. The method is
    Li et al., PyTorch Distributed, arXiv 2006.15704, through `torch.nn.parallel.DistributedDataParallel`.

    Attributes:
        data: ``shared``: all ranks have the same loader, whose batches they share out image by image, so that
            a batch is the same whatever the number of ranks. ``own``: each rank's loader yields images of
            its own; batches may differ in size, and loaders in length.
        sync_batchnorm: let BatchNorm normalize by the whole batch instead of each rank's part; GPUs only.
        bucket_mb: gradients travel together in buckets of about this many megabytes, while the backward pass
            goes on.
        compression: what travels instead of float32 gradients: ``fp16`` or ``bf16``, or the low-rank factors
            of ``powersgd`` (Vogels et al., arXiv 1905.13727). PowerSGD remembers what it left out; a resumed
            run begins with an empty memory.
        powersgd_rank: of the factors: more is more exact, and more to send.
        powersgd_after: steps that travel uncompressed first; 2 or more.
        static_graph: promise that every step uses the same parameters in the same order.
        unused_parameters: look in every step for parameters that take no part in the loss.

    Raises:
        UsageError: a value is out of range.
    """

    data: Data = "shared"
    sync_batchnorm: bool = False
    bucket_mb: float = 25.0
    compression: Compression | None = None
    powersgd_rank: int = 1
    powersgd_after: int = 1000
    static_graph: bool = False
    unused_parameters: bool = False

    def __post_init__(self) -> None:
        rules = {
            "data": (self.data in get_args(Data), " or ".join(get_args(Data))),
            "bucket_mb": (self.bucket_mb > 0, "a positive number of megabytes"),
            "compression": (self.compression in (None, *get_args(Compression)), "fp16, bf16, powersgd or None"),
            "powersgd_rank": (self.powersgd_rank >= 1, "1 or more"),
            "powersgd_after": (self.powersgd_after >= 2, "2 or more steps"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)!r}: use {expected}.")


def wrap(model: nn.Module, parallel: Parallel) -> DistributedDataParallel:
    """Return `model` inside DistributedDataParallel; all ranks begin with rank 0's weights.

    Raises:
        UsageError: nothing in the model can be trained.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError("The model has no parameter that requires a gradient: unfreeze some before training.")
    device = parameters[0].device
    wrapped = DistributedDataParallel(
        model, device_ids=None if device.type == "cpu" else [device], bucket_cap_mb=parallel.bucket_mb,
        find_unused_parameters=parallel.unused_parameters, gradient_as_bucket_view=True, static_graph=parallel.static_graph,
    )  # fmt: skip
    if parallel.compression == "powersgd":
        state = PowerSGDState(
            process_group=None, matrix_approximation_rank=parallel.powersgd_rank, start_powerSGD_iter=parallel.powersgd_after
        )
        wrapped.register_comm_hook(state, powerSGD_hook)
    elif parallel.compression is not None:
        hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        wrapped.register_comm_hook(dist.group.WORLD, hooks[parallel.compression])
    return wrapped


class SynchronizedBatchNorm:
    """BatchNorm that normalizes by the batches of all ranks, for as long as a training lasts.

    The layers are exchanged inside the model and share weights and statistics with the ones that they
    stand for.

    Args:
        model: changed in place.

    Raises:
        UsageError: the model is on a CPU, where torch has no such kernel, or is itself one BatchNorm layer.
    """

    def __init__(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        if device.type == "cpu":
            raise UsageError("sync_batchnorm needs GPUs, and the model is on a CPU: leave it out, or use GroupNorm instead.")
        if isinstance(model, _BatchNorm):
            raise UsageError("The model is a single BatchNorm layer: put it into a Sequential for sync_batchnorm.")
        self.model = model
        self.before = {name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm)}
        nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def undo(self) -> None:
        """Put the model's own layers back."""
        for name, layer in self.before.items():
            layer.train(self.model.get_submodule(name).training)
            self.model.set_submodule(name, layer)
