"""Loader tuning: every combination once, a recommendation that follows from the timings, and no worker left."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slow_dataset import Numbers
from torch.utils.data import DataLoader, Dataset

from cookbook.data import Split, TorchvisionLoader
from cookbook.errors import UsageError
from cookbook.measure import Timing
from cookbook.throughput import LoaderSetting, LoaderTuning, loader_tuning, tune_loader

PLAIN = LoaderSetting()
TWO = LoaderSetting(2, prefetch=2, persistent=True)
FOUR = LoaderSetting(4, prefetch=2, persistent=True)
RESIDENT = LoaderSetting(resident=True)


def split(size: int = 20) -> Split:
    images = (torch.arange(16 * size) % 256).to(torch.uint8).view(size, 1, 4, 4)
    return Split(images, torch.arange(size) % 2, "train", ("a", "b"), (0.4,), (0.3,))


def timing(milliseconds: float) -> Timing:
    return Timing(tuple(milliseconds * 1e-3 * (1 + 0.001 * step) for step in range(5)), 1, 100)


def tuned(**milliseconds: float) -> LoaderTuning:
    names = {"plain": PLAIN, "two": TWO, "four": FOUR, "resident": RESIDENT}
    return LoaderTuning({names[name]: timing(value) for name, value in milliseconds.items()}, "cpu")


def test_in_this_process_every_setting_and_the_resident_images_are_timed() -> None:
    before = torch.get_rng_state()
    result = tune_loader(split(), 4, device="cpu", workers=(0,), batches=3, rounds=3)
    assert list(result.timings) == [PLAIN, RESIDENT]
    assert all(each.batch == 12 and len(each.samples) == 3 for each in result.timings.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_call() -> None:
    result = tune_loader(Numbers(8), 2, device="cpu", workers=(1, 0), persistent=(True, False), rounds=3, context="fork")
    assert [setting.name for setting in result.timings] == [
        "no worker", "1 worker, 2 ahead", "1 worker, 2 ahead, persistent",
    ]  # fmt: skip
    assert multiprocessing.active_children() == []
    for error in ("the file is gone", "unable to mmap 4 bytes: Cannot allocate memory (12)"):
        with pytest.raises(UsageError) as caught:
            tune_loader(Numbers(8, 5, error), 2, device="cpu", workers=(1,), rounds=3, context="fork")
        assert ("shared memory (/dev/shm)" in str(caught.value)) == ("mmap" in error)
        assert ("the file is gone" in str(caught.value)) == ("mmap" not in error)
        assert multiprocessing.active_children() == []


def test_workers_descend_from_a_process_that_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def record(*arguments: Any, **settings: Any) -> DataLoader[Any]:
        made.append(settings["multiprocessing_context"])
        return DataLoader(*arguments, **{**settings, "num_workers": 0, "prefetch_factor": None, "persistent_workers": False,
                                         "multiprocessing_context": None})  # fmt: skip

    monkeypatch.setattr(loader_tuning, "DataLoader", record)
    monkeypatch.setattr(loader_tuning, "_require_shared_memory", lambda *_: None)
    tune_loader(Numbers(8), 2, device="cpu", workers=(0, 2), rounds=3)
    expected = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    assert [context and context.get_start_method() for context in made] == [None, expected]


@pytest.mark.filterwarnings("ignore:Got pickle error")  # torch says it too, before it raises
def test_a_dataset_that_cannot_be_sent_to_workers() -> None:
    class Local(Dataset[int]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(UsageError, match="in a module"):
        tune_loader(Local(), 2, device="cpu", workers=(1,), rounds=3)
    assert multiprocessing.active_children() == []


def test_all_combinations_and_their_arguments() -> None:
    settings = list(loader_tuning._settings((2, 0), (True, False), (4, 2), (True, False)))
    assert len(settings) == 2 + 2 * 2 * 2 == len(set(settings)) == len({setting.name for setting in settings})
    assert settings[0] == PLAIN and settings[-1].name == "2 workers, pinned, 4 ahead, persistent"
    for setting in settings:
        loader = DataLoader(Numbers(4), **setting.arguments)  # accepted, whatever the combination
        assert (loader.num_workers, loader.pin_memory) == (setting.workers, setting.pin_memory)


def test_too_little_shared_memory_is_said_beforehand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader_tuning, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loader_tuning.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 16))
    loader_tuning._require_shared_memory(Numbers(4), 2, 2)  # 2 batches of 2 samples of two int64: 64 bytes
    with pytest.raises(UsageError, match="--shm-size"):
        loader_tuning._require_shared_memory(Numbers(4), 2, 3)


@pytest.mark.parametrize(
    ("times", "best", "words"),
    [
        ({"plain": 10.0, "two": 5.0, "four": 5.1}, TWO, "Use a DataLoader with 2 workers, 2 ahead, persistent: 19,960 samples"),
        ({"plain": 10.0, "two": 5.1, "four": 5.0}, TWO, "2 workers"),  # 2 % faster is not worth two more processes
        ({"plain": 10.0, "two": 8.0, "four": 4.0}, FOUR, "Use a DataLoader with 4 workers"),
        ({"plain": 10.0, "two": 12.0}, PLAIN, "Keep the DataLoader with no worker"),
        ({"plain": 10.0, "two": 12.0, "resident": 0.5}, PLAIN, "Resident tensors reach 20.00× [20.00, 20.00] its speed"),
        ({"plain": 10.0, "resident": 20.0}, PLAIN, "bring no gain here"),
    ],
)
def test_the_recommendation_follows_from_the_timings(times: dict[str, float], best: LoaderSetting, words: str) -> None:
    result = tuned(**times)
    assert result.best == best
    assert words in result.recommendation
    assert result.recommendation in str(result)
    assert len(result.table().rows) == len(times) and result.table().rows[0][2] == "1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pin_memory": (True,)}, "Pinned memory serves copies to a CUDA device"),
        ({"workers": ()}, "nothing to compare"),
        ({"workers": (-1,)}, "nothing to compare"),
        ({"prefetch": (0,)}, "nothing to compare"),
        ({"rounds": 2}, "cannot be compared"),
        ({"context": "thread"}, "context is 'thread'"),
        ({"batch_size": 21}, "20 samples do not fill a batch of 21"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tune_loader(split(), **{"batch_size": 4, "device": "cpu", **settings})


def test_the_dataset_of_a_split_is_what_its_loader_loads() -> None:
    loader = TorchvisionLoader(split(), 20, shuffle=False)
    images, labels = next(iter(loader.batches(1)))
    samples = loader.dataset(1)
    assert all(torch.equal(samples[at][0], images[at]) and samples[at][1] == labels[at] for at in range(20))
