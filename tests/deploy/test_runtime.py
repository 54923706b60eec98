"""The runtime: what it takes, which provider runs it, and one sentence for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from quantized_graphs import constant, model

from cookbook.deploy import Runtime
from cookbook.errors import DeploymentError, UsageError

WEIGHT = np.random.default_rng(0).normal(size=(12, 5)).astype("f4")


def saved(path: Path, dtype: int = TensorProto.FLOAT) -> Path:
    nodes = [helper.make_node("Flatten", ["x0"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["out"])]
    weight = WEIGHT.astype(helper.tensor_dtype_to_np_dtype(dtype))
    made = model(nodes, [constant("w", weight, weight.dtype.str)], ["out"], ("batch", 3, 2, 2))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = dtype
    onnx.save(made, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "linear.onnx")


def test_torch_numpy_and_strided_images_give_the_same(path: Path) -> None:
    images = torch.randn(4, 2, 2, 3).permute(0, 3, 1, 2)
    assert not images.is_contiguous()
    expected = torch.from_numpy(images.flatten(1).numpy() @ WEIGHT)
    for given in (
        images,
        images.numpy(),
        images.contiguous(),
        images.clone().requires_grad_(),
        np.asfortranarray(images.numpy()),
    ):
        for optimize in (True, False):
            torch.testing.assert_close(Runtime(path, optimize=optimize)(given), expected)


def test_the_file_decides_the_dtype(tmp_path: Path) -> None:
    runtime = Runtime(saved(tmp_path / "double.onnx", TensorProto.DOUBLE))
    assert runtime(torch.ones(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(UsageError, match=r"takes float64 of shape .* not float32"):
        runtime(torch.ones(1, 3, 2, 2))


def test_wrong_images(path: Path) -> None:
    runtime = Runtime(path)
    for wrong, words in (
        (torch.ones(1, 3, 2, 2, dtype=torch.bfloat16), "not bfloat16"),
        (np.ones((1, 3, 2, 2), ">f4"), "not >f4"),
        (torch.ones(3, 2, 2), r"not float32 of shape \(3, 2, 2\)"),
        (torch.ones(()), r"of shape \(\)"),
        (torch.ones(0, 3, 2, 2), "is empty: pass at least one image"),
        ([[1.0]], "a list: pass a torch tensor or a NumPy array"),
    ):
        with pytest.raises(UsageError, match=words):
            runtime(wrong)  # type: ignore[arg-type]


def test_a_missing_side_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "linear.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="linear.data", size_threshold=0)
    runtime = Runtime(path)
    assert runtime(torch.ones(2, 3, 2, 2)).shape == (2, 5)
    (tmp_path / "linear.data").unlink()
    with pytest.raises(DeploymentError, match=r"linear\.data, which is missing") as error:
        Runtime(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_corrupt_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.onnx").write_bytes(content)
    with pytest.raises(DeploymentError, match=r"cannot load .*damaged\.onnx") as error:
        Runtime(tmp_path / "damaged.onnx")
    assert "\n" not in str(error.value)


def test_several_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    add = [helper.make_node("Add", ["x0", "x1"], ["out"])]
    onnx.save(model(add, [], ["out"], ("batch", 2), count=2), tmp_path / "two_in.onnx")
    split = [helper.make_node("Relu", ["x0"], ["a"]), helper.make_node("Tanh", ["x0"], ["b"])]
    onnx.save(model(split, [], ["a", "b"], ("batch", 2)), tmp_path / "two_out.onnx")
    for name, words in (
        ("two_in", "takes 2 inputs and returns 1 outputs"),
        ("two_out", "takes 1 inputs and returns 2 outputs"),
    ):
        with pytest.raises(DeploymentError, match=words):
            Runtime(tmp_path / f"{name}.onnx")


def test_a_file_that_fails_on_a_batch_says_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x0", "shape"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["out"])]
    weights = [constant("shape", (2, 12), "i8"), constant("w", WEIGHT, "f4")]
    onnx.save(model(nodes, weights, ["out"], ("batch", 3, 2, 2)), tmp_path / "baked.onnx")
    runtime = Runtime(tmp_path / "baked.onnx")
    assert runtime(torch.ones(2, 3, 2, 2)).shape == (2, 5)
    with pytest.raises(DeploymentError, match=r"baked\.onnx fails on images of shape \(3, 3, 2, 2\)") as error:
        runtime(torch.ones(3, 3, 2, 2))
    assert "\n" not in str(error.value)


def test_providers_are_chosen_and_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Runtime(path).providers == ("CPUExecutionProvider",)
    assert Runtime(path).candidate("linear").runtime == "ONNX Runtime"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider", "CPUExecutionProvider"])
    assert Runtime(path, provider="auto").providers == ("CPUExecutionProvider",)
    with pytest.raises(DeploymentError, match=r"no CUDAExecutionProvider: .* use one that it has \('cpu', 'openvino'\)"):
        Runtime(path, provider="cuda")
    with pytest.raises(UsageError, match="The provider is 'tpu': use 'auto', 'cpu', 'cuda', 'tensorrt', 'openvino'"):
        Runtime(path, provider="tpu")  # type: ignore[arg-type]


def test_a_provider_that_does_not_start_is_an_error_unless_it_was_a_wish(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = onnxruntime.InferenceSession

    def without_gpu(*arguments: object, providers: list[object], **settings: object) -> object:
        return session(*arguments, providers=["CPUExecutionProvider"], **settings)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_gpu)
    assert Runtime(path, provider="auto").providers == ("CPUExecutionProvider",)
    with pytest.raises(DeploymentError, match=r"did not start and left .* to CPUExecutionProvider"):
        Runtime(path, provider="cuda")


def test_the_session_gets_its_settings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[onnxruntime.SessionOptions] = []
    session = onnxruntime.InferenceSession

    def noting(file: object, options: onnxruntime.SessionOptions, **settings: object) -> object:
        seen.append(options)
        return session(file, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noting)
    Runtime(path, threads=2)
    Runtime(path, optimize=False)
    assert [options.intra_op_num_threads for options in seen] == [2, 1]
    assert [options.inter_op_num_threads for options in seen] == [1, 1]
    assert {options.get_session_config_entry("session.intra_op.allow_spinning") for options in seen} == {"0"}
    levels = onnxruntime.GraphOptimizationLevel
    assert [options.graph_optimization_level for options in seen] == [levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL]


def test_warm_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    call = Runtime.__call__

    def counted(self: Runtime, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return call(self, images)

    monkeypatch.setattr(Runtime, "__call__", counted)
    runtime = Runtime(path)
    runtime.warm_up()
    runtime.warm_up(torch.ones(4, 3, 2, 2), runs=1)
    runtime.warm_up(7, runs=2)
    assert shapes == [(1, 3, 2, 2)] * 3 + [(4, 3, 2, 2)] + [(7, 3, 2, 2)] * 2
    for arguments, words in (((1, 0), "runs is 0"), ((0, 1), "a batch of 0")):
        with pytest.raises(UsageError, match=words):
            runtime.warm_up(arguments[0], runs=arguments[1])
