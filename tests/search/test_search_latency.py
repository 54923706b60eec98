"""A network is timed once, as the file that it would be exported to; shared weights are scored once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_space import CountingTimer, loader

from cookbook.deploy import Runtime, export
from cookbook.errors import UsageError
from cookbook.measure import Timing, interleave
from cookbook.pruning import reestimate_batchnorm
from cookbook.search import Candidate, RelativeLatency, Score, SearchSpace, SharedWeights, SuperNet, search
from cookbook.search.latency import cut_constants
from cookbook.training import evaluate

EXAMPLE = torch.zeros(1, 1, 8, 8)
SHALLOW = SearchSpace(depths=(8,), widths=((4, 8), (6, 12), (8, 16)), pruning=(0.0, 0.5), classes=2, multiple=2)


@pytest.fixture(scope="module")
def latency() -> RelativeLatency:
    return RelativeLatency(SHALLOW, EXAMPLE, rounds=3, timer=CountingTimer())


def test_a_cut_graph_is_the_exported_subnet(latency: RelativeLatency, tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = SuperNet(SHALLOW)
    for module in supernet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias), torch.nn.init.uniform_(module.running_var, 0.5, 2)
    wide = onnx.load(export(supernet.network, EXAMPLE, tmp_path / "wide.onnx"))
    images = torch.randn(3, 1, 8, 8)
    for candidate in (SHALLOW.smallest, SHALLOW.draw(torch.Generator().manual_seed(3))):
        alone = supernet.subnet(candidate)
        cut = onnx.ModelProto()
        cut.CopyFrom(wide)
        cut_constants(cut, {name: tuple(value.shape) for name, value in alone.named_parameters()})
        onnx.save(cut, tmp_path / "cut.onnx")
        with torch.no_grad():
            assert torch.allclose(Runtime(tmp_path / "cut.onnx")(images), alone(images), atol=1e-4)


def test_the_timed_file_has_the_shapes_of_the_candidate(latency: RelativeLatency, tmp_path: Path) -> None:
    graph = onnx.load(latency.write(SHALLOW.smallest, tmp_path / "small.onnx")).graph
    found = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in graph.initializer}
    wanted = {name: tuple(value.shape) for name, value in SHALLOW.smallest.build().named_parameters() if value.ndim > 1}
    assert {name: found[name] for name in wanted} == wanted
    assert all(len(node.input) == 3 for node in graph.node if node.op_type == "Conv")  # with the folded shift


def test_a_network_is_timed_once_whatever_its_narrow_weights(latency: RelativeLatency) -> None:
    timer = CountingTimer(0.25)
    latency.timer = timer
    assert [latency(SHALLOW.smallest) for _ in range(3)] == [0.25] * 3
    assert (timer.calls, list(latency.known)) == (1, [SHALLOW.smallest])
    latency(SHALLOW.largest)
    assert timer.calls == 2
    narrow = [replace(SHALLOW.smallest, weight_bits=bits) for bits in (8, 4)]
    latency.known[narrow[0]] = latency.known[SHALLOW.largest]
    assert latency(narrow[1]) == latency(narrow[0]) and timer.calls == 2  # 4 bits run in the kernels of 8


def test_a_disturbed_timing_is_repeated_and_the_steadiest_counts(latency: RelativeLatency) -> None:
    candidates = iter([(0.1, 0.5, 2.0), (0.5, 0.5, 0.5), (9.0, 9.0, 9.0)])
    latency.known.clear()
    latency.timer = lambda calls, **settings: {
        "reference": Timing((1.0,) * 3, 1, 1), "candidate": Timing(next(candidates), 1, 1)
    }  # fmt: skip
    assert latency(SHALLOW.smallest) == 0.5 and next(candidates) == (9.0, 9.0, 9.0)
    restless = [(0.1, 0.5, 2.0), (0.3, 0.4, 0.5), (0.1, 0.5, 3.0), (9.0, 9.0, 9.0)]
    candidates = iter(restless)
    assert latency(SHALLOW.largest) == pytest.approx(0.4) and next(candidates) == restless[-1]


def test_the_clock_measures_in_onnx_runtime(latency: RelativeLatency) -> None:
    latency.timer = interleave
    drawn = SHALLOW.draw(torch.Generator().manual_seed(4))
    latency.known.pop(drawn, None)
    assert 0 < latency(drawn) < float("inf")
    assert latency.known[drawn].low <= latency.known[drawn].value <= latency.known[drawn].high


def test_shared_weights_score_a_candidate_once_on_validation() -> None:
    supernet, train, validation = SuperNet(SHALLOW), loader(), loader("validation")
    asked: list[Candidate] = []

    def clock(candidate: Candidate) -> float:
        asked.append(candidate)
        return 0.5

    scored = SharedWeights(supernet, clock, train, validation, batches=2)
    found = scored(SHALLOW.smallest)
    alone = supernet.subnet(SHALLOW.smallest)
    reestimate_batchnorm(alone, train, batches=2)
    assert found == Score(evaluate(alone, validation).accuracy, 0.5) and asked == [SHALLOW.smallest]
    result = search(SHALLOW, scored, trials=3, sampler="random")
    assert result.evaluations == 3 <= len(scored.known) <= 4
    scored.supernet = None  # type: ignore[assignment]
    assert scored(SHALLOW.smallest) == found  # remembered


def test_another_supernet_is_another_objective() -> None:
    scored = [SharedWeights(SuperNet(SHALLOW), lambda candidate: 0.5, loader(), loader("validation")) for _ in range(2)]
    first, second = (evaluation.describe() for evaluation in scored)
    assert first != second and first == scored[0].describe()


def test_impossible_settings_are_refused(latency: RelativeLatency) -> None:
    for wrong in ({"threads": 0}, {"batch": 0}, {"rounds": 2}):
        with pytest.raises(UsageError, match="or more"):
            RelativeLatency(SHALLOW, EXAMPLE, **wrong)
    with pytest.raises(UsageError, match="quantized networks"):
        RelativeLatency(replace(SHALLOW, weight_bits=(8, 32)), EXAMPLE)
    with pytest.raises(UsageError, match="is no part"):
        latency(SHALLOW.uniform(8, 16))
    for train, validation in ((loader("validation"), loader("validation")), (loader(), loader("test"))):
        with pytest.raises(UsageError, match="must not be used"):
            SharedWeights(SuperNet(SHALLOW), latency, train, validation)
    with pytest.raises(UsageError, match="1 or more"):
        SharedWeights(SuperNet(SHALLOW), latency, loader(), loader("validation"), batches=0)
