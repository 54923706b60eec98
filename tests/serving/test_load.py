"""Load generators send what they promise and count every outcome; what they time is for lesson 07."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from cookbook.errors import DeploymentError, UsageError
from cookbook.serving import MicroBatcher, load, serve_arrivals, serve_load, throughput_by_batch
from cookbook.serving.load import WARMUP_CALLS

IMAGES = torch.arange(5.0).view(5, 1, 1, 1)


class Counting:
    """Remembers what it was asked, and how many threads of torch it had."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.largest = 0
        self.threads: set[int] = set()

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += images.flatten().tolist()
        self.largest = max(self.largest, len(images))
        self.threads.add(torch.get_num_threads())
        return images.flatten(1)


def test_clients_send_every_image_in_turns_and_get_every_answer() -> None:
    model = Counting()
    result = serve_load(model, IMAGES, concurrency=3, requests=20, max_batch=2)
    warm_up = WARMUP_CALLS * (1 + 2)
    assert sorted(model.seen[warm_up:]) == sorted([0.0, 1.0, 2.0, 3.0, 4.0] * 4)
    assert (result.answered, result.rejected, result.concurrency, result.rate, model.largest) == (20, 0, 3, None, 2)
    assert result.batches * result.mean_batch == 20
    assert 0 < min(result.latencies) <= result.median <= result.p99 <= max(result.latencies) <= result.seconds
    assert model.threads == {1}


def test_no_more_clients_wait_than_there_are() -> None:
    assert serve_load(Counting(), IMAGES, concurrency=4, requests=40, max_batch=64).mean_batch <= 4


def test_more_clients_than_places_are_rejected_and_counted() -> None:
    result = serve_load(Counting(), IMAGES, concurrency=8, requests=60, max_batch=1, queue_size=1)
    assert result.rejected > 0
    assert result.answered + result.rejected == 60


def test_arrivals_above_capacity_are_rejected_and_the_queue_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[MicroBatcher] = []

    def remembered(*arguments: Any, **settings: Any) -> MicroBatcher:
        servers.append(MicroBatcher(*arguments, **settings))
        return servers[-1]

    calls = 0

    def stuck(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2 * WARMUP_CALLS:
            while servers[0].accepted + servers[0].rejected < 500:  # nothing is answered before the last arrival
                time.sleep(1e-3)
        return images.flatten(1)

    monkeypatch.setattr(load, "MicroBatcher", remembered)
    result = serve_arrivals(stuck, IMAGES, rate=1e5, requests=500, max_batch=4, queue_size=8)
    # one to four are in the stuck call, eight wait, and everything else was turned away
    assert 9 <= result.answered <= 12
    assert result.answered + result.rejected == 500
    assert (result.concurrency, result.rate, result.queue_size) == (None, 1e5, 8)


def test_slow_arrivals_are_all_answered() -> None:
    result = serve_arrivals(Counting(), IMAGES, rate=5000, requests=30, max_batch=4, queue_size=30)
    assert (result.answered, result.rejected) == (30, 0)
    assert 0 < min(result.latencies) <= max(result.latencies) <= result.seconds


def test_a_load_runs_where_an_event_loop_runs_already() -> None:
    async def like_a_notebook() -> int:
        return serve_load(Counting(), IMAGES, concurrency=1, requests=3, max_batch=1).answered

    assert asyncio.run(like_a_notebook()) == 3


class FailsInTheServer(Counting):
    def __call__(self, images: Tensor) -> Tensor:
        if len(self.seen) > WARMUP_CALLS * (1 + 2):
            raise RuntimeError("out of luck")
        return super().__call__(images)


def test_a_model_that_fails_stops_the_load_with_one_sentence() -> None:
    with pytest.raises(DeploymentError, match=r"RuntimeError: out of luck") as closed:
        serve_load(FailsInTheServer(), IMAGES, concurrency=2, requests=20, max_batch=2)
    assert isinstance(closed.value.__cause__, RuntimeError)
    with pytest.raises(DeploymentError, match=r"RuntimeError: out of luck") as opened:
        serve_arrivals(FailsInTheServer(), IMAGES, rate=1e5, requests=50, max_batch=2, queue_size=50)
    assert isinstance(opened.value.__cause__, RuntimeError)
    with pytest.raises(UsageError, match="the served model"):
        serve_load(lambda images: images.no_such_method(), IMAGES, concurrency=1, requests=1, max_batch=1)


def test_wrong_loads() -> None:
    with pytest.raises(UsageError, match="0 clients"):
        serve_load(Counting(), IMAGES, concurrency=0, requests=1, max_batch=1)
    with pytest.raises(UsageError, match="4 clients cannot send 3"):
        serve_load(Counting(), IMAGES, concurrency=4, requests=3, max_batch=1)
    with pytest.raises(UsageError, match="queue_size is 0"):
        serve_load(Counting(), IMAGES, concurrency=1, requests=1, max_batch=1, queue_size=0)
    with pytest.raises(UsageError, match=r"shape \(1, 1, 1\)"):
        serve_load(Counting(), IMAGES[0], concurrency=1, requests=1, max_batch=1)
    for rate in (0.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="are no load"):
            serve_arrivals(Counting(), IMAGES, rate=rate, requests=5, max_batch=1, queue_size=1)


def test_the_model_alone_is_timed_at_every_batch_size() -> None:
    model = Counting()
    timings = throughput_by_batch(model, IMAGES, (4, 1, 4), rounds=3)
    assert [(size, timing.batch, len(timing.samples)) for size, timing in timings.items()] == [(1, 1, 3), (4, 4, 3)]
    assert timings[4].throughput == pytest.approx(4 / timings[4].median)
    for wrong in ((), (0, 1), (6,)):
        with pytest.raises(UsageError, match="numbers from 1 to 5"):
            throughput_by_batch(model, IMAGES, wrong)
