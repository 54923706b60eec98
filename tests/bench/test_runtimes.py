"""The benchmark of runtimes: one row for each that is here, a sentence for each that is not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.bench import runtimes
from cookbook.bench.runtimes import resident_against_dataloader, runtimes_against_eager
from cookbook.data import Splits
from cookbook.deploy import export
from cookbook.errors import CookbookError, DeploymentError
from cookbook.evidence import BenchRatio
from cookbook.models import ResNetConfig, build

TINY = ResNetConfig(depth=8, width=2)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the network that the benchmark makes, exported once for all tests."""
    torch.manual_seed(0)
    return export(build(TINY), torch.zeros(1, 1, 28, 28), tmp_path_factory.mktemp("bench") / "model.onnx")


@pytest.fixture(autouse=True)
def exported_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "export", lambda model, images, path: file)


def rows_of(splits: Splits, said: list[str]) -> list[BenchRatio]:
    return list(runtimes_against_eager(splits, TINY, 2, 1, 2, BenchRatio, said.append))


def test_every_runtime_is_a_row_against_eager_torch(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "compiled", lambda model, images: model)  # the compiler takes longer than all the rest
    said: list[str] = []
    rows = rows_of(fashion_mnist, said)
    here = ["torch.compile", "ONNX Runtime"] + ["OpenVINO"] * (find_spec("openvino") is not None)
    assert [row.name for row in rows] == [f"{name}, batch 2" for name in here]
    assert {row.baseline for row in rows} == {"eager torch"}
    assert len(said) == 3 - len(here)


def test_a_runtime_that_is_not_here_is_a_sentence(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object, **settings: object) -> Callable[[Tensor], Tensor]:
        raise DeploymentError("it is not installed.")

    monkeypatch.setattr(runtimes, "compiled", absent)
    monkeypatch.setattr(runtimes, "OpenVinoRuntime", absent)
    said: list[str] = []
    assert [row.name for row in rows_of(fashion_mnist, said)] == ["ONNX Runtime, batch 2"]
    assert said == [f"{name}, batch 2, is skipped: it is not installed." for name in ("torch.compile", "OpenVINO")]


def test_a_runtime_that_computes_something_else_stops_the_benchmark(
    fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "compiled", lambda model, images: lambda images: 1.1 * model(images))
    with pytest.raises(CookbookError, match=r"torch\.compile and eager torch disagree"):
        rows_of(fashion_mnist, [])


def test_without_a_compiler_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(model: nn.Module, *, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def call(images: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found.\nmore")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(DeploymentError) as error:
        runtimes.compiled(nn.Linear(3, 2), torch.zeros(1, 3))
    sentence = "torch.compile cannot compile Linear (No working C++ compiler found): it needs a C++ compiler such as g++."
    assert str(error.value) == sentence


def test_the_loaders_are_compared(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "LOADED", 128)
    row = resident_against_dataloader(fashion_mnist.train, 1, 3, BenchRatio)
    assert (row.name, row.candidate) == ("loader", "resident loader")
    assert row.ratio.low <= row.ratio.value <= row.ratio.high
