"""The scaling model equals a ring that is walked step by step, and its limits are those of the closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from cookbook.distributed.scaling import LINKS, Link, ScalingModel, fitted_link, gradient_bytes, ring_all_reduce_seconds
from cookbook.errors import UsageError

LINK = Link("a cable", 1e9, 1e-5)


def walked_ring(values: list[list[float]], link: Link) -> tuple[list[list[float]], float]:
    """Add up one vector a rank, share by share around the ring; return every rank's result and the time it took."""
    ranks, seconds = len(values), 0.0
    for phase in ("add", "hand out"):
        for turn in range(ranks - 1):
            sent = []
            for rank in range(ranks):
                share = (rank - turn + (phase == "hand out")) % ranks
                sent.append(((rank + 1) % ranks, share, values[rank][share]))
            for receiver, share, value in sent:
                values[receiver][share] = values[receiver][share] + value if phase == "add" else value
            seconds += 1e6 / link.bandwidth + link.latency  # each share stands for a megabyte
    return values, seconds


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_the_formula_is_the_time_of_a_ring_that_is_walked(ranks: int) -> None:
    values = torch.randn(ranks, ranks, dtype=torch.float64, generator=torch.Generator().manual_seed(ranks))
    results, seconds = walked_ring(values.tolist(), LINK)
    assert torch.allclose(torch.tensor(results, dtype=torch.float64), values.sum(0).expand(ranks, ranks))
    assert ring_all_reduce_seconds(ranks * 1e6, ranks, LINK) == pytest.approx(seconds, rel=1e-12)


def test_many_ranks_send_the_bytes_twice() -> None:
    link = Link("no latency", 1e9)
    assert ring_all_reduce_seconds(1e9, 2, link) == pytest.approx(1.0)
    assert ring_all_reduce_seconds(1e9, 10**6, link) == pytest.approx(2.0, rel=1e-5)
    assert ring_all_reduce_seconds(0, 1024, LINK) == pytest.approx(2 * 1023 * LINK.latency)


def test_a_step_is_computation_and_what_of_the_exchange_is_not_hidden() -> None:
    model = ScalingModel(compute=0.3, size=10**8, images=64)
    exchange = ring_all_reduce_seconds(10**8, 8, LINK)
    assert model.step_seconds(8, LINK) == pytest.approx(0.3 + exchange)
    assert model.step_seconds(8, LINK, hidden=0.5) == pytest.approx(0.3 + exchange - 0.15)
    assert model.step_seconds(8, LINK, hidden=1.0) == pytest.approx(0.3)
    assert model.step_seconds(1, LINK) == 0.3
    assert model.efficiency(8, LINK) == pytest.approx(0.3 / (0.3 + exchange))
    assert model.throughput(8, LINK) == pytest.approx(8 * 64 / (0.3 + exchange))
    assert model.throughput(8, LINK, hidden=1.0) == pytest.approx(8 * model.throughput(1, LINK))


def test_faster_links_and_fewer_ranks_scale_better() -> None:
    model = ScalingModel(compute=0.05, size=4 * 10**8, images=32)
    for link in LINKS:
        shares = [model.efficiency(2**power, link) for power in range(11)]
        assert shares[0] == 1.0 and shares == sorted(shares, reverse=True)
    for slower, faster in itertools.pairwise(LINKS):
        assert model.efficiency(1024, slower) < model.efficiency(1024, faster)


def test_a_fitted_link_gives_back_the_one_that_made_the_steps() -> None:
    link = Link("true", 3e8)
    model = ScalingModel(compute=0.2, size=5 * 10**7, images=8)
    steps = {ranks: model.step_seconds(ranks, link) for ranks in (1, 2, 4, 8)}
    assert fitted_link("fitted", model.size, steps).bandwidth == pytest.approx(3e8)
    noisy = {1: 1.0, 2: 1.4, 4: 1.5}  # with x = size and 1.5 size: slope (0.4 + 1.5 · 0.5) / (1 + 1.5²)
    assert fitted_link("fitted", 1000, noisy).bandwidth == pytest.approx(1000 * (1 + 2.25) / (0.4 + 0.75))


def test_gradient_bytes_count_what_is_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2).half())
    model[1].weight.requires_grad_(False)
    assert gradient_bytes(model) == 4 * (15 + 5) + 4 * 5 + 2 * (10 + 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Link("dead", 0.0), "bandwidth above 0"),
        (lambda: Link("odd", 1.0, -1.0), "latency of 0 or more"),
        (lambda: Link("nan", math.nan), "bandwidth above 0"),
        (lambda: ring_all_reduce_seconds(1.0, 0, LINK), "use 1 rank or more"),
        (lambda: ScalingModel(compute=0.0, size=1, images=1), "compute is 0.0: use a finite number above 0"),
        (lambda: ScalingModel(1.0, 1, 1).step_seconds(2, LINK, hidden=1.5), "use a share from 0 to 1"),
        (lambda: fitted_link("x", 10, {2: 1.0, 4: 2.0}), "measure the step of 1 rank"),
        (lambda: fitted_link("x", 10, {1: 1.0}), "measure the step of 1 rank"),
        (lambda: fitted_link("x", 10, {1: 1.0, 2: 0.9}), "no bandwidth follows"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]
