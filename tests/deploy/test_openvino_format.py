"""OpenVINO computes what torch computes, from its own format and from ONNX, and tells nobody about it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cookbook.deploy import openvino_format, parity
from cookbook.deploy.openvino_format import OpenVinoRuntime, export_openvino
from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import bytes_on_disk

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino")


@pytest.fixture(scope="module")
def converted(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_openvino(exported, tmp_path_factory.mktemp("openvino") / "resnet.xml")


@pytest.fixture(scope="module")
def runtime(converted: Path) -> OpenVinoRuntime:
    return OpenVinoRuntime(converted)


@pytest.mark.parametrize("batch", [1, 2, 7, 1])
def test_it_agrees_with_torch_for_every_batch(model: nn.Module, runtime: OpenVinoRuntime, batch: int) -> None:
    images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
    result = parity(model, runtime, images)
    assert result.largest < 1e-4  # bfloat16, which OpenVINO prefers where the processor has it, is off by 1e-2
    assert result.agreement == 1.0


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 28, 28), 100 * torch.randn(2, 1, 28, 28)], ids=["zeros", "out-of-range"])
def test_unusual_images_agree_too(model: nn.Module, runtime: OpenVinoRuntime, images: Tensor) -> None:
    assert parity(model, runtime, images).largest < 1e-3


def test_it_computes_in_float32_with_the_threads_that_it_says(exported: Path) -> None:
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    runtime = OpenVinoRuntime(exported, threads=2)
    assert runtime.threads in (1, 2)  # 1 where there is one core
    compiled = runtime._compiled
    found = {name: compiled.get_property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")}
    assert found == {"INFERENCE_NUM_THREADS": runtime.threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_dtype() == np.float32
    assert OpenVinoRuntime(exported).threads == 1
    assert affinity is None or os.sched_getaffinity(0) == affinity


def test_an_onnx_file_runs_as_it_is(exported: Path, runtime: OpenVinoRuntime) -> None:
    images = torch.randn(3, 1, 28, 28)
    direct = OpenVinoRuntime(exported)
    torch.testing.assert_close(direct(images), runtime(images), rtol=1e-4, atol=1e-5)
    assert direct.candidate("direct").artefacts == (exported,)


def test_an_answer_outlives_the_next_call(runtime: OpenVinoRuntime) -> None:
    images = torch.randn(2, 1, 28, 28)
    first = runtime(images.numpy())
    kept = first.clone()
    runtime(-images)
    assert torch.equal(first, kept)


def test_both_files_are_shipped_and_weighed(converted: Path, runtime: OpenVinoRuntime) -> None:
    weights = converted.with_suffix(".bin")
    candidate = runtime.candidate("tiny", parameters=7, seed=3)
    assert (candidate.name, candidate.runtime, candidate.seed, candidate.parameters) == ("tiny", "OpenVINO", 3, 7)
    assert sorted(converted.parent.iterdir()) == sorted(candidate.artefacts) == [weights, converted]
    assert bytes_on_disk(*candidate.artefacts) == converted.stat().st_size + weights.stat().st_size
    assert candidate.predict(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_weights_are_whole_numbers_of_float32(converted: Path, model: nn.Module) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert converted.with_suffix(".bin").stat().st_size >= 0.95 * 4 * parameters  # folded BatchNorm drops a few


def test_damaged_and_missing_files_are_one_sentence(tmp_path: Path, converted: Path, exported: Path) -> None:
    graph, weights = converted.read_bytes(), converted.with_suffix(".bin").read_bytes()
    bad = tmp_path / "bad.xml"
    for xml, binary in ((b"", weights), (graph[:2000], weights), (graph, weights[:100]), (graph, b"")):
        bad.write_bytes(xml)
        bad.with_suffix(".bin").write_bytes(binary)
        with pytest.raises(DeploymentError, match=r"cannot load .*bad\.xml \(.*\): export the model again\.") as error:
            OpenVinoRuntime(bad)
        assert "\n" not in str(error.value)
    bad.with_suffix(".bin").unlink()
    with pytest.raises(DeploymentError, match=r"keeps its weights in .*bad\.bin, which is missing"):
        OpenVinoRuntime(bad)
    with pytest.raises(DeploymentError, match="does not exist"):
        OpenVinoRuntime(tmp_path / "absent.onnx")
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(DeploymentError, match=r"cannot load .*truncated\.onnx"):
        export_openvino(truncated, tmp_path / "out.xml")
    assert not list(tmp_path.glob("out*"))


def test_wrong_arguments(tmp_path: Path, exported: Path, runtime: OpenVinoRuntime) -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        OpenVinoRuntime(exported, threads=0)
    with pytest.raises(UsageError, match=r"end in '\.xml'"):
        export_openvino(exported, tmp_path / "model.ir")
    for wrong in (torch.zeros(1, 1, 28, 28, dtype=torch.float64), torch.zeros(1, 3, 28, 28), np.zeros((28, 28), np.float32)):
        with pytest.raises(UsageError, match=r"resnet\.xml takes float32 of shape"):
            runtime(wrong)
    with pytest.raises(UsageError, match="is empty"):
        runtime(torch.zeros(0, 1, 28, 28))
    with pytest.raises(UsageError, match="images are a list"):
        runtime([0.0])  # type: ignore[arg-type]


def test_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in ("a", "b", "c")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["c"])], "sum", values[:2], values[2:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "sum.onnx")
    with pytest.raises(DeploymentError, match="takes 2 inputs"):
        OpenVinoRuntime(tmp_path / "sum.onnx")


def test_an_interrupted_export_never_leaves_a_mixed_pair(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_openvino(exported, tmp_path / "model.xml")
    copies = []

    def fails_at_the_graph(source: Path, target: Path) -> None:
        copies.append(target)
        if len(copies) == 2:
            raise OSError("no space left")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(openvino_format.shutil, "copyfile", fails_at_the_graph)
    with pytest.raises(OSError, match="no space left"):
        export_openvino(exported, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_without_openvino_the_sentence_says_what_to_install(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeploymentError, match="pip install openvino"):
        OpenVinoRuntime(exported)


QUIET = """
import os, socket, sys, threading
from cookbook.deploy.openvino_format import OpenVinoRuntime, export_openvino

def refuse(*arguments, **settings):
    raise AssertionError("somebody opens a connection")

socket.socket.connect = socket.getaddrinfo = refuse
OpenVinoRuntime(export_openvino(sys.argv[1], sys.argv[2]))
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # it is installed, and only OpenVINO's own import does without it
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
assert threading.active_count() == 1, threading.enumerate()
"""


def test_nothing_is_written_to_the_home_folder_and_nothing_is_reported(tmp_path: Path, exported: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime's own, which is imported beside
    subprocess.run(
        [sys.executable, "-c", QUIET, str(exported), str(tmp_path / "model.xml")],
        env={**environment, "HOME": str(home), "LOCALAPPDATA": str(home)}, check=True, timeout=120,
    )  # fmt: skip
    assert list(home.rglob("*")) == []
