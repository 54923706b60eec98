"""What a load on the server came to: throughput, latency, rejections and cost (lesson 07)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cookbook.errors import UsageError
from cookbook.evidence import Table


@dataclass(frozen=True, kw_only=True)
class ServingResult:
    """How a server answered a load.

    Attributes:
        latencies: seconds from a request to its answer, of every answered request.
        rejected: requests that were turned away because the queue was full.
        seconds: wall time of the whole load.
        cpu_seconds: CPU time of all threads of this process: model, server and clients.
        joules: energy of the whole machine meanwhile; None where no counter is readable.
        batches: calls of the model.
        max_batch: most images in one call.
        max_wait: seconds that the oldest request waited for others.
        queue_size: most requests that could wait.
        workers: calls of the model that could run at the same time.
        concurrency: clients that sent a request as soon as they had the last answer; None: arrivals at a rate.
        rate: mean arrivals per second; None: clients.

    Raises:
        UsageError: no request was answered.
    """

    latencies: tuple[float, ...] = field(repr=False)
    rejected: int
    seconds: float
    cpu_seconds: float
    joules: float | None
    batches: int
    max_batch: int
    max_wait: float
    queue_size: int
    workers: int
    concurrency: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if not self.latencies or not self.batches:
            raise UsageError("No request was answered, so that there is no latency: send more requests, or a slower load.")

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return self.answered / self.seconds

    @property
    def median(self) -> float:
        """Median latency in seconds."""
        return float(np.median(self.latencies))

    @property
    def p99(self) -> float:
        """99th percentile of the latency in seconds; of fewer than 100 requests it says little."""
        return float(np.percentile(self.latencies, 99))

    @property
    def mean_batch(self) -> float:
        """Answered requests per call of the model."""
        return self.answered / self.batches

    @property
    def requests_per_cpu_second(self) -> float:
        """Answered requests per second of CPU time: what one core, kept busy, serves in a second."""
        return self.answered / self.cpu_seconds

    @property
    def load(self) -> str:
        """The load in words, such as ``8 clients``."""
        if self.concurrency is None:
            return f"{self.rate:,.0f} requests/s"
        return f"{self.concurrency} client{'s' * (self.concurrency != 1)}"

    def __str__(self) -> str:
        return (
            f"{self.load}, batches of up to {self.max_batch}: {self.throughput:,.0f} requests/s, latency "
            f"{1e3 * self.median:.3g} ms median, {1e3 * self.p99:.3g} ms at the 99th percentile, {self.rejected} rejected, "
            f"{self.mean_batch:.1f} images a batch, {self.requests_per_cpu_second:,.0f} requests per CPU second"
        )


def serving_table(results: Iterable[ServingResult], *, note: str = "") -> Table:
    """Return one row for each load, in the given order.

    Args:
        results: from `serve_load` or `serve_arrivals`.
        note: lines below the table.
    """
    columns = (
        "load", "largest batch", "mean batch", "requests/s", "latency, median (ms)", "latency, 99 % (ms)", "rejected",
        "requests per CPU second",
    )  # fmt: skip
    rows = [
        (
            result.load, f"{result.max_batch}", f"{result.mean_batch:.1f}", f"{result.throughput:,.0f}",
            f"{1e3 * result.median:.2f}", f"{1e3 * result.p99:.2f}", f"{result.rejected:,}",
            f"{result.requests_per_cpu_second:,.0f}",
        )
        for result in results
    ]  # fmt: skip
    return Table(columns, rows, note, "Serving")
