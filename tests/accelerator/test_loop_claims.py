"""The loops read as often as they say, the mixtures of devices are judged by what they do, and copies fit."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cookbook.accelerator import copies, loops
from cookbook.accelerator.batches import record_batches
from cookbook.accelerator.copies import Photos, fitting_batch, loaders
from cookbook.accelerator.loops import READS, loop, slowdowns
from cookbook.accelerator.placement import exceptions, mismatches, raises, record_mismatches
from cookbook.accelerator.setting import REHEARSAL, Setting, Workload
from cookbook.errors import CookbookError
from cookbook.measure import Timing
from cookbook.throughput import BatchSizeResult, Trial

CPU, META = torch.device("cpu"), torch.device("meta")
SETTING = Setting(CPU, REHEARSAL)


@pytest.mark.parametrize(("steps", "every", "expected"), [(10, 1, 10), (10, 0, 0), (200, 100, 2), (199, 100, 1)])
def test_a_loop_reads_as_often_as_it_is_told(steps: int, every: int, expected: int) -> None:
    taken, read = [], []

    def step() -> Tensor:
        taken.append(1)
        return torch.tensor(float(len(taken)))

    loop(step, steps, lambda loss: read.append(loss.item()), every=every)
    assert (len(taken), len(read)) == (steps, expected)
    assert read == [float(every * number) for number in range(1, expected + 1)]


def test_reading_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for read in READS.values():
        read(torch.tensor(1.5))
    assert capsys.readouterr().out == ""


def test_slowdowns_divide_by_the_loop_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(sides: dict[str, object], **options: object) -> dict[str, Timing]:
        seconds = {"never": 2.0, "every_step": 3.0, "every_step_numpy": 4.0, "every_step_print": 8.0, "every_100": 2.1}
        assert set(sides) == set(seconds)
        return {name: Timing((value,) * 3, 1, 4) for name, value in seconds.items()}

    monkeypatch.setattr(loops, "interleave", timed)
    values = slowdowns(SETTING, REHEARSAL.workloads[0], 4, of="_x")
    assert values["slowdown_every_step_x"] == values["slowdown_every_step_x_low"] == 1.5
    assert values["slowdown_every_100_x"] == pytest.approx(1.05)
    assert values["slowdown_every_step_print_x"] == 4.0
    assert values["step_seconds_never_x"] == 2.0 / REHEARSAL.loop_steps
    steps = REHEARSAL.loop_steps
    assert values["synchronizations_every_step_x"] - values["synchronizations_never_x"] == steps


def test_mixtures_of_devices_raise_and_the_documented_exceptions_do_not() -> None:
    assert {name: raises(case) for name, case in mismatches(META).items()} == dict.fromkeys(mismatches(META), True)
    assert not any(raises(case) for case in exceptions(META).values())
    assert not any(raises(case) for case in mismatches(CPU).values())  # nothing is wrong on one device


def test_the_share_of_raising_cases_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("two devices")

    monkeypatch.setattr("cookbook.accelerator.placement.mismatches", lambda device: {"a": fail, "b": int, "c": fail, "d": fail})
    monkeypatch.setattr("cookbook.accelerator.placement.exceptions", lambda device: {"e": int, "f": fail})
    (row,) = record_mismatches(SETTING)
    assert (row.values["cases_raised_share"], row.values["cases"], row.values["documented_exceptions_silent"]) == (0.75, 4, 1)
    assert (row.values["raised_b"], row.values["silent_f"]) == (0.0, 0.0)


def test_another_error_than_torchs_passes_through() -> None:
    def wrong() -> None:
        raise KeyError("a mistake in the case itself")

    with pytest.raises(KeyError):
        raises(wrong)


def test_throughput_is_compared_at_the_ends_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {4: 100.0, 8: 180.0, 16: 300.0, 24: 330.0, 28: 360.0}
    trials = [Trial(batch, True, 10 * batch, throughput=speed) for batch, speed in speeds.items()]
    found = BatchSizeResult(28, 28, (*trials, Trial(32, False, 9999)), None)
    monkeypatch.setattr("cookbook.accelerator.batches.find_batch_size", lambda step, **options: found)
    (row,) = record_batches(SETTING)
    assert row.values["throughput_gain"] == 3.6
    assert row.values["gain_of_last_doubling"] == 2.0  # 28 against 8, the largest that was doubled
    assert (row.values["largest_batch"], row.values["memory_bytes_largest"]) == (28, 280)
    assert row.values["images_per_second_24"] == 330.0


WORKLOAD = Workload("resnet50", "photos", None, (3, 10, 10), 64)
Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize(("free", "expected"), [(10**9, 64), (2 * 1200 * 2 * 4 * 3 * 5, 5)])
def test_the_workers_batches_fit_into_shared_memory(free: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SHARED_MEMORY", Path())
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: Usage(free))
    assert fitting_batch(WORKLOAD, 4) == expected


def test_too_little_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SHARED_MEMORY", Path())
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: Usage(1000))
    with pytest.raises(CookbookError, match="shm-size"):
        fitting_batch(WORKLOAD, 4)


def test_photos_are_normalized_and_repeat() -> None:
    photos = Photos((3, 4, 4), 40)
    assert len(photos) == 40
    image, label = photos[17]
    assert (image.shape, image.dtype, label) == ((3, 4, 4), torch.float32, 1)
    assert torch.allclose(image * 0.25 + 0.5, photos.pixels[1].double().div(255).float(), atol=1e-6)


def test_the_four_loaders_differ_in_what_their_names_say() -> None:
    made = loaders(WORKLOAD, 8, 2, 2, CPU)
    assert {name: loader.num_workers for name, loader in made.items()} == {
        "unpinned_no_workers": 0, "unpinned_workers": 2, "pinned_no_workers": 0, "pinned_workers": 2,
    }  # fmt: skip
    assert all(len(loader) == 2 and loader.batch_size == 8 for loader in made.values())
    pinned = {name for name, loader in loaders(WORKLOAD, 8, 2, 2, torch.device("cuda")).items() if loader.pin_memory}
    assert pinned == {"pinned_no_workers", "pinned_workers"}
