"""What must hold for several processes to learn what one learns, in functions small enough to read (lesson 03)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from cookbook.errors import UsageError

Gradients = Mapping[str, Tensor]


def sampled(samples: int, ranks: int, *, epoch: int | None = 0, seed: int = 0) -> list[list[int]]:
    """Return the sample numbers that each rank visits under torch's `DistributedSampler`, in their order.

    Args:
        samples: size of the dataset.
        ranks: number of processes.
        epoch: as given to ``set_epoch``; None: ``set_epoch`` was never called.
        seed: of the order.
    """
    shards = []
    for rank in range(ranks):
        sampler: DistributedSampler[int] = DistributedSampler(range(samples), ranks, rank, seed=seed)  # type: ignore[arg-type]
        if epoch is not None:
            sampler.set_epoch(epoch)
        shards.append(list(sampler))
    return shards


def overlap(shards: Sequence[Sequence[int]]) -> float:
    """Return the share of the visited samples that more than one rank visits, 0 to 1.

    Args:
        shards: the sample numbers of each rank in one epoch.

    Raises:
        UsageError: no rank visits anything.
    """
    visitors = Counter(sample for shard in shards for sample in set(shard))
    if not visitors:
        raise UsageError("No rank visits a sample: give each rank the numbers that it visits.")
    return sum(times > 1 for times in visitors.values()) / len(visitors)


def averaged(gradients: Sequence[Gradients], counts: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Average the ranks' gradients, each the mean over a rank's own batch.

    Without `counts` this is the mean of the means, which `DistributedDataParallel` computes: the gradient of the
    mean over all samples only if all ranks' batches are equally long. With `counts` each rank's gradient is
    first multiplied by its samples × ranks / all samples, as `fit` does with each rank's loss.

    Args:
        gradients: one mapping a rank, by parameter.
        counts: samples in each rank's batch.

    Raises:
        UsageError: there are no gradients, the numbers of ranks differ, or there are no samples.
    """
    weights = [1.0] * len(gradients) if counts is None else [float(count) for count in counts]
    if not gradients or len(weights) != len(gradients) or min(weights) < 0 or sum(weights) <= 0:
        raise UsageError(
            f"{len(gradients)} ranks' gradients cannot be averaged with the counts {counts}: give one count a rank."
        )
    return {
        name: sum((weight * each[name] for weight, each in zip(weights, gradients, strict=True)), torch.zeros(()))
        / sum(weights)
        for name in gradients[0]
    }


def relative_difference(found: Gradients, expected: Gradients) -> float:
    """Return the length of the difference over the length of `expected`, all tensors taken as one vector, in float64.

    Raises:
        UsageError: the names or shapes differ, or `expected` is zero.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (found, expected)]
    if shapes[0] != shapes[1]:
        raise UsageError("The two sides have tensors of other names or shapes: compare one model with itself.")
    length = sum(float(tensor.detach().double().square().sum()) for tensor in expected.values())
    if length == 0:
        raise UsageError("What is expected is zero, so that there is no relative difference: compare after a backward pass.")
    difference = sum(
        float((found[name].detach().double() - expected[name].detach().double()).square().sum()) for name in expected
    )
    return float((difference / length) ** 0.5)
