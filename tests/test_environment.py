"""Profile, device, seeds and provenance."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from cookbook import environment
from cookbook.environment import by_profile, current_profile, derive_seed, pick_device, provenance, seed_everything
from cookbook.errors import UsageError


def test_the_profile_is_quick_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_PROFILE", raising=False)
    assert (current_profile(), by_profile(quick=1, full=2)) == ("quick", 1)
    monkeypatch.setenv("COOKBOOK_PROFILE", "Full")
    assert (current_profile(), by_profile(quick=1, full=2)) == ("full", 2)
    monkeypatch.setenv("COOKBOOK_PROFILE", "fast")
    with pytest.raises(UsageError, match="COOKBOOK_PROFILE is 'fast'"):
        current_profile()


def test_the_device_is_the_one_asked_for_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("COOKBOOK_DEVICE", raising=False)
    assert pick_device().type == "cpu"
    monkeypatch.setenv("COOKBOOK_DEVICE", "cuda")
    with pytest.raises(UsageError, match="'cuda' is not available here"):
        pick_device()
    assert pick_device("cpu").type == "cpu"
    for wrong, words in (("mps", "not available"), ("quantum", "not a device"), ("meta", "not available")):
        with pytest.raises(UsageError, match=words):
            pick_device(wrong)


def test_an_accelerator_comes_first_and_its_number_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="'cuda:2' is not available"):
        pick_device("cuda:2")


def test_one_seed_gives_one_stream_in_every_library() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_everything(3)
    first = draw()
    assert draw() != first
    seed_everything(3)
    assert draw() == first
    for wrong in (-1, 2**32):
        with pytest.raises(UsageError, match="out of range"):
            seed_everything(wrong)


def test_derived_seeds_are_fixed_distinct_and_in_range() -> None:
    """The constant guards every recorded run: another value would mean other batches."""
    assert (derive_seed(0, 0), derive_seed(0, 1, 2)) == (7896617691693857887, 1535930435702422785)
    seeds = {derive_seed(seed, epoch, step) for seed in range(5) for epoch in range(5) for step in range(20)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1)


def test_provenance_is_json_and_names_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(json.dumps(provenance("cpu").to_dict()))
    assert record["libraries"]["torch"] == torch.__version__.split("+")[0]
    assert (record["device"], record["threads"]) == ("cpu", torch.get_num_threads())
    assert set(record["instruction_sets"]) <= set(environment.INSTRUCTION_SETS)


def test_the_stamp_labels_the_quick_profile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    environment.stamp("cpu")
    assert "not evidence" in capsys.readouterr().out
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    environment.stamp("cpu")
    printed = capsys.readouterr().out
    assert "profile full" in printed
    assert "not evidence" not in printed
