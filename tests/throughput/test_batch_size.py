"""The batch-size finder: every limit exactly, in few trials, on all ranks alike, with nothing left behind."""

from __future__ import annotations

import copy
import gc
import json
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from two_ranks import search

from cookbook.errors import UsageError
from cookbook.throughput import BatchSizeResult, Trial, batch_size, find_batch_size, find_training_batch_size, is_out_of_memory
from cookbook.training import Recipe

PLENTY = 2**62


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """Let the collections between tries pass over what was imported before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def without_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the timing, which is the instrument's business and takes most of the time."""

    def throughputs(self: batch_size._Finder, rounds: int, batches: int) -> dict[int, float]:
        return {trial.batch: float(trial.batch) for trial in self.trials if trial.fits}

    monkeypatch.setattr(batch_size._Finder, "throughputs", throughputs)
    monkeypatch.setattr(batch_size.gc, "collect", lambda: 0)
    monkeypatch.setattr(batch_size, "peak_memory", lambda function, device: (function(), 0)[1])


def limited(largest: int, error: Callable[[], BaseException] = lambda: torch.OutOfMemoryError("full")) -> Callable[[int], None]:
    """Return a step for which `largest` images are the most."""

    def step(batch: int) -> None:
        if batch > largest:
            raise error()

    return step


def test_every_limit_is_found_exactly_in_14_trials(without_clock: None) -> None:
    for largest in range(1, 2101):
        result = find_batch_size(limited(largest), start=1024, device="cpu", memory_limit=PLENTY)
        sizes = [trial.batch for trial in result.trials]
        assert result.largest == largest
        assert len(set(sizes)) == len(sizes) <= 14
        assert all(trial.fits == (trial.batch <= largest) for trial in result.trials)


@pytest.mark.parametrize(("start", "most"), [(1024, 14), (1000, 14), (3, 24), (1, 24)])
def test_the_search_is_exact_from_any_start(start: int, most: int) -> None:
    for largest in range(4097):
        asked: list[int] = []
        found = batch_size._search(
            lambda size, asked=asked, largest=largest: asked.append(size) or size <= largest, start, 4096
        )
        assert found == largest
        assert len(set(asked)) == len(asked) <= most


@pytest.mark.parametrize("limit", [1024, 1500, 3000])
def test_no_batch_above_the_limit_is_tried(limit: int, without_clock: None) -> None:
    for largest in (limit - 1, limit, limit + 1, 10**6):
        result = find_batch_size(limited(largest), start=1024, limit=limit, device="cpu", memory_limit=PLENTY)
        assert result.largest == min(largest, limit)
        assert max(trial.batch for trial in result.trials) <= limit


@pytest.mark.parametrize("fixed", [0, 700, 10**6])
def test_a_memory_limit_stands_in_for_a_gpu(fixed: int, without_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def measured(function: Callable[[], object], device: torch.device) -> int:
        function()
        return fixed + 50 * ran[-1]

    monkeypatch.setattr(batch_size, "peak_memory", measured)
    for start in (1, 32, 1024):
        for largest in (1, 31, 32, 33, 100, 999, 2047):
            ran.clear()
            limit = fixed + 50 * largest + 49
            result = find_batch_size(ran.append, start=start, device="cpu", memory_limit=limit)
            assert result.largest == largest
            assert all(trial.memory == fixed + 50 * trial.batch for trial in result.trials)
            for trial in result.trials:
                assert (trial.batch in ran) is not trial.predicted
                assert not trial.predicted or (trial.memory or 0) > 1.5 * limit  # far too large is not even tried


MEASURED = """
import torch
from cookbook import find_batch_size
def step(batch):
    torch.ones(batch, 2**20, dtype=torch.uint8)
step(1)
result = find_batch_size(step, start=16, limit=256, device="cpu", memory_limit=100 * 2**20, rounds=3)
assert set(result.throughputs) == {trial.batch for trial in result.trials if trial.fits}
print(result.largest)
"""


def test_real_memory_is_measured() -> None:
    """In a process of its own: resident memory is the whole process's, and other tests leave much of it behind."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert 90 <= int(done.stdout) <= 101


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.0 GB)"),
]
UNRELATED = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."),
    RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. out of memory?"),
    ValueError("CUDA out of memory"),
    IndexError("Target 10 is out of bounds."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_what_means_out_of_memory(error: Exception, without_clock: None) -> None:
    assert is_out_of_memory(error)
    assert find_batch_size(limited(77, lambda: error), start=64, device="cpu", memory_limit=PLENTY).largest == 77


@pytest.mark.parametrize("error", UNRELATED, ids=repr)
def test_any_other_error_passes_through_unchanged(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        find_batch_size(limited(77, lambda: error), start=64, device="cpu", memory_limit=PLENTY, rounds=3)
    assert caught.value is error
    state = {"calls": 0}

    def fails_late(batch: int) -> None:  # in the timing, when the search is over
        state["calls"] += 1
        if state["calls"] > 4:
            raise error

    with pytest.raises(type(error)) as caught:
        find_batch_size(fails_late, start=2, limit=4, device="cpu", memory_limit=PLENTY, rounds=3)
    assert caught.value is error


def test_a_size_that_runs_out_of_memory_among_the_others_is_not_timed() -> None:
    calls: list[int] = []

    def step(batch: int) -> None:
        calls.append(batch)
        if batch == 8 and calls.count(8) > 2:  # alone it fits
            raise MemoryError

    result = find_batch_size(step, start=4, limit=8, device="cpu", memory_limit=PLENTY, rounds=3)
    assert (result.largest, result.best) == (8, 4)
    assert list(result.throughputs) == [4]


def test_memory_is_free_before_the_next_try() -> None:
    kept: list[weakref.ref[Tensor]] = []
    held: list[Tensor] = []
    alive: list[int] = []

    def step(batch: int) -> None:
        alive.append(sum(reference() is not None for reference in kept[: -len(held) or None]))
        tensor = torch.ones(batch)
        cycle = [tensor]
        cycle.append(cycle)  # type: ignore[arg-type]  # only the garbage collector frees it
        kept.append(weakref.ref(tensor))
        held.append(tensor)
        if batch > 5:
            raise torch.OutOfMemoryError("full")

    gc.disable()
    try:
        find_batch_size(step, start=8, limit=16, device="cpu", memory_limit=PLENTY, rounds=3, release=held.clear)
    finally:
        gc.enable()
    assert set(alive) == {0}


class Learner(nn.Module):
    """A convolution with BatchNorm and dropout, which all have a state that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_the_model_and_all_random_numbers_stay_as_they_were() -> None:
    torch.manual_seed(0)
    model, images, labels = Learner(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    model(images).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    states = [copy.deepcopy(part.state_dict()) for part in (model, optimizer)]
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    recipe = Recipe(epochs=9, learning_rate=10.0, optimizer="adamw", ema_decay=0.9)
    result = find_training_batch_size(model, images, labels, recipe, start=2, limit=8, rounds=3)
    assert (result.largest, [trial.batch for trial in result.trials]) == (8, [2, 4, 8])
    assert not model.training
    for part, state in zip((model, optimizer), states, strict=True):
        torch.testing.assert_close(part.state_dict(), state, rtol=0, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == flags


def test_the_steps_are_real_trainings_of_that_size() -> None:
    seen: list[tuple[int, int]] = []

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(images), len(labels)))
        return nn.functional.cross_entropy(model(images), labels)

    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 0])
    recipe = Recipe(epochs=1, learning_rate=0.1, accumulate=2)
    find_training_batch_size(Learner(), images, labels, recipe, start=4, limit=4, rounds=3, objective=objective)
    assert set(seen) == {(4, 4)}  # more than there are images: they repeat
    assert len(seen) == (2 + 1 + 3) * 2 * 2  # two calls, a warm-up, three rounds; two steps of two batches


def test_ranks_agree_when_one_alone_runs_out_of_memory(tmp_path: Path) -> None:
    limits = [[100, 300], [512, 33], [512, 512]]
    mp.spawn(search, args=(str(tmp_path), limits, 1), nprocs=2, join=True)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[:-1] == second[:-1]
    assert [found[0] for found in first[:-1]] == [min(pair) for pair in limits[:-1]]
    assert first[-1].startswith("CookbookError: The step failed on another rank")
    assert second[-1] == "ValueError: the labels are wrong"


def test_the_table_names_what_was_found() -> None:
    trials = (Trial(64, True, 5_000_000, throughput=900.0), Trial(32, True, 3_000_000, throughput=1000.0), Trial(128, False))
    result = BatchSizeResult(32, 64, trials, 6_000_000)
    assert result.throughputs == {32: 1000.0, 64: 900.0}
    assert [row[0] for row in result.table().rows] == ["32", "64", "128"]
    assert "Best throughput at 32; the largest that fits is 64. Memory limit: 6.00 MB." in str(result)
    assert "<table>" in result._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0}, "start is 0"),
        ({"start": 10, "limit": 5}, "cannot start at 10 above its limit of 5"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"device": "cuda:99"}, "not available here"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_batch_size(limited(10), **arguments)  # type: ignore[arg-type]


def test_not_even_one_image() -> None:
    with pytest.raises(UsageError, match="Not even one image fits"):
        find_batch_size(limited(0), start=8, device="cpu")
