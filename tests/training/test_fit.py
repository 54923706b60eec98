"""The loop does what a hand-written loop does, and stops where it must."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import small_loader, small_model, small_split
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.errors import NonFiniteLossError, UsageError
from cookbook.training import Recipe, build_optimizer, evaluate, fit


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_equals_a_bare_loop_bit_for_bit(optimizer: str) -> None:
    recipe = Recipe(epochs=2, learning_rate=0.05, optimizer=optimizer, schedule="constant", seed=4)  # type: ignore[arg-type]
    fitted, bare = small_model(), small_model()
    fit(fitted, small_loader(), recipe, progress=False)

    torch.manual_seed(4)
    if optimizer == "sgd":
        by_hand: torch.optim.Optimizer = torch.optim.SGD(
            [{"params": [p for p in bare.parameters() if p.ndim > 1]},
             {"params": [p for p in bare.parameters() if p.ndim == 1], "weight_decay": 0.0}],
            lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True,
        )  # fmt: skip
    else:
        by_hand = build_optimizer(bare, recipe)
    bare.train()
    for epoch in range(2):
        for images, labels in small_loader().batches(epoch):
            F.cross_entropy(bare(images), labels).backward()
            by_hand.step()
            by_hand.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(weights(fitted), weights(bare), strict=True))


def test_two_runs_of_one_seed_are_identical_and_of_two_seeds_are_not() -> None:
    results = []
    for seed in (1, 1, 2):
        model = small_model()
        fit(model, small_loader(), Recipe(epochs=1, learning_rate=0.05, seed=seed), progress=False)
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_accumulated_batches_have_the_gradient_of_one_large_batch() -> None:
    """In float64 and without BatchNorm, dropout and augmentation, two batches of 8 are one of 16."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()

    class Doubled(ResidentLoader):
        def batches(self, epoch: int, first: int = 0):
            return ((images.double(), labels) for images, labels in super().batches(epoch, first))

    small, large = model(), model()
    recipe = Recipe(epochs=2, learning_rate=0.05, accumulate=2)
    fit(small, Doubled(small_split(), 8, seed=3), recipe, progress=False)
    fit(large, Doubled(small_split(), 16, seed=3), Recipe(epochs=2, learning_rate=0.05), progress=False)
    for a, b in zip(weights(small), weights(large), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_an_incomplete_last_group_weighs_each_batch_alike() -> None:
    """Five batches by three: the second step holds two batches, and divides by two."""
    parts: list[float] = []

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = model(images).square().mean()
        parts.append(loss.item())
        return loss

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    recipe = Recipe(epochs=1, learning_rate=1e-9, accumulate=3, weight_decay=0.0)
    history = fit(model, ResidentLoader(small_split(40), 8), recipe, objective=objective, progress=False)
    assert history[0].train_loss == pytest.approx((sum(parts[:3]) / 3 + sum(parts[3:]) / 2) / 2, rel=1e-5)


def test_clipping_bounds_the_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    recipe = Recipe(epochs=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=0.01)
    fit(model, ResidentLoader(small_split(8), 8), recipe, progress=False)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_ema_equals_its_closed_form() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.1, schedule="constant", ema_decay=0.7, momentum=0.0)
    model = small_model()
    trajectory: list[Tensor] = []

    def objective(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        trajectory.append(module.get_parameter("5.weight").detach().double().clone())
        return F.cross_entropy(module(images), labels)

    fit(model, small_loader(), recipe, objective=objective, progress=False)
    plain = small_model()
    fit(plain, small_loader(), Recipe(epochs=1, learning_rate=0.1, schedule="constant", momentum=0.0), progress=False)
    steps = [*trajectory[1:], plain.get_parameter("5.weight").detach().double()]
    average = steps[0]
    for value in steps[1:]:
        average = 0.7 * average + 0.3 * value
    torch.testing.assert_close(model.get_parameter("5.weight").detach().double(), average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("bad_call", "place"), [(1, "epoch 1 at step 1"), (8, "epoch 2 at step 2")])
def test_a_non_finite_loss_names_its_step(tmp_path, value: float, bad_call: int, place: str) -> None:
    calls = 0

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(model(images), labels) * (value if calls == bad_call else 1.0)

    state = tmp_path / "run.state"
    recipe = Recipe(epochs=3, learning_rate=0.05)
    with pytest.raises(NonFiniteLossError, match=place):
        fit(small_model(), small_loader(), recipe, objective=objective, checkpoint=state, checkpoint_every=1, progress=False)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in saved["model"].values()), "a broken state was saved"


def test_the_model_learns_and_validation_is_recorded() -> None:
    model = small_model()
    validation = ResidentLoader(small_split(64, "validation", seed=8), 16)
    before = evaluate(model, validation)
    history = fit(model, small_loader(), Recipe(epochs=4, learning_rate=0.05), validation=validation, progress=False)
    assert history[-1].validation_accuracy == evaluate(model, validation).accuracy > max(before.accuracy, 0.9)
    assert history[-1].train_loss < history[0].train_loss
    assert [record.epoch for record in history] == [0, 1, 2, 3]


def test_each_epoch_is_reported_as_it_ends() -> None:
    seen = []
    history = fit(small_model(), small_loader(), Recipe(epochs=2, learning_rate=0.05), on_epoch=seen.append, progress=False)
    assert seen == history


def test_compiling_does_not_change_what_is_learned() -> None:
    """A backend without code generation: what `fit` adds around the compiled model is what is tested."""
    torch.compiler.reset()
    plain, compiled = small_model(), small_model()
    plain[3], compiled[3] = nn.Identity(), nn.Identity()
    recipe = Recipe(epochs=1, learning_rate=0.05)
    fit(plain, small_loader(), recipe, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda model: compile_(model, backend="aot_eager"))
        fit(compiled, small_loader(), Recipe(epochs=1, learning_rate=0.05, compile=True), progress=False)
    for a, b in zip(weights(plain), weights(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_wrong_splits_and_frozen_models_are_refused() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.05)
    test_loader = ResidentLoader(small_split(role="test"), 8, shuffle=True)
    with pytest.raises(UsageError, match="test split must not be used to train"):
        fit(small_model(), test_loader, recipe)
    with pytest.raises(UsageError, match="test split must not be used to choose"):
        fit(small_model(), small_loader(), recipe, validation=test_loader)
    frozen = copy.deepcopy(small_model()).requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter that requires a gradient"):
        fit(frozen, small_loader(), recipe)
    with pytest.raises(UsageError, match="checkpoint_every is 0"):
        fit(small_model(), small_loader(), recipe, checkpoint_every=0)
