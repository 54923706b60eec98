"""Evaluation counts every image once and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import small_model, small_split

from cookbook.data import ResidentLoader
from cookbook.errors import DataError
from cookbook.training import evaluate


@pytest.mark.parametrize("batch_size", [1, 7, 48, 100])
def test_the_result_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    split = small_split(48, "validation")
    model = small_model()
    result = evaluate(model, ResidentLoader(split, batch_size))
    model.eval()
    with torch.no_grad():
        logits = model.double()(split.normalized().double())
    assert torch.equal(result.predictions, logits.argmax(1))
    assert torch.equal(result.labels, split.labels)
    assert result.loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert result.hits == int((logits.argmax(1) == split.labels).sum())
    assert result.accuracy == result.hits / 48


def test_modes_and_statistics_are_left_as_they_were() -> None:
    model = small_model().train()
    model[1].eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    evaluate(model, ResidentLoader(small_split(16, "validation"), 8))
    assert model.training and not model[1].training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_failing_model_leaves_its_mode() -> None:
    model = small_model().train()
    model[5].forward = lambda x: (_ for _ in ()).throw(RuntimeError("planted"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="planted"):
        evaluate(model, ResidentLoader(small_split(16, "validation"), 8))
    assert model.training


def test_nothing_to_evaluate_is_an_error() -> None:
    class Empty(ResidentLoader):
        def batches(self, epoch: int, first: int = 0):
            return iter(())

    with pytest.raises(DataError, match="no images"):
        evaluate(small_model(), Empty(small_split(16, "validation"), 8))
