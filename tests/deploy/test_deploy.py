"""The deployed file computes what the model computes, and bad files are one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from cookbook.deploy import Runtime, export, parity
from cookbook.deploy.export import strip_metadata
from cookbook.errors import DeploymentError, UsageError


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_onnx_runtime_agrees_with_torch_for_every_batch(model: nn.Module, exported: Path, batch: int) -> None:
    images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
    result = parity(model, Runtime(exported), images)
    assert result.largest < 1e-4
    assert (result.agreement, result.images) == (1.0, batch)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 28, 28), 100 * torch.randn(2, 1, 28, 28)], ids=["zeros", "out-of-range"])
def test_unusual_images_agree_too(model: nn.Module, exported: Path, images: Tensor) -> None:
    assert parity(model, Runtime(exported), images).largest < 1e-3


def test_the_file_means_the_same_to_onnx_own_reference(model: nn.Module, exported: Path) -> None:
    images = torch.randn(2, 1, 28, 28)
    (logits,) = ReferenceEvaluator(str(exported)).run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-3, atol=1e-4)


def test_one_file_without_metadata(exported: Path, model: nn.Module) -> None:
    graph = onnx.load(exported)
    assert [path.name for path in exported.parent.iterdir()] == ["resnet.onnx"]
    assert not graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert exported.stat().st_size < weights + 40_000


def test_stripping_changes_no_output(model: nn.Module) -> None:
    images = torch.randn(2, 1, 28, 28)
    program = torch.onnx.export(model, (images,), dynamo=True, external_data=False, verbose=False)
    graph = program.model_proto
    before = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: images.numpy()})[0]
    size = graph.ByteSize()
    strip_metadata(graph)
    after = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: images.numpy()})[0]
    assert np.array_equal(before, after)
    assert graph.ByteSize() < size


def test_the_model_keeps_its_modes(tmp_path: Path, model: nn.Module) -> None:
    model.train()
    model.blocks[0].bn1.eval()
    export(model, torch.randn(1, 1, 28, 28), tmp_path / "m.onnx")
    modes = model.training, model.blocks[0].bn1.training, model.blocks[0].bn2.training
    model.eval()
    assert modes == (True, False, True)


def test_an_untraceable_model_is_one_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    target = tmp_path / "m.onnx"
    target.write_bytes(b"older file")
    with pytest.raises(DeploymentError, match="Untraceable cannot be exported") as error:
        export(Untraceable(), torch.randn(1, 1, 4, 4), target)
    assert "\n" not in str(error.value)
    assert target.read_bytes() == b"older file"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, exported: Path, keep: int) -> None:
    damaged = tmp_path / "m.onnx"
    damaged.write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(DeploymentError, match=r"cannot load .*m\.onnx") as error:
        Runtime(damaged)
    assert "\n" not in str(error.value)


def test_wrong_arguments(tmp_path: Path, exported: Path, model: nn.Module) -> None:
    with pytest.raises(DeploymentError, match="does not exist"):
        Runtime(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="threads is 0"):
        Runtime(exported, threads=0)
    runtime = Runtime(exported)
    for wrong in (torch.zeros(1, 1, 28, 28, dtype=torch.float64), torch.zeros(1, 3, 28, 28), torch.zeros(28, 28)):
        with pytest.raises(UsageError, match=r"resnet\.onnx takes float32 of shape"):
            runtime(wrong)
    with pytest.raises(UsageError, match="no images"):
        parity(model, runtime, torch.zeros(0, 1, 28, 28))
    with pytest.raises(UsageError, match="differ in shape"):
        parity(model, lambda images: runtime(images)[:, :3], torch.zeros(1, 1, 28, 28))


def test_parity_is_in_units_of_the_logits(model: nn.Module) -> None:
    images = torch.randn(64, 1, 28, 28)
    with torch.no_grad():
        logits = model(images).double()
    shifted = parity(model, lambda x: (logits + 0.5 * logits.std(correction=0)).float(), images)
    assert shifted.largest == pytest.approx(0.5, rel=1e-4)
    assert shifted.mean == pytest.approx(0.5, rel=1e-4)
    assert shifted.agreement == 1.0
    assert parity(model, lambda x: -logits.float(), images).agreement < 0.5


def test_a_candidate_names_the_file_to_ship(exported: Path) -> None:
    candidate = Runtime(exported).candidate("tiny", parameters=7, seed=3)
    assert (candidate.name, candidate.runtime, candidate.artefacts, candidate.seed) == ("tiny", "ONNX Runtime", (exported,), 3)
    assert candidate.predict(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
