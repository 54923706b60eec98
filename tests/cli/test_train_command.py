"""`cookbook train` leaves a model with its record, and goes on where it was stopped."""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cookbook.data import ResidentLoader, Splits
from cookbook.models import ResNetConfig, load
from cookbook.training import evaluate

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    "--depth", 8, "--width", 4, "--no-channels-last", "--train-images", 400, "--batch-size", 50, "--epochs", 2,
    "--resolutions", "0:14", "--ema", 0,
)  # fmt: skip


def test_the_record_is_what_the_model_scores(run: Run, tmp_path: Path, fashion_mnist: Splits) -> None:
    out = tmp_path / "new" / "model.safetensors"
    status, printed, err = run("train", "--out", out, *SMALL)
    assert (status, err) == (0, "")
    assert "epoch 2: loss" in printed
    record = json.loads(out.with_suffix(".json").read_text())
    model = load(out)
    assert model.config == ResNetConfig(depth=8, width=4)
    result = evaluate(model, ResidentLoader(fashion_mnist.validation, 500))
    assert record["validation"]["correct"] == result.hits
    assert "test" not in record, "the test split is touched only when asked"
    assert record["command"].startswith("cookbook train --out")
    assert record["recipe"]["ema_decay"] is None
    assert len(record["history"]) == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_ctrl_c_and_the_same_command_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    assert run("train", "--out", straight, *SMALL)[0] == 0
    module = importlib.import_module("cookbook.training.fit")
    validate = module.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", lambda *args: (signal.raise_signal(signal.SIGINT), validate(*args))[1])
        status, _, err = run("train", "--out", stopped, *SMALL)
    assert status == 130
    assert err.startswith("cookbook: Stopped") and "resumes" in err and err.count("\n") == 1
    assert not stopped.exists()
    assert run("train", "--out", stopped, *SMALL)[0] == 0
    one, other = load(straight).state_dict(), load(stopped).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_recipe_does_not_resume(run: Run, tmp_path: Path) -> None:
    state, out = tmp_path / "kept.state", tmp_path / "model.safetensors"
    assert run("train", "--out", out, "--checkpoint", state, *SMALL)[0] == 0
    status, _, err = run("train", "--out", out, "--checkpoint", state, *SMALL, "--learning-rate", 0.1)
    assert status == 1
    assert "another recipe" in err and err.count("\n") == 1


def test_two_processes_leave_one_model_with_one_record(run: Run, tmp_path: Path, fashion_mnist: Splits) -> None:
    out = tmp_path / "two.safetensors"
    status, printed, err = run("train", "--out", out, *SMALL, "--nproc", 2, "--threads", 1)
    assert (status, err) == (0, "")
    assert printed.count("epoch 2: loss") == 1 and "[rank 0] epoch 1: loss" in printed
    others = [line for line in printed.splitlines() if "[c10d]" not in line]  # what torch says where no network names the host
    assert not any(line.startswith("[rank 1]") for line in others)
    record = json.loads(out.with_suffix(".json").read_text())
    result = evaluate(load(out), ResidentLoader(fashion_mnist.validation, 500))
    assert (record["validation"]["correct"], record["processes"]) == (result.hits, 2)
    assert "--nproc 2" in record["command"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.json", "two.safetensors"]
    status, _, err = run("train", "--out", out, *SMALL, "--nnodes", 2)
    assert status == 2 and "need a place to meet" in err and err.count("\n") == 1
