"""`fit` against loops written by hand with torch's own parts, bit for bit, in every precision of a CPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import small_loader, small_model, small_split
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cookbook.data import ResidentLoader
from cookbook.errors import DataError
from cookbook.training import Recipe, build_optimizer, evaluate, fit

FULL = Recipe(epochs=2, learning_rate=0.05, accumulate=2, clip_norm=0.5, ema_decay=0.8, label_smoothing=0.1, seed=4)


pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def plain_loop(model: nn.Module, recipe: Recipe, after: Callable[[bool, float], None] = lambda taken, scale: None) -> nn.Module:
    """Train as torch's documentation shows, with the schedule advanced by the steps that were taken."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    torch.manual_seed(recipe.seed)
    optimizer = build_optimizer(model, recipe)
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.precision == "fp16")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay or 0.5), use_buffers=True)
    model.train()
    taken = 0
    for epoch in range(recipe.epochs):
        batches = list(small_loader().batches(epoch))
        for step in range(0, len(batches), recipe.accumulate):
            for images, labels in batches[step : step + recipe.accumulate]:
                with torch.amp.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
                    loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
                scaler.scale(loss / recipe.accumulate).backward()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(taken, recipe.epochs * len(batches) // recipe.accumulate)
            scaler.unscale_(optimizer)
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            taken += scaler.get_scale() >= scale
            after(scaler.get_scale() >= scale, scaler.get_scale())
            average.update_parameters(model)
    return average.module if recipe.ema_decay else model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("recipe", [Recipe(epochs=2, learning_rate=0.05), FULL], ids=["plain", "full"])
def test_fit_equals_torch_written_by_hand(recipe: Recipe, precision: str) -> None:
    """With clipping, accumulation, averaging, dropout and BatchNorm."""
    recipe = replace(recipe, precision=precision)  # type: ignore[arg-type]
    fitted = small_model()
    fit(fitted, small_loader(), recipe, progress=False)
    assert_same(fitted, plain_loop(small_model(), recipe))


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def overflowing(calls: set[int]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Return an objective whose gradient overflows in the given calls, counted from 0."""
    count = iter(range(10**6))

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        return Overflow.apply(loss) if next(count) in calls else loss

    return objective


@pytest.mark.parametrize("device", [
    "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
])  # fmt: skip
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_changes_no_weight_and_does_not_advance_the_schedule(fused: bool, device: str) -> None:
    """Six steps an epoch. Skipped: the first, one inside, and the last of the first epoch."""
    recipe = Recipe(epochs=2, learning_rate=0.1, schedule="cosine", precision="fp16", fused=fused)
    seen: list[tuple[Tensor, float]] = []
    objective, model = overflowing({0, 2, 5}), small_model().to(device)
    loader = ResidentLoader(small_split(), 8, device=device)
    optimizers: list[torch.optim.Optimizer] = []
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.SGD.step

        def watched(self: torch.optim.SGD, *args: object) -> object:
            optimizers.append(self)
            return step(self, *args)

        patch.setattr(torch.optim.SGD, "step", watched)

        def recording(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            rate = optimizers[-1].param_groups[0]["lr"] if optimizers else 0.0
            seen.append((module.get_parameter("0.weight").detach().clone(), rate))
            return objective(module, images, labels)

        history = fit(model, loader, recipe, objective=recording, progress=False)
    weights = [*(weight for weight, _ in seen), model.get_parameter("0.weight").detach()]
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(weights)]
    assert moved == [call not in {0, 2, 5} for call in range(12)]
    taken = [sum(moved[:call]) for call in range(12)]
    assert history[1].learning_rate == recipe.learning_rate_at(taken[11], 12)
    assert history[0].learning_rate == recipe.learning_rate_at(taken[5], 12)
    assert [record.skipped_steps for record in history] == [3, 0]
    assert history[0].loss_scales == ((0, 65536.0), (1, 32768.0), (3, 16384.0), (6, 8192.0))
    assert history[1].loss_scales == ((0, 8192.0),)


def test_the_history_of_the_scale_is_that_of_a_loop_by_hand() -> None:
    """A loss in the hundreds overflows float16 for real; the scale falls until it does not."""
    recipe = Recipe(epochs=2, learning_rate=1e-4, precision="fp16", weight_decay=0.0)
    told: list[tuple[bool, float]] = []

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return 300 * F.cross_entropy(model(images), labels)

    history = fit(small_model(), small_loader(), recipe, objective=objective, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        plain = F.cross_entropy
        patch.setattr(F, "cross_entropy", lambda *args, **words: 300 * plain(*args, **words))
        plain_loop(small_model(), recipe, lambda taken, scale: told.append((taken, scale)))
    assert sum(record.skipped_steps for record in history) == sum(not taken for taken, _ in told) > 1
    changes = [(step + 1, scale) for step, (taken, scale) in enumerate(told[:6]) if not taken]
    assert history[0].loss_scales == ((0, 65536.0), *changes)


def test_fp32_and_bf16_have_no_scale() -> None:
    for precision in ("fp32", "bf16"):
        record = fit(small_model(), small_loader(), Recipe(epochs=1, learning_rate=0.1, precision=precision), progress=False)[0]  # type: ignore[arg-type]
        assert record.loss_scales == () and record.skipped_steps == 0


def test_evaluation_after_16_bit_training_is_float32_without_gradients() -> None:
    seen: list[tuple[torch.dtype, bool, bool, bool]] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.append((out.dtype, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), self.training))
            return out

    model = nn.Sequential(nn.Flatten(), Watched(64, 2))
    validation = ResidentLoader(small_split(16, "validation", seed=8), 16)
    fit(model, small_loader(), Recipe(epochs=1, learning_rate=0.1, precision="bf16"), validation=validation, progress=False)
    assert set(seen[:-1]) == {(torch.bfloat16, False, True, True)}
    assert seen[-1] == (torch.float32, True, False, False)
    evaluate(model, validation)
    assert seen[-1] == (torch.float32, True, False, False)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_optimizer_computes_the_same(optimizer: str) -> None:
    recipe = Recipe(epochs=2, learning_rate=0.01, optimizer=optimizer)  # type: ignore[arg-type]
    one, other = small_model(), small_model()
    for model in (one, other):
        model[0].bias.requires_grad_(False)  # before BatchNorm its gradient is nothing but rounding
    fit(one, small_loader(), recipe, progress=False)
    fit(other, small_loader(), replace(recipe, fused=True), progress=False)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert build_optimizer(one, replace(recipe, fused=True)).defaults["fused"] is True
    assert build_optimizer(one, recipe).defaults["fused"] is None


def test_a_loader_that_ends_early_is_one_sentence() -> None:
    class Short(ResidentLoader):
        def batches(self, epoch: int, first: int = 0):
            return iter(list(super().batches(epoch, first))[:-1])

    with pytest.raises(DataError, match="ended in epoch 1 before its 6 batches"):
        fit(small_model(), Short(small_split(), 8), Recipe(epochs=1, learning_rate=0.1), progress=False)
