"""A model of how data-parallel training scales: from a measured step to GPUs that nobody here has (lesson 03).

It is a model, and says so wherever it is shown: it knows the step of one rank, the bytes of the gradients and
the speed of a link, and nothing of slow machines, shared networks, data loading or faults. What it predicts is
a bound from above on what a cluster with these links reaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from cookbook.errors import UsageError

BACKWARD_SHARE = 2 / 3  # of a step's arithmetic: one product of matrices forward, two backward


@dataclass(frozen=True)
class Link:
    """What a rank sends its gradients over.

    Attributes:
        name: as the figure shows it.
        bandwidth: bytes per second in one direction, for one rank.
        latency: seconds that a message takes besides its bytes.

    Raises:
        UsageError: the bandwidth is not above 0, or the latency is below 0.
    """

    name: str
    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf or not 0 <= self.latency < math.inf:
            raise UsageError(
                f"The link {self.name!r} has {self.bandwidth} bytes per second and a latency of {self.latency} s: "
                "use a finite bandwidth above 0 and a finite latency of 0 or more."
            )


# Rates by the standards' definitions, in bytes; the latencies are assumptions of the usual order
ETHERNET_10 = Link("10 Gbit/s Ethernet", 10e9 / 8, 50e-6)
ETHERNET_100 = Link("100 Gbit/s Ethernet", 100e9 / 8, 20e-6)
INFINIBAND_400 = Link("400 Gbit/s InfiniBand", 400e9 / 8, 5e-6)
LINKS = (ETHERNET_10, ETHERNET_100, INFINIBAND_400)


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes that every rank averages with the others in one step: those of all trained parameters."""
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def ring_all_reduce_seconds(size: float, ranks: int, link: Link) -> float:
    """Return the time in which a ring of ranks adds up `size` bytes and leaves the sum with all of them.

    Each rank passes a share of 1/N of the bytes to its neighbour 2(N − 1) times: N − 1 times to add, N − 1 times to
    hand out the sums. With many ranks the bytes cost nearly twice the time of sending them once, whatever the
    number of ranks; the latency grows with it.

    Source: Patarasuk and Yuan, Journal of Parallel and Distributed Computing 69 (2009) 117–124,
    doi 10.1016/j.jpdc.2008.09.002.

    Args:
        size: bytes.
        ranks: N, 1 or more.
        link: between neighbours; the slowest of the ring counts.

    Raises:
        UsageError: there is no rank, or the size is negative.
    """
    if ranks < 1 or size < 0:
        raise UsageError(f"{ranks} ranks cannot add up {size} bytes: use 1 rank or more, and 0 bytes or more.")
    return 2 * (ranks - 1) * (size / ranks / link.bandwidth + link.latency)


@dataclass(frozen=True)
class ScalingModel:
    """Data-parallel training with the same batch on every rank, however many there are (weak scaling).

    Attributes:
        compute: seconds of one rank's step without communication.
        size: bytes of the gradients, as they are sent (half of `gradient_bytes` with a 16-bit hook).
        images: images in the batch of one rank.

    Raises:
        UsageError: a number is not positive.
    """

    compute: float
    size: int
    images: int

    def __post_init__(self) -> None:
        for name, value in (("compute", self.compute), ("size", self.size), ("images", self.images)):
            if not 0 < value < math.inf:
                raise UsageError(f"{name} is {value}: use a finite number above 0.")

    def step_seconds(self, ranks: int, link: Link, *, hidden: float = 0.0) -> float:
        """Return the seconds of one step.

        Args:
            ranks: GPUs, or processes.
            link: between them.
            hidden: share of the computation during which gradients may travel unseen. 0: they are sent when
                all is computed, the worst case. `BACKWARD_SHARE`: during the whole backward pass, the best case
                of what DistributedDataParallel does with its buckets (Li et al., arXiv 2006.15704).

        Raises:
            UsageError: `hidden` is no share, or there is no rank.
        """
        if not 0 <= hidden <= 1:
            raise UsageError(f"hidden is {hidden}: use a share from 0 to 1.")
        return self.compute + max(0.0, ring_all_reduce_seconds(self.size, ranks, link) - hidden * self.compute)

    def efficiency(self, ranks: int, link: Link, *, hidden: float = 0.0) -> float:
        """Return the share of N times one rank's throughput that N ranks reach, 0 to 1; errors as for `step_seconds`."""
        return self.compute / self.step_seconds(ranks, link, hidden=hidden)

    def throughput(self, ranks: int, link: Link, *, hidden: float = 0.0) -> float:
        """Return images per second of all ranks together; errors as for `step_seconds`."""
        return ranks * self.images / self.step_seconds(ranks, link, hidden=hidden)


def fitted_link(name: str, size: int, steps: Mapping[int, float]) -> Link:
    """Return the link, without latency, whose ring explains measured steps best in the sense of least squares.

    Everything that makes a step of many ranks slower than one rank's counts as communication, waiting for the
    slowest rank and for shared cores included.

    Args:
        name: of the link.
        size: bytes of the gradients.
        steps: seconds of a step by the number of ranks, each with the same batch; 1 must be among them.

    Raises:
        UsageError: there is no measurement of one rank or of several, a number is not positive, or several ranks
            were on the whole not slower than one, so that no bandwidth follows.
    """
    if 1 not in steps or len(steps) < 2 or min(steps) < 1 or min(steps.values()) <= 0 or size <= 0:
        raise UsageError(
            f"A link cannot be fitted to the steps {dict(steps)} and {size} bytes: "
            "measure the step of 1 rank and of several, in seconds."
        )
    travelled = {ranks: 2 * (ranks - 1) / ranks * size for ranks in steps}
    waited = sum(travelled[ranks] * (seconds - steps[1]) for ranks, seconds in steps.items())
    if waited <= 0:
        raise UsageError(
            "Several ranks took no longer for a step than one, so that no bandwidth follows: measure larger gradients, "
            "or more rounds on an idle machine."
        )
    return Link(name, sum(value**2 for value in travelled.values()) / waited)
