"""A worker that says whether its ranks compute what one process computes, wherever they are (lesson 03)."""

from __future__ import annotations

import copy
import socket
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cookbook.distributed.context import Context, joined
from cookbook.distributed.equivalence import relative_difference
from cookbook.errors import UsageError
from cookbook.models import PerceptronConfig, ResNetConfig, build

SIZE = 16  # pixels


def gradient_trial(samples: int = 32) -> dict[str, Any]:
    """Compare the gradients of all ranks together with those of this process alone on the whole batch.

    For `launch`, on one machine or on several: each rank takes its part of one batch of random images through
    DistributedDataParallel, then the whole batch without it, in float32 on its CPU.

    Args:
        samples: images in the whole batch; a multiple of the number of ranks.

    Returns:
        ``rank``, ``world`` and ``host``, and the relative differences of the gradients: ``plain`` of a perceptron,
        and ``batch_norm`` of a small ResNet, each of whose ranks has the statistics of its own part.

    Raises:
        UsageError: the batch cannot be parted evenly.
        RankError: the ranks do not find or lose each other.
    """
    with joined(device="cpu") as context:
        if samples % context.world:
            raise UsageError(f"{samples} samples cannot be parted evenly among {context.world} ranks: use a multiple.")
        torch.manual_seed(0)
        images, labels = torch.randn(samples, 1, SIZE, SIZE), torch.randint(10, (samples,))
        plain = build(PerceptronConfig(height=SIZE, width=SIZE, hidden=(64, 32)))
        normed = build(ResNetConfig(depth=8, width=4))
        return {
            "rank": context.rank, "world": context.world, "host": socket.gethostname(),
            "plain": _difference(plain, images, labels, context), "batch_norm": _difference(normed, images, labels, context),
        }  # fmt: skip


def _difference(model: nn.Module, images: Tensor, labels: Tensor, context: Context) -> float:
    alone = copy.deepcopy(model)
    together: nn.Module = DistributedDataParallel(model) if context.world > 1 else model
    mine = slice(context.rank, None, context.world)
    F.cross_entropy(together(images[mine]), labels[mine]).backward()
    F.cross_entropy(alone(images), labels).backward()
    return relative_difference(*(_gradients(each) for each in (model, alone)))


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
