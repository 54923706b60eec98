"""`cookbook compress`: models and data of one's own, the plan, the exit status."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cookbook import cli
from cookbook.models import ResNetConfig, TorchvisionConfig, build, save
from cookbook.pruning import MACs

Run = Callable[..., tuple[int, str, str]]
compress = importlib.import_module("cookbook.cli.compress")
FACTORIES = """
import torch
from cookbook.data import make_splits

def net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

def data():
    labels = torch.arange(60) % 3
    images = (70 * labels.view(-1, 1, 1, 1) + torch.arange(64).view(1, 1, 8, 8)).to(torch.uint8)
    return make_splits(images, labels, images, labels, "abc", validation_size=15)

def number():
    return 3

def broken():
    raise KeyError("no such thing")
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder with a module of the reader's own."""
    monkeypatch.setitem(cli.COMMANDS, "compress", "Make a model fast and small under a budget.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_parts.py").write_text(FACTORIES)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the pipeline by one that takes note of its arguments and meets the budget where bytes are not bounded."""
    import cookbook.pipeline

    seen: list[dict[str, Any]] = []

    class Result:
        def __init__(self, met: bool) -> None:
            self.met = met

        def __str__(self) -> str:
            return "the result"

    def run(model: torch.nn.Module, data: Any, **settings: Any) -> Result:
        seen.append({"model": model, "data": data, **settings})
        return Result(settings["budget"].bytes is None)

    monkeypatch.setattr(cookbook.pipeline, "compress", run)
    return seen


def folder_of_images(folder: Path) -> Path:
    for part in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for index in range(10):
                Image.new("RGB", (20, 16), (100 * number + index,) * 3).save(folder / part / name / f"{index}.png")
    return folder


def test_a_model_and_data_of_ones_own(run: Run, calls: list[dict[str, Any]]) -> None:
    arguments = ["--model", "own_parts:net", "--data", "own_parts:data", "--latency", "0.3", "--epochs", 4, "--ptq"]
    status, out, err = run("compress", *arguments, "--accuracy-drop", 2, "--stages", "quantize, distill", "--seed", 5)
    assert (status, out, err) == (0, "the result\n", "")
    (call,) = calls
    assert isinstance(call["model"][1], torch.nn.Linear) and len(call["data"].train) == 45
    assert (call["budget"].latency, call["budget"].accuracy_drop, call["budget"].bytes) == (0.3, 2.0, None)
    assert [stage.name for stage in call["stages"]] == ["quantize", "distill"] and call["stages"][0].way == "ptq"
    assert (call["recipe"].epochs, call["recipe"].seed, str(call["folder"])) == (4, 5, "compressed")


def test_a_share_of_the_operations_goes_to_the_pruning(run: Run, calls: list[dict[str, Any]]) -> None:
    arguments = ["--model", "own_parts:net", "--data", "own_parts:data", "--stages", "quantize,prune"]
    assert run("compress", *arguments, "--macs", 0.25)[0] == run("compress", *arguments)[0] == 0
    (_, counted), (_, measured) = (call["stages"] for call in calls)
    assert counted.target == MACs(0.25) and measured.target is None


def test_a_classifier_of_torchvision_takes_the_place_of_the_model(run: Run, calls: list[dict[str, Any]]) -> None:
    arguments = ["compress", "--model", "own_parts:net", "--data", "own_parts:data", "--student", "squeezenet1_1"]
    status, _, err = run(*arguments)
    assert status == 2 and "add student" in err and not calls
    assert run(*arguments, "--stages", "student,quantize")[0] == 0
    (student, _) = calls[0]["stages"]
    assert student.config == TorchvisionConfig("squeezenet1_1", 3, 1)
    assert run(*arguments[:-2], "--stages", "student")[0] == 0
    assert calls[1]["stages"][0].config is None


def test_a_budget_that_is_not_met_is_exit_status_3(run: Run, calls: list[dict[str, Any]]) -> None:
    arguments = ("compress", "--model", "own_parts:net", "--data", "own_parts:data", "--latency", 0, "--bytes", 0.1)
    assert run(*arguments) == (3, "the result\n", "")
    assert calls[0]["budget"].latency is None


def test_torchvision_on_a_folder_of_images_is_trained_first(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of_images(tmp_path / "photos")
    trained: list[Any] = []
    monkeypatch.setattr(compress, "train_first", lambda *arguments: trained.append(arguments))
    status, _, err = run("compress", "--model", "resnet18", "--data", "photos", "--train", 2, "--size", 16, "--batch-size", 4)
    assert (status, err) == (0, "")
    (call,) = calls
    assert call["model"].config == TorchvisionConfig("resnet18", 2, 3)
    assert (len(call["data"].train), len(call["data"].validation), call["data"].train.images.shape[1:]) == (18, 2, (3, 16, 16))
    (network, _, recipe, _) = trained[0]
    assert network is call["model"] and recipe.epochs == 2


def test_training_first_resumes_and_keeps_the_model(tmp_path: Path) -> None:
    splits = compress.read_data("own_parts:data", 8, None)
    model = build(ResNetConfig(depth=8, width=4, classes=3))
    loader = compress.ResidentLoader(splits.train, 15)
    compress.train_first(model, loader, compress.Recipe(epochs=1, learning_rate=0.01), tmp_path)
    again = build(ResNetConfig(depth=8, width=4, classes=3))
    compress.train_first(again, loader, compress.Recipe(epochs=1, learning_rate=0.01), tmp_path)
    kept = compress.load(tmp_path / "baseline.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, kept.state_dict()[name])


def test_saved_models_and_weights(tmp_path: Path) -> None:
    splits = compress.read_data("own_parts:data", 8, None)
    model = build(ResNetConfig(depth=8, width=4, classes=3))
    save(model, tmp_path / "net.safetensors")
    loaded = compress.make_model("net.safetensors", splits, None, trained_here=False, seed=0)
    assert torch.equal(loaded.head.weight, model.head.weight)
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    filled = compress.make_model("own_parts:net", splits, tmp_path / "own.safetensors", trained_here=False, seed=0)
    assert torch.equal(filled[1].weight, own[1].weight)


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = run("compress", "--model", "own_parts:net", "--data", "own_parts:data", "--batch-size", 15, "--dry-run",
                           "--train", 3)  # fmt: skip
    assert (status, err, calls) == (0, "", [])
    assert all(word in out for word in ("Budget: at most 0.1", "trained for 3 epochs", "distill", "In all at most"))
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"--model": "resnet18"}, 2, ["--weights", "--train"]),
        ({"--model": "resnet1"}, 2, ["did you mean"]),
        ({"--model": "own_parts:nothing"}, 2, ["--model own_parts:nothing", "nothing"]),
        ({"--model": "no_module:net"}, 2, ["no_module", "package.module:function"]),
        ({"--model": "own_parts:number"}, 2, ["returned int", "torch.nn.Module"]),
        ({"--model": "missing.safetensors"}, 1, ["no file missing.safetensors"]),
        ({"--data": "own_parts:number"}, 2, ["returned int", "Splits"]),
        ({"--data": "own_parts:broken"}, 2, ["KeyError", "no such thing"]),
        ({"--data": "nowhere"}, 2, ["no dataset and no folder"]),
        ({"--stages": "prune,sharpen"}, 2, ["no stage 'sharpen'"]),
        ({"--stages": ","}, 2, ["one or more of prune"]),
        ({"--latency": "-1"}, 2, ["latency is -1"]),
        ({"--macs": "1.5"}, 2, ["1.5", "between 0 and 1"]),
        ({"--macs": "0.5", "--stages": "quantize"}, 2, ["add prune"]),
        ({"--weights": "missing.safetensors"}, 1, ["missing.safetensors"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    run: Run, calls: list[dict[str, Any]], changed: dict[str, str], status: int, words: list[str]
) -> None:
    arguments = {"--model": "own_parts:net", "--data": "own_parts:data", **changed}
    found, out, err = run("compress", *(part for pair in arguments.items() for part in pair))
    assert (found, out, calls) == (status, "", [])
    assert err.startswith("cookbook: ") and err.count("\n") == 1 and all(word in err for word in words), err


def test_the_help_teaches_with_an_example(run: Run) -> None:
    status, out, _ = run("compress", "--help")
    assert status == 0 and "Example: cookbook compress" in out and "--dry-run" in out
