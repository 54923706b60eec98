"""A micro-batching server loop on asyncio, whose queue rejects rather than grows (lesson 07)."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from cookbook.errors import CookbookError, DeploymentError, UsageError


class QueueFullError(CookbookError):
    """A request was turned away because as many as the queue holds are waiting."""


class ServerStoppedError(CookbookError):
    """A request met a server that does not run, or that stopped before it was answered."""


@dataclass(eq=False)
class _Request:
    """One image on its way: when it came, by the loop's clock, and where its answer goes."""

    image: Tensor
    arrived: float
    answer: asyncio.Future[Tensor]

    @property
    def kind(self) -> tuple[object, ...]:
        """What the images of one batch have in common."""
        return self.image.shape, self.image.dtype, self.image.device


class MicroBatcher:
    """Answers single images with a model that is fastest on batches of them.

    Requests wait in a first-in, first-out queue. As soon as a worker is free, the oldest leave it together,
    when `max_batch` of them wait or the oldest has waited for `max_wait`. The method is adaptive batching
    (D. Crankshaw and others, Clipper, NSDI 2017, section 4.3). Images of different shapes or
    dtypes never share a batch, so that a client with a wrong image fails alone.

    Use it as ``async with MicroBatcher(...) as server``, which starts and stops it. At the end of the block
    the waiting requests are still answered; when the block raises, they are refused.

    Args:
        predict: maps float32 images (B, C, H, W) to logits (B, classes). It is called in a worker thread, so that
            the loop stays free; what torch keeps for each thread, such as ``inference_mode``, belongs inside it.
        max_batch: most images in one call.
        max_wait: seconds that the oldest waiting request gives others to join it; 0 waits for nobody.
        queue_size: most requests that wait; one more is rejected at once.
        workers: calls of `predict` that may run at the same time.

    Attributes:
        accepted: requests that entered the queue.
        rejected: requests turned away because the queue was full.
        batches: calls of `predict`.
        batched: images in these calls.

    Raises:
        UsageError: a count is below 1, or `max_wait` is not a number of seconds.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        max_batch: int,
        max_wait: float,
        queue_size: int,
        workers: int = 1,
    ) -> None:
        for name, count in (("max_batch", max_batch), ("queue_size", queue_size), ("workers", workers)):
            if count < 1:
                raise UsageError(f"{name} is {count}: use 1 or more.")
        if not 0 <= max_wait < math.inf:
            raise UsageError(f"max_wait is {max_wait}: use 0 or more seconds, such as 0.002.")
        self.predict, self.max_batch, self.max_wait = predict, max_batch, max_wait
        self.queue_size, self.workers = queue_size, workers
        self.accepted = self.rejected = self.batches = self.batched = 0
        self._waiting: deque[_Request] = deque()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def waiting(self) -> int:
        """Requests in the queue; those that a worker has are not in it any more."""
        return len(self._waiting)

    async def start(self) -> None:
        """Start to answer requests.

        Raises:
            UsageError: the server runs already.
        """
        if self._dispatcher is not None:
            raise UsageError("The server runs already: start it once, or stop it before.")
        self._stopping = False
        self._changed = asyncio.Event()
        self._free = asyncio.Semaphore(self.workers)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="micro-batcher")
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def stop(self, *, drain: bool = True) -> None:
        """Take no more requests, finish, and free the threads; `start` may follow.

        Args:
            drain: answer the requests that wait; otherwise each of them ends in a `ServerStoppedError`. A
                batch that a worker has already is finished in both cases: a thread cannot be interrupted.
        """
        if self._dispatcher is None:
            return
        self._stopping = True
        if not drain:
            self._refuse_waiting()
        self._changed.set()
        try:
            await self._dispatcher
        finally:
            self._dispatcher = None
            self._pool.shutdown(wait=False)  # idle by now, or its last call's answer is wanted by nobody

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    async def submit(self, image: Tensor) -> Tensor:
        """Return the logits (classes,) of one float32 image (C, H, W).

        A caller that is cancelled while it waits gives its place in the queue back.

        Raises:
            UsageError: the image is not a tensor.
            QueueFullError: `queue_size` requests are waiting already.
            ServerStoppedError: the server was not started, stops, or stopped before the answer.
            DeploymentError: `predict` failed on the batch with this image; its exception is the cause.
        """
        if not isinstance(image, Tensor):
            raise UsageError(f"The image is a {type(image).__name__}: send a float32 tensor of shape (C, H, W).")
        if self._dispatcher is None or self._stopping:
            raise ServerStoppedError("The server takes no requests: start it first, or send this to another one.")
        if len(self._waiting) >= self.queue_size:
            self.rejected += 1
            raise QueueFullError(f"{self.queue_size} requests are waiting, as many as the queue holds: try again later.")
        loop = asyncio.get_running_loop()
        request = _Request(image, loop.time(), loop.create_future())
        self._waiting.append(request)
        self.accepted += 1
        self._changed.set()
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            raise

    def _refuse_waiting(self) -> None:
        while self._waiting:
            _fail(self._waiting.popleft(), _stopped())

    async def _dispatch(self) -> None:
        """Hand batches to workers until the server stops and the queue is empty."""
        try:
            async with asyncio.TaskGroup() as running:  # leaving it waits for the batches under way
                while True:
                    await self._free.acquire()
                    batch = await self._gather()
                    if not batch:
                        return
                    running.create_task(self._answer(batch))
        finally:
            self._refuse_waiting()  # there are some when this task, or a caller's wait for `stop`, was cancelled

    async def _gather(self) -> list[_Request]:
        """Take the next batch from the queue when it is full or due; an empty one means the end."""
        while True:
            self._changed.clear()
            due = None
            if self._waiting:
                size = self._alike()
                due = self._waiting[0].arrived + self.max_wait
                full = size == self.max_batch or size < len(self._waiting)  # or the next is of another kind
                if full or self._stopping or asyncio.get_running_loop().time() >= due:
                    taken = [self._waiting.popleft() for _ in range(size)]
                    batch = [request for request in taken if not request.answer.done()]  # cancelled a moment ago
                    if batch:
                        return batch
                    continue
            elif self._stopping:
                return []
            try:
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _alike(self) -> int:
        """Return how many of the oldest waiting requests fit into one batch."""
        kind = self._waiting[0].kind
        alike = itertools.takewhile(lambda request: request.kind == kind, self._waiting)
        return len(list(itertools.islice(alike, self.max_batch)))

    async def _answer(self, batch: list[_Request]) -> None:
        """Call `predict` in a worker thread, and give every request of the batch its logits, or the reason why not."""
        self.batches += 1
        self.batched += len(batch)
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._pool, self._call, batch)
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no message"]
            for request in batch:  # each its own exception: a shared one would collect every caller's traceback
                _fail(
                    request,
                    DeploymentError(
                        f"The model failed on a batch of {len(batch)} images ({type(error).__name__}: {lines[0].rstrip('.')}): "
                        "send images like those that it was exported with."
                    ),
                    error,
                )
        except asyncio.CancelledError:
            for request in batch:
                _fail(request, _stopped())
            raise
        else:
            for request, answer in zip(batch, logits, strict=True):
                if not request.answer.done():
                    request.answer.set_result(answer)
        finally:
            self._free.release()

    def _call(self, batch: list[_Request]) -> list[Tensor]:
        logits = self.predict(torch.stack([request.image for request in batch]))
        if len(logits) != len(batch):
            raise DeploymentError(f"The model returned {len(logits)} answers for {len(batch)} images: one each was expected.")
        return list(logits.unbind())


def _stopped() -> ServerStoppedError:
    return ServerStoppedError("The server stopped before it answered this request: send it again.")


def _fail(request: _Request, error: CookbookError, cause: Exception | None = None) -> None:
    """End a request with an error, unless its caller went away."""
    if not request.answer.done():
        error.__cause__ = cause
        request.answer.set_exception(error)
