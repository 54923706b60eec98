"""The old eager-mode way still works while torch carries it, warns, and each of its calls has a successor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from narrow_models import blob_loader, lively

from cookbook.errors import UsageError
from cookbook.quantization.eager_history import REPLACED, EagerNet, quantize_eagerly
from cookbook.training import Recipe, fit

pytestmark = pytest.mark.skipif(
    "x86" not in torch.backends.quantized.supported_engines, reason="eager mode's x86 kernels are missing here"
)


@pytest.fixture(scope="module")
def model() -> EagerNet:
    torch.manual_seed(0)
    net = lively(EagerNet(classes=3))
    fit(net, blob_loader(96, 24), Recipe(epochs=5, learning_rate=0.1), progress=False)
    return net.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("recipe", [None, Recipe(epochs=1, learning_rate=0.01)], ids=["calibrated", "trained"])
def test_the_old_way_gives_a_traced_integer_module_and_says_that_it_is_deprecated(model: EagerNet, recipe: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="reduce_range will be deprecated"):
        traced, said = quantize_eagerly(model, blob_loader(96, 24), recipe, images=48)
    assert any("torch.ao.quantization is deprecated" in str(warning.message) for warning in said)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    code = str(traced.inlined_graph)
    for kernel in ("quantized::conv2d_relu", "quantized::conv2d", "quantized::add_relu", "quantized::linear"):
        assert kernel in code
    assert "aten::batch_norm" not in code
    images, labels = next(blob_loader(60, 60, role="validation", seed=9).batches(0))
    with torch.no_grad():
        logits = model(images)
        found = traced(images)
    assert bool((found.argmax(1) == labels).double().mean() > 0.95)
    assert (found - logits).abs().max() < 0.1 * logits.abs().max()


def test_the_test_split_is_refused() -> None:
    with pytest.raises(UsageError, match="test split must not be used to calibrate"):
        quantize_eagerly(EagerNet(), blob_loader(role="test"))


def test_every_call_of_the_old_way_has_a_successor() -> None:
    assert all(len(row) == 3 and all(row) for row in REPLACED)
    text = " ".join(row[0] for row in REPLACED)
    for call in ("QuantStub", "fuse_modules", "get_default_qat_qconfig", "convert", "torch.jit.trace"):
        assert call in text
