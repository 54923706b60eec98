"""A loop whose clock stands still, and a model that waits at a gate: tests of the server without real time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import torch
from torch import Tensor

from cookbook.serving import MicroBatcher


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when a test moves it."""

    now = 100.0

    def time(self) -> float:
        return self.now


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=FrozenLoop) as runner:
        runner.run(test())


def advance(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FrozenLoop)
    loop.now += seconds


async def settle() -> None:
    """Let every task go as far as it can without an answer from a thread."""
    for _ in range(20):
        await asyncio.sleep(0)


class Model:
    """Doubles its images, remembers the batches, and lets none through while its gate is shut."""

    def __init__(self, *, shut: bool = False) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        if not shut:
            self.gate.set()

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(images.flatten(1)[:, 0].tolist())
        self.threads.add(threading.get_ident())
        if not self.gate.wait(timeout=10):  # a test that failed leaves it shut, and its process must end all the same
            raise TimeoutError("nobody opened the gate")
        if (images == 13).any():
            raise ValueError("unlucky\nnumber")
        return 2 * images.flatten(1)


def image(value: float) -> Tensor:
    return torch.full((1, 2, 2), float(value))


def send(server: MicroBatcher, *values: float) -> list[asyncio.Task[Tensor]]:
    return [asyncio.create_task(server.submit(image(value))) for value in values]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def outcomes(tasks: list[asyncio.Task[Tensor]]) -> list[object]:
    return [
        found if isinstance(found, BaseException) else found[0].item()
        for found in await asyncio.gather(*tasks, return_exceptions=True)
    ]


def server_of(model: Callable[[Tensor], Tensor], **changes: Any) -> MicroBatcher:
    return MicroBatcher(model, **{"max_batch": 4, "max_wait": 0.0, "queue_size": 100, **changes})
