"""Load for a server: clients that wait for answers, arrivals that do not, and the model alone (lesson 07)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from torch import Tensor

from cookbook.errors import UsageError
from cookbook.measure import Timing, energy_of, interleave, pinned_threads
from cookbook.measure.latency import naming
from cookbook.serving.batcher import MicroBatcher, QueueFullError
from cookbook.serving.result import ServingResult

BACK_OFF = 1e-3  # seconds that a rejected client waits before its next request, so that it does not spin
WARMUP_CALLS = 3

Predict = Callable[[Tensor], Tensor]


def serve_load(
    predict: Predict,
    images: Tensor,
    *,
    concurrency: int,
    requests: int,
    max_batch: int,
    max_wait: float = 0.0,
    queue_size: int | None = None,
    workers: int = 1,
    threads: int | None = 1,
) -> ServingResult:
    """Let clients send requests to a `MicroBatcher`, each as soon as its last one was answered (a closed loop).

    A closed loop asks what so many users get. It cannot overload the server, because slow answers slow the
    clients; `serve_arrivals` can.

    Args:
        predict: maps float32 images (B, C, H, W) to logits (B, classes); it runs in threads of its own.
        images: float32 (N, C, H, W), sent one at a time, in turns.
        concurrency: clients.
        requests: of all clients together, the rejected ones included.
        max_batch: most images in one call.
        max_wait: seconds that the oldest waiting request gives others to join it.
        queue_size: most requests that wait; None: as many as there are clients, so that none is rejected.
        workers: calls of `predict` that may run at the same time.
        threads: torch's threads in each call. A runtime of its own keeps the number that it was made with.

    Raises:
        UsageError: a count is below 1, there are fewer requests than clients, no image, or `predict` fails alone.
        DeploymentError: `predict` failed in the server.
    """
    if concurrency < 1 or requests < concurrency:
        raise UsageError(f"{concurrency} clients cannot send {requests} requests: use at least one request for each client.")
    queue_size = concurrency if queue_size is None else queue_size
    server = MicroBatcher(predict, max_batch=max_batch, max_wait=max_wait, queue_size=queue_size, workers=workers)
    latencies: list[float] = []

    async def client(turns: Iterable[Tensor]) -> None:
        clock = asyncio.get_running_loop().time
        for image in turns:
            started = clock()
            try:
                await server.submit(image)
            except QueueFullError:
                await asyncio.sleep(BACK_OFF)
            else:
                latencies.append(clock() - started)

    async def clients() -> None:
        turns = itertools.islice(itertools.cycle(images), requests)  # shared: whoever is free takes the next
        await asyncio.gather(*(client(turns) for _ in range(concurrency)))

    return replace(_measure(server, images, clients, latencies, threads), concurrency=concurrency)


def serve_arrivals(
    predict: Predict,
    images: Tensor,
    *,
    rate: float,
    requests: int,
    max_batch: int,
    queue_size: int,
    max_wait: float = 0.0,
    workers: int = 1,
    threads: int | None = 1,
    seed: int = 0,
) -> ServingResult:
    """Send requests to a `MicroBatcher` at random moments, whether or not earlier ones were answered (an open loop).

    Arrivals are a Poisson process, as of many users who know nothing of each other. A request's latency counts
    from the moment at which it was due: a sender that is late because the machine is busy would
    otherwise hide the wait. Above the server's capacity the queue fills and rejects; the latency of
    what it accepts stays below the time that a full queue takes.

    Args:
        predict: maps float32 images (B, C, H, W) to logits (B, classes); it runs in threads of its own.
        images: float32 (N, C, H, W), sent one at a time, in turns.
        rate: mean arrivals per second.
        requests: arrivals altogether.
        max_batch: most images in one call.
        queue_size: most requests that wait.
        max_wait: seconds that the oldest waiting request gives others to join it.
        workers: calls of `predict` that may run at the same time.
        threads: torch's threads in each call. A runtime of its own keeps the number that it was made with.
        seed: of the moments of arrival.

    Raises:
        UsageError: a count is below 1, the rate is not positive, there is no image, or `predict` fails alone.
        DeploymentError: `predict` failed in the server.
    """
    if not 0 < rate < float("inf") or requests < 1:
        raise UsageError(f"{requests} requests at {rate} a second are no load: use 1 or more at a positive rate.")
    server = MicroBatcher(predict, max_batch=max_batch, max_wait=max_wait, queue_size=queue_size, workers=workers)
    moments = np.random.default_rng(seed).exponential(1 / rate, requests).cumsum().tolist()
    latencies: list[float] = []

    async def request(image: Tensor, due: float) -> None:
        with contextlib.suppress(QueueFullError):  # the server counts it
            await server.submit(image)
            latencies.append(asyncio.get_running_loop().time() - due)

    async def arrivals() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            async with asyncio.TaskGroup() as sent:
                for moment, image in zip(moments, itertools.cycle(images), strict=False):
                    await asyncio.sleep(begin + moment - loop.time())
                    sent.create_task(request(image, begin + moment))
        except ExceptionGroup as failed:  # one batch fails for many requests: the first says it all
            raise failed.exceptions[0] from failed.exceptions[0].__cause__

    return replace(_measure(server, images, arrivals, latencies, threads), rate=rate)


def throughput_by_batch(
    predict: Predict, images: Tensor, batches: Iterable[int], *, threads: int = 1, rounds: int = 30
) -> dict[int, Timing]:
    """Time the model alone, without a server, at several batch sizes in turns.

    Args:
        predict: maps float32 images (B, C, H, W) to logits (B, classes).
        images: float32 (N, C, H, W), at least as many as the largest batch.
        batches: batch sizes.
        threads: torch's threads. A runtime of its own must have been made with as many.
        rounds: samples of each batch size.

    Returns:
        By batch size, the time of one call; `Timing.throughput` is in images per second.

    Raises:
        UsageError: no batch size, one that is below 1 or larger than the images, or `predict` fails.
    """
    sizes = sorted(set(batches))
    if not sizes or sizes[0] < 1 or sizes[-1] > len(images):
        raise UsageError(f"The batch sizes are {sizes} for {len(images)} images: use numbers from 1 to {len(images)}.")
    calls = {f"batch {size}": functools.partial(predict, images[:size].contiguous()) for size in sizes}
    timings = interleave(calls, rounds=rounds, threads=threads, device=images.device)
    return {size: replace(timing, batch=size) for size, timing in zip(sizes, timings.values(), strict=True)}


def _measure(
    server: MicroBatcher, images: Tensor, load: Callable[[], Awaitable[None]], latencies: list[float], threads: int | None
) -> ServingResult:
    """Warm the model up, put `load` on the server, and return what it cost."""
    if images.ndim != 4 or not len(images):
        raise UsageError(f"Images of shape {tuple(images.shape)} cannot be sent: pass (N, C, H, W) with at least one.")
    seconds = 0.0

    async def serve() -> None:
        nonlocal seconds
        async with server:
            clock = asyncio.get_running_loop().time
            started = clock()
            await load()
            seconds = clock() - started

    def run() -> None:
        with ThreadPoolExecutor(1) as beside:  # a notebook's thread has a running loop already, which allows no second
            beside.submit(asyncio.run, serve()).result()

    with pinned_threads(threads):
        largest = images[:1].expand(server.max_batch, *images.shape[1:]).contiguous()
        with naming("the served model"):
            for batch in (images[:1], largest):
                for _ in range(WARMUP_CALLS):
                    server.predict(batch)
        energy = energy_of(run, device=images.device)
    return ServingResult(
        latencies=tuple(latencies), rejected=server.rejected, seconds=seconds, cpu_seconds=energy.cpu_seconds,
        joules=energy.joules, batches=server.batches, max_batch=server.max_batch, max_wait=server.max_wait,
        queue_size=server.queue_size, workers=server.workers,
    )  # fmt: skip
