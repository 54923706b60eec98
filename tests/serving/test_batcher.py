"""The server forms batches by size and age, and rejects above its bound.

No test waits for real time: the loop's clock stands still until a test moves it, and models wait at gates.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from gates import FrozenLoop, Model, advance, image, outcomes, run, send, server_of, settle, until
from torch import Tensor

from cookbook.errors import UsageError
from cookbook.serving import QueueFullError


def test_every_request_gets_its_own_answer_from_another_thread() -> None:
    async def test() -> None:
        model = Model()
        async with server_of(model, workers=3) as server:
            assert await outcomes(send(server, *range(10))) == [2 * value for value in range(10)]
        assert sorted(value for batch in model.batches for value in batch) == list(range(10))
        assert threading.get_ident() not in model.threads
        assert (server.accepted, server.rejected, server.batched, server.batches) == (10, 0, 10, len(model.batches))

    run(test)


def test_a_full_batch_leaves_at_once_and_the_rest_when_the_oldest_is_due() -> None:
    async def test() -> None:
        model = Model()
        async with server_of(model, max_wait=5.0) as server:
            first = send(server, 1, 2, 3, 4, 5)
            assert await outcomes(first[:4]) == [2, 4, 6, 8]
            advance(4.9)
            late = send(server, 6)
            await settle()
            assert (model.batches, server.waiting) == ([[1, 2, 3, 4]], 2)
            advance(0.2)  # the oldest has waited for 5.1 seconds, the other one for 0.2
            assert await outcomes([*first[4:], *late]) == [10, 12]
        assert model.batches == [[1, 2, 3, 4], [5, 6]]

    run(test)


def test_what_arrives_during_a_call_forms_the_next_batches_oldest_first() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model) as server:
            tasks = send(server, 0)
            await until(lambda: bool(model.batches))
            tasks += send(server, *range(1, 7))
            await settle()
            assert (model.batches, server.waiting) == ([[0]], 6)
            model.gate.set()
            assert await outcomes(tasks) == [2 * value for value in range(7)]
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]

    run(test)


def test_as_many_calls_run_together_as_there_are_workers() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model, max_batch=1, workers=2) as server:
            tasks = send(server, 1, 2, 3)
            await until(lambda: len(model.batches) == 2)
            await settle()
            assert (len(model.batches), server.waiting) == (2, 1)
            model.gate.set()
            assert await outcomes(tasks) == [2, 4, 6]

    run(test)


def test_overload_is_rejected_at_once_and_the_queue_never_grows() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model, max_batch=2, queue_size=3) as server:
            held = send(server, 0, 1)
            await until(lambda: bool(model.batches))
            waiting = send(server, 2, 3, 4)
            await settle()
            for extra in range(50):
                with pytest.raises(QueueFullError, match="3 requests are waiting"):
                    await server.submit(image(extra))
                assert server.waiting == 3
            model.gate.set()
            assert await outcomes(held + waiting) == [0, 2, 4, 6, 8]
            assert await outcomes(send(server, 9)) == [18]  # there is room again
        assert (server.accepted, server.rejected, server.batched) == (6, 50, 6)

    run(test)


def test_under_overload_nobody_accepted_waits_longer_than_a_full_queue_takes() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FrozenLoop)
        waits: list[float] = []

        def one_second(images: Tensor) -> Tensor:
            loop.now += 1
            return images.flatten(1)

        async def client() -> None:
            sent = loop.time()
            try:
                await server.submit(image(1))
            except QueueFullError:
                return
            waits.append(loop.time() - sent)

        async with server_of(one_second, max_batch=2, queue_size=6) as server:
            clients = []
            for burst in range(1, 20):
                clients += [asyncio.create_task(client()) for _ in range(10)]
                await until(lambda burst=burst: server.batches > burst)  # type: ignore[misc]
            await asyncio.gather(*clients)
        assert server.accepted + server.rejected == 190
        assert server.rejected > 100
        # one call under way, then the queue's six in three calls
        assert max(waits) <= 4

    run(test)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"max_wait": -0.1}, "max_wait is -0.1"),
        ({"max_wait": float("nan")}, "max_wait is nan"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        server_of(Model(), **changes)
