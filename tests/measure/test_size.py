import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import bytes_on_disk


def write(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def external(name: str, location: str, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[length], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_files_and_folders_are_summed(tmp_path):
    one = write(tmp_path / "one.bin", 100)
    write(tmp_path / "folder" / "two.bin", 20)
    write(tmp_path / "folder" / "deeper" / "three.bin", 3)
    assert bytes_on_disk(one) == 100
    assert bytes_on_disk(one, str(tmp_path / "folder")) == 123
    (tmp_path / "empty").mkdir()
    assert bytes_on_disk(tmp_path / "empty") == 0


def test_a_file_that_is_named_twice_is_counted_once(tmp_path, monkeypatch):
    one = write(tmp_path / "folder" / "one.bin", 100)
    (tmp_path / "link.bin").symlink_to(one)
    monkeypatch.chdir(tmp_path)
    assert bytes_on_disk(one, "folder/one.bin", "link.bin", "folder") == 100


def test_side_files_saved_by_onnx_are_counted(tmp_path):
    weights = numpy_helper.from_array(np.zeros((100, 100), np.float32), "weights")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 100])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 100])
    node = helper.make_node("MatMul", ["images", "weights"], ["logits"])
    graph = helper.make_graph([node], "graph", [images], [logits], [weights])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert path.stat().st_size < 1000
    assert bytes_on_disk(path) == path.stat().st_size + 40_000 == bytes_on_disk(tmp_path) == bytes_on_disk(path, tmp_path)


def test_side_files_of_constants_branches_and_functions_are_counted(tmp_path):
    def constant(location):
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.append(helper.make_attribute("value", external("c", location, 1)))
        return node

    branch = helper.make_graph([constant("branch.data")], "branch", [], [])
    condition = helper.make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([constant("sub/constant.data"), condition], "graph", [], [])
    opset = helper.make_opsetid("", 20)
    function = helper.make_function("own", "function", [], ["c"], [constant("function.data")], [opset])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function], opset_imports=[opset]).SerializeToString())
    for name, size in (("branch.data", 1), ("sub/constant.data", 20), ("function.data", 300)):
        write(tmp_path / name, size)
    assert bytes_on_disk(path) == path.stat().st_size + 321


def test_a_missing_side_file_is_named(tmp_path):
    graph = helper.make_graph([], "graph", [], [], [external("w", "weights.data", 1)])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(DeploymentError, match=r"weights\.data, which is missing"):
        bytes_on_disk(tmp_path)


def test_what_cannot_be_weighed_is_refused(tmp_path):
    with pytest.raises(DeploymentError, match=r"absent\.bin does not exist"):
        bytes_on_disk(tmp_path / "absent.bin")
    valid = helper.make_model(helper.make_graph([], "graph", [], [])).SerializeToString()
    torn = tmp_path / "torn.onnx"
    for content in (b"", b"x" * 100, b"PK and so on", valid[:-1]):  # the first two parse, as a model without any field
        torn.write_bytes(content)
        with pytest.raises(DeploymentError, match=r"torn\.onnx is not a readable ONNX model"):
            bytes_on_disk(torn)
    with pytest.raises(UsageError, match="nothing to weigh"):
        bytes_on_disk()
