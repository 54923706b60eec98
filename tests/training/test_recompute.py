"""Computing activations twice changes nothing but what is kept in between."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import small_loader, small_model
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, build
from cookbook.training import Recipe, checkpoint_activations, fit


def blocks() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(1 if i == 0 else 3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3))
             for i in range(3)]  # fmt: skip
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(192, 2))


def kept_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """Return the bytes that autograd keeps between forward and backward, weights not counted."""
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images).sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_the_same_bit_for_bit(precision: str) -> None:
    """Dropout draws the same masks, and BatchNorm counts each batch once; momentum None averages over the count."""
    recipe = Recipe(epochs=2, learning_rate=0.05, precision=precision, ema_decay=0.9)  # type: ignore[arg-type]
    plain, sparing = blocks(), blocks()
    for model in (plain, sparing):
        model[1][1].momentum = None
    assert checkpoint_activations(sparing, sparing[:3]) is sparing
    fit(plain, small_loader(), recipe, progress=False)
    fit(sparing, small_loader(), recipe, progress=False)
    for (name, value), (other, expected) in zip(sparing.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, expected), name


def test_less_is_kept_and_a_copy_keeps_the_behaviour() -> None:
    images = torch.randn(16, 1, 8, 8)
    plain = blocks()
    sparing = copy.deepcopy(plain)
    checkpoint_activations(sparing, sparing[:3])
    assert kept_bytes(copy.deepcopy(sparing), images) < 0.5 * kept_bytes(plain, images)
    assert isinstance(sparing[0], nn.Sequential) and repr(sparing) == repr(plain)


def test_without_gradients_nothing_is_repeated() -> None:
    calls = []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(x)

    model = nn.Sequential(Counted(4, 4), nn.Linear(4, 1))
    checkpoint_activations(model, [model[0]])
    checkpoint_activations(model, [model[0]])  # a second time changes nothing
    with torch.inference_mode():
        model(torch.ones(2, 4))
    assert len(calls) == 1
    model(torch.ones(2, 4)).sum().backward()
    assert len(calls) == 3


def test_the_compiled_model_computes_the_same() -> None:
    torch.compiler.reset()
    plain = build(ResNetConfig(depth=8, width=4, classes=2))
    sparing = copy.deepcopy(plain)
    checkpoint_activations(sparing, sparing.blocks)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4) % 2
    F.cross_entropy(plain(images), labels).backward()
    F.cross_entropy(torch.compile(sparing, backend="aot_eager", fullgraph=True)(images), labels).backward()
    for one, other in zip(plain.parameters(), sparing.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for value, expected in zip(sparing.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected)


def test_what_cannot_be_checkpointed_is_one_sentence() -> None:
    model = small_model()
    with pytest.raises(UsageError, match="nothing to checkpoint"):
        checkpoint_activations(model, [])
    with pytest.raises(UsageError, match="Linear is not a part of the model"):
        checkpoint_activations(model, [nn.Linear(1, 1)])
    nested = nn.Sequential(model)
    with pytest.raises(UsageError, match="inside another of the modules"):
        checkpoint_activations(nested, [model, model[0]])
    assert type(model[0]) is nn.Conv2d, "a refusal leaves the model as it was"
