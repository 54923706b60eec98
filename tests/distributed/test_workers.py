"""The lesson's workers, alone and on two ranks."""

from __future__ import annotations

from typing import Any

import launched_workers
import pytest
import torch

from cookbook.distributed import launch
from cookbook.distributed.workers import step_trial
from cookbook.errors import UsageError


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return launch(launched_workers.every_trial, ranks=2, threads=1, timeout=200)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return launched_workers.every_trial()


def test_without_the_sampler_the_ranks_visit_the_same_samples(two: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    plain, sampled, second = ([rank["visited"][name] for rank in two] for name in ("plain", "sampler", "second epoch"))
    assert plain[0] == plain[1] == alone["visited"]["plain"] != sorted(plain[0])
    assert sorted(plain[0]) == list(range(21))
    assert sampled == second, "nobody called set_epoch"
    assert [len(shard) for shard in sampled] == [11, 11] and set(sampled[0]) | set(sampled[1]) == set(range(21))


def test_two_ranks_train_and_evaluate_what_one_does(two: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert two[0]["trained"] == two[1]["trained"]
    assert two[0]["trained"]["images"] == alone["trained"]["images"] == 100
    assert {name: len(found) for name, found in two[0]["trained"]["accuracy"].items()} == {"fp32": 2, "bf16": 2}
    assert two[0]["trained"]["losses"] == pytest.approx(alone["trained"]["losses"], rel=0.2)


def test_a_step_is_timed_in_every_round(two: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert two[1]["steps"] == {}
    assert {name: len(taken) for name, taken in two[0]["steps"].items()} == {"alone": 3, "together": 3}
    assert {name: len(taken) for name, taken in alone["steps"].items()} == {"alone": 3}
    assert all(seconds > 0 for taken in two[0]["steps"].values() for seconds in taken)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are two GPUs here")
def test_data_parallel_needs_two_gpus() -> None:
    with pytest.raises(UsageError, match="DataParallel needs two GPUs"):
        step_trial(2, 1, 3, data_parallel=True)
