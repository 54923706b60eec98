"""The server fails no more requests than it must, forgets who went away, and stops without leaving one behind."""

from __future__ import annotations

import asyncio

import pytest
import torch
from gates import Model, image, outcomes, run, send, server_of, settle, until
from torch import Tensor

from cookbook.errors import DeploymentError, UsageError
from cookbook.serving import ServerStoppedError


def test_a_failing_call_fails_its_own_batch_only() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model, max_batch=2) as server:
            tasks = send(server, 1, 2, 13, 3, 4)
            await until(lambda: bool(model.batches))
            model.gate.set()
            found = await outcomes(tasks)
            assert (found[:2], found[4]) == ([2, 4], 8)
            failures = [failure for failure in found[2:4] if isinstance(failure, DeploymentError)]
            assert len({id(failure) for failure in failures}) == 2
            for failure in failures:
                assert "failed on a batch of 2 images (ValueError: unlucky)" in str(failure)
                assert isinstance(failure.__cause__, ValueError)
            assert await outcomes(send(server, 5)) == [10]
        assert model.batches == [[1, 2], [13, 3], [4], [5]]

    run(test)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.float64)], ids=["shape", "dtype"])
def test_an_image_of_another_kind_fails_without_its_neighbours(wrong: Tensor) -> None:
    def picky(images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 2, 2) or images.dtype != torch.float32:
            raise UsageError("wrong images")
        return images.flatten(1)

    async def test() -> None:
        async with server_of(picky) as server:
            tasks = [*send(server, 1), asyncio.create_task(server.submit(wrong)), *send(server, 2)]
            one, bad, two = await outcomes(tasks)
            assert (one, two) == (1, 2)
            assert isinstance(bad, DeploymentError)
        assert server.batches == 3

    run(test)


def test_a_model_with_the_wrong_number_of_answers_fails_the_batch() -> None:
    async def test() -> None:
        async with server_of(lambda images: images.flatten(1)[:1]) as server:
            for failure in await outcomes(send(server, 1, 2)):
                assert isinstance(failure, DeploymentError)
                assert "1 answers for 2 images" in str(failure)

    run(test)


def test_a_cancelled_request_leaves_the_queue_and_frees_its_place() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model, max_batch=1, queue_size=2) as server:
            held = send(server, 0)
            await until(lambda: bool(model.batches))
            gone, stays = send(server, 1, 2)
            await settle()
            gone.cancel()
            await settle()
            assert (gone.cancelled(), server.waiting) == (True, 1)
            later = send(server, 3)
            await settle()
            model.gate.set()
            assert await outcomes([*held, stays, *later]) == [0, 4, 6]
        assert model.batches == [[0], [2], [3]]

    run(test)


def test_a_request_cancelled_during_its_call_disturbs_nobody() -> None:
    async def test() -> None:
        model = Model(shut=True)
        async with server_of(model, max_batch=2) as server:
            gone, stays = send(server, 1, 2)
            await until(lambda: bool(model.batches))
            gone.cancel()
            await settle()
            model.gate.set()
            assert await stays is not None
            assert await outcomes(send(server, 3)) == [6]

    run(test)


def test_leaving_the_block_answers_what_waits_even_before_it_is_due() -> None:
    async def test() -> None:
        model = Model()
        async with server_of(model, max_wait=1000.0) as server:
            tasks = send(server, 1, 2)
            await settle()
            assert model.batches == []
        assert await outcomes(tasks) == [2, 4]
        with pytest.raises(ServerStoppedError, match="takes no requests"):
            await server.submit(image(3))

    run(test)


def test_a_block_that_raises_refuses_what_waits_and_finishes_what_runs() -> None:
    async def test() -> None:
        model = Model(shut=True)
        with pytest.raises(KeyError):
            async with server_of(model, max_batch=1) as server:
                tasks = send(server, 1, 2)
                await until(lambda: bool(model.batches))
                asyncio.get_running_loop().call_soon(model.gate.set)
                raise KeyError
        answered, refused = await outcomes(tasks)
        assert answered == 2
        assert isinstance(refused, ServerStoppedError)
        assert model.batches == [[1]]

    run(test)


def test_a_wait_for_the_stop_that_is_cancelled_leaves_no_request_behind() -> None:
    async def test() -> None:
        model = Model(shut=True)
        server = server_of(model, max_batch=1)
        await server.start()
        tasks = send(server, 1, 2)
        await until(lambda: bool(model.batches))
        stopping = asyncio.create_task(server.stop())
        await settle()
        stopping.cancel()
        assert [type(outcome) for outcome in await outcomes(tasks)] == [ServerStoppedError] * 2
        model.gate.set()

    run(test)


def test_a_server_starts_once_at_a_time_and_again_after_a_stop() -> None:
    async def test() -> None:
        server = server_of(Model())
        with pytest.raises(ServerStoppedError, match="start it first"):
            await server.submit(image(1))
        await server.stop()
        for value in (1, 2):
            await server.start()
            with pytest.raises(UsageError, match="runs already"):
                await server.start()
            with pytest.raises(UsageError, match="image is a list"):
                await server.submit([1.0])  # type: ignore[arg-type]
            assert await outcomes(send(server, value)) == [2 * value]
            await server.stop()

    run(test)
