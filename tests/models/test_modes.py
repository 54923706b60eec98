from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cookbook.measure import Candidate
from cookbook.models import eval_mode
from cookbook.models.modes import is_captured, simulates, to_eval


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def captured(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a graph in training mode, whose own `eval()` raises."""
    batch = ({0: torch.export.Dim.DYNAMIC},)
    graph = torch.export.export(model.train(), (images,), dynamic_shapes=batch).module(check_guards=False)
    with pytest.raises(NotImplementedError):
        graph.eval()
    return graph


def test_submodules_come_back_in_their_own_modes(model: nn.Module) -> None:
    model.train()
    model[1].eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert model.training and model[2].training and not model[1].training


def test_a_captured_graph_is_in_eval_mode_inside_the_block_and_training_after_it(model: nn.Module, images: Tensor) -> None:
    graph = captured(model, images)
    with eval_mode(graph), eval_mode(model), torch.no_grad():
        assert torch.allclose(graph(images), model(images))
        before = dict(graph.named_buffers())["1.running_mean"].clone()
        graph(images + 1)
        assert torch.equal(dict(graph.named_buffers())["1.running_mean"], before)
    with torch.no_grad():
        assert not torch.equal(graph(images), graph(images))  # dropout draws again
    assert not torch.equal(dict(graph.named_buffers())["1.running_mean"], before)


def test_a_captured_graph_inside_a_module_is_switched_too(model: nn.Module, images: Tensor) -> None:
    outer = nn.Sequential(captured(model, images), nn.Dropout(0.5))
    to_eval(outer)
    with torch.no_grad():
        assert torch.equal(outer(images), outer(images)) and not outer[1].training


def test_what_torch_export_makes_can_be_measured(model: nn.Module, images: Tensor) -> None:
    graph = captured(model, images)
    candidate = Candidate.from_torch("captured", graph, images)
    model.eval()
    assert torch.allclose(candidate.predict(images), model(images)) and candidate.runtime == "torch eager"
    graph.meta["simulates"] = "int8"
    assert Candidate.from_torch("quantized", graph, images).runtime == "torch eager, simulated int8"


def test_only_graphs_of_operators_count_as_captured(model: nn.Module, images: Tensor) -> None:
    assert is_captured(captured(model, images))
    assert not is_captured(model) and not is_captured(torch.fx.symbolic_trace(model))
    assert simulates(model) is None
