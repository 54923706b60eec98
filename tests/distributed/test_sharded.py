"""A model split over two ranks learns what the whole model learns, and its checkpoints fit any number of ranks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from sharded_ranks import BATCH, CONFIG, STEPS, batch, fresh_model, fresh_optimizer, run, train
from torch import Tensor, nn

from cookbook.distributed.sharded import shard
from cookbook.distributed.sharded_checkpoint import load_sharded, save_sharded
from cookbook.errors import CheckpointError, UsageError
from cookbook.models import build

SECONDS = 240  # for both ranks, on a busy machine
pytestmark = pytest.mark.usefixtures("one_thread")


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference, relative to the largest value of all."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.detach().abs().max()) for tensor in expected.values())
    return max(float((found[name] - expected[name]).detach().abs().max()) for name in expected) / largest


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{number}": state["exp_avg"] for number, state in enumerate(optimizer.state.values())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which one process has left a checkpoint, at a stage that two ranks go on from."""
    folder = tmp_path_factory.mktemp("sharded")
    model = fresh_model()
    optimizer = fresh_optimizer(model)
    train(model, optimizer, range(STEPS))
    optimizer.param_groups[0]["lr"] = 0.02
    save_sharded(folder / "by_one", model, optimizer, notes={"step": STEPS, "best": [0.5, None]})
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """Return what two ranks computed; a hang ends in a failure."""
    context = mp.start_processes(run, (2, str(folder)), nprocs=2, join=False, start_method="spawn")
    assert context is not None
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the ranks did not end within {SECONDS} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return torch.load(folder / "results.pt", weights_only=True)


def test_each_rank_keeps_its_share(found: dict[str, Any]) -> None:
    whole = sum(parameter.numel() for parameter in fresh_model().parameters())
    assert whole / 2 <= found["elements"] < 0.6 * whole  # rank 0 holds the longer half of what does not divide


def test_gradients_are_those_of_the_whole_model_on_both_ranks_batches(found: dict[str, Any]) -> None:
    model = fresh_model()
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    assert relative(found["gradients"], gradients(model)) < 1e-6


def test_weights_after_some_steps_are_those_of_the_whole_model(found: dict[str, Any]) -> None:
    model = fresh_model()
    train(model, fresh_optimizer(model), range(STEPS))
    assert relative(found["weights"], weights(model)) < 1e-6
    assert relative(found["weights"], weights(fresh_model())) > 1e-2  # the steps did something


def test_a_checkpoint_of_two_ranks_fills_an_ordinary_model(folder: Path, found: dict[str, Any]) -> None:
    model = fresh_model(seed=1)
    optimizer = fresh_optimizer(model)
    assert load_sharded(folder / "by_two", model, optimizer) == {"step": STEPS}
    assert relative(weights(model), found["weights"]) == 0.0
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    reference = fresh_model()
    expected = fresh_optimizer(reference)
    train(reference, expected, range(STEPS))
    assert relative(moments(optimizer), moments(expected)) < 1e-6
    assert [path.name for path in sorted((folder / "by_two").iterdir())] == ["checkpoint.json", "shares-2"]


def test_two_ranks_go_on_from_a_checkpoint_of_one_process(found: dict[str, Any]) -> None:
    model = fresh_model()
    optimizer = fresh_optimizer(model)
    train(model, optimizer, range(STEPS))
    optimizer.param_groups[0]["lr"] = 0.02
    train(model, optimizer, range(STEPS, 2 * STEPS))
    assert found["notes"] == {"step": STEPS, "best": [0.5, None]}
    assert all(bool(tensor.isnan().all()) for tensor in found["unfilled"].values())
    assert relative(found["continued"], weights(model)) < 1e-6


def test_under_the_bf16_policy_weights_are_rounded_and_gradients_summed_in_float32(found: dict[str, Any]) -> None:
    images, labels = batch(0)
    total = {name: torch.zeros_like(value) for name, value in weights(fresh_model()).items()}
    for rank in (0, 1):
        model = fresh_model().bfloat16()
        mine = slice(rank * BATCH, (rank + 1) * BATCH)
        logits = model(images[mine].bfloat16())
        F.cross_entropy(logits.float(), labels[mine]).backward()
        if rank == 0:
            assert found["bf16 logits"].dtype == torch.bfloat16
            assert torch.equal(found["bf16 logits"], logits)
        total = {name: value + gradients(model)[name].float() / 2 for name, value in total.items()}
    assert {tensor.dtype for tensor in found["bf16 gradients"].values()} == {torch.float32}
    assert relative(found["bf16 gradients"], total) < 1e-6


@pytest.mark.parametrize(
    ("attempt", "kind", "words"),
    [
        ("sharded twice", "UsageError", "is sharded already: shard a fresh one"),
        ("fp16", "UsageError", "computes in 'fp32' or 'bf16'"),
        ("missing", "CheckpointError", "There is no sharded checkpoint in"),
        ("seen by one", "CheckpointError", "There is no sharded checkpoint in"),
        ("another model", "CheckpointError", "is of another model (6 differences"),
        ("no optimizer", "CheckpointError", "is of another optimizer ("),
        ("cut share", "CheckpointError", "is damaged ("),
        ("lost share", "CheckpointError", "lacks a part of 'model."),
        ("apart", "CheckpointError", "on a file system that they share"),
        ("unwritable", "CheckpointError", "check the folder, its rights and the free space"),
        ("notes", "CheckpointError", "The notes cannot be saved"),
    ],
)
def test_a_refusal_is_the_same_sentence_on_every_rank(found: dict[str, Any], attempt: str, kind: str, words: str) -> None:
    first, second = found["said"][attempt]
    assert first == second
    assert first.startswith(f"{kind}: ") and words in first
    assert "\n" not in first and first.endswith(".")


def test_a_killed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fresh_model(), fresh_model(seed=1)
    save_sharded(tmp_path, first)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            save_sharded(tmp_path, second)
    assert (tmp_path / "shares-2").exists()
    restored = fresh_model(seed=2)
    load_sharded(tmp_path, restored)
    assert relative(weights(restored), weights(first)) == 0.0
    save_sharded(tmp_path, second)
    load_sharded(tmp_path, restored)
    assert relative(weights(restored), weights(second)) == 0.0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint.json", "shares-2"]


def test_saved_files_can_be_read_without_this_package(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = fresh_model()
    save_sharded(tmp_path, model)
    (file,) = (tmp_path / "shares-1").iterdir()
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    assert relative(stored, dict(model.state_dict())) == 0.0


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for text, words in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"format": "x", "shares": "y"}), "of this version"),
    ):
        (tmp_path / "checkpoint.json").write_text(text)
        for action in (lambda: load_sharded(tmp_path, fresh_model()), lambda: save_sharded(tmp_path, fresh_model())):
            with pytest.raises(CheckpointError, match=words):
                action()


def test_sharding_needs_ranks() -> None:
    with pytest.raises(UsageError, match="no ranks to shard over"):
        shard(fresh_model())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'1' is a BatchNorm1d, whose statistics would differ"):
        shard(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(UsageError, match=r"'weight' is of torch\.float64"):
        shard(nn.Linear(2, 2).double())
    with pytest.raises(UsageError, match="do not implement forward"):
        shard(nn.ModuleList([nn.Linear(2, 2)]))
    with pytest.raises(UsageError, match="no parameters"):
        shard(nn.ReLU())
    with torch.device("meta"):
        model = nn.Linear(2, 2)
        model.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(UsageError, match="'scale' is in no state_dict"):
        shard(model)


@pytest.mark.usefixtures("alone")
def test_blocks_are_the_members_of_the_outermost_containers() -> None:
    def groups(model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if type(module).__name__.startswith("FSDP")]

    assert groups(shard(build(CONFIG))) == ["", "blocks.0", "blocks.1"]
    nested = nn.Sequential(nn.ModuleDict({"a": nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)]), nn.ReLU()])}))
    assert groups(shard(nested)) == ["", "0.a.0.0"]
    model = build(CONFIG)
    assert groups(shard(model, blocks=[model.head])) == ["", "head"]
