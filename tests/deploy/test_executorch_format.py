"""An ExecuTorch program computes what its model computes; where ExecuTorch is absent, one sentence says so."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.deploy import parity
from cookbook.deploy.executorch_format import ExecutorchRuntime, export_executorch
from cookbook.errors import DeploymentError, UsageError

needed = pytest.mark.skipif(find_spec("executorch") is None, reason="ExecuTorch is not installed: pip install executorch")
LARGEST = 8  # as many as there are channels in the second stage below, which is what lowering stumbles over


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_executorch(model, torch.randn(LARGEST, 1, 28, 28), tmp_path_factory.mktemp("executorch") / "resnet.pte")


@needed
def test_it_agrees_with_torch_up_to_the_largest_batch(model: nn.Module, exported: Path) -> None:
    runtime = ExecutorchRuntime(exported)
    assert runtime.largest_batch >= LARGEST
    for images in (*(torch.randn(batch, 1, 28, 28) for batch in (1, 3, LARGEST)), torch.zeros(2, 1, 28, 28)):
        result = parity(model, runtime, images)
        assert result.largest < 1e-4
        assert result.agreement == 1.0
    candidate = runtime.candidate("tiny", seed=3)
    assert (candidate.name, candidate.runtime, candidate.artefacts, candidate.seed) == ("tiny", "ExecuTorch", (exported,), 3)


@needed
def test_wrong_images_are_one_sentence(exported: Path) -> None:
    runtime = ExecutorchRuntime(exported)
    for wrong in (torch.zeros(1, 1, 28, 28).double(), torch.zeros(1, 3, 28, 28), torch.zeros(1, 1, 28, 30)):
        with pytest.raises(UsageError, match=r"resnet\.pte takes float32 of shape"):
            runtime(wrong)
    with pytest.raises(UsageError, match="batches of up to"):
        runtime(torch.zeros(runtime.largest_batch + 1, 1, 28, 28))
    with pytest.raises(UsageError, match="is empty"):
        runtime(torch.zeros(0, 1, 28, 28))


@needed
def test_damaged_files_are_one_sentence(tmp_path: Path, exported: Path) -> None:
    damaged = tmp_path / "damaged.pte"
    for content in (b"", b"garbage" * 100, exported.read_bytes()[:5000]):
        damaged.write_bytes(content)
        with pytest.raises(DeploymentError, match=r"cannot load .*damaged\.pte") as error:
            ExecutorchRuntime(damaged)
        assert "\n" not in str(error.value)


@needed
def test_an_untraceable_model_is_one_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(DeploymentError, match="Untraceable cannot be exported to ExecuTorch") as error:
        export_executorch(Untraceable(), torch.randn(1, 4), tmp_path / "m.pte")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_executorch_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(DeploymentError, match="run 'pip install executorch'"):
        export_executorch(nn.Linear(3, 2), torch.zeros(1, 3), tmp_path / "m.pte")
    (tmp_path / "m.pte").write_bytes(b"some program")
    with pytest.raises(DeploymentError, match="run 'pip install executorch'"):
        ExecutorchRuntime(tmp_path / "m.pte")


def test_missing_files_and_images() -> None:
    with pytest.raises(DeploymentError, match="does not exist"):
        ExecutorchRuntime("absent.pte")
    with pytest.raises(UsageError, match="no image in the example"):
        export_executorch(nn.Linear(3, 2), torch.zeros(0, 3), "m.pte")
