"""Schedules against closed forms and torch's own, and arguments that cannot work."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.training import Recipe, build_optimizer


def rates(recipe: Recipe, total: int) -> list[float]:
    return [recipe.learning_rate_at(step, total) for step in range(total)]


def test_constant_and_step_schedules() -> None:
    assert set(rates(Recipe(epochs=1, learning_rate=0.3, schedule="constant"), 20)) == {0.3}
    stepped = rates(Recipe(epochs=1, learning_rate=1.0, schedule="step"), 20)
    assert stepped == [1.0] * 10 + [0.1] * 5 + [0.01] * 5


def test_cosine_equals_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37)
    expected = []
    for _ in range(37):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(Recipe(epochs=1, learning_rate=0.4, schedule="cosine"), 37) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_rises_to_its_peak_and_falls_to_almost_zero() -> None:
    cycle = rates(Recipe(epochs=1, learning_rate=0.2, warmup=0.25), 100)
    peak = cycle.index(max(cycle))
    assert peak == 25
    assert max(cycle) == 0.2
    assert cycle[: peak + 1] == sorted(set(cycle[: peak + 1]))
    assert cycle[peak:] == sorted(set(cycle[peak:]), reverse=True)
    assert 0 < cycle[-1] < 0.001 * 0.2
    assert cycle[62] == pytest.approx(0.1 * (1 + math.cos(math.pi * 37 / 75)))


def test_decay_touches_weights_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, Recipe(epochs=1, learning_rate=0.1, weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.5, "2.bias": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(("change", "word"), [
    ({"epochs": 0}, "epochs is 0"), ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ({"learning_rate": math.nan}, "learning_rate"),
    ({"optimizer": "adam"}, "sgd or adamw"), ({"momentum": 1.0}, "momentum is 1.0"), ({"weight_decay": -1.0}, "weight_decay"),
    ({"schedule": "linear"}, "one-cycle"), ({"warmup": 1.0}, "warmup"), ({"label_smoothing": 1.0}, "label_smoothing"),
    ({"clip_norm": 0.0}, "clip_norm"), ({"accumulate": 0}, "accumulate"), ({"ema_decay": 1.0}, "ema_decay"),
    ({"precision": "fp8"}, "precision is 'fp8'"), ({"compile": "faster"}, "compile is 'faster'"),
])  # fmt: skip
def test_values_out_of_range_are_one_sentence(change: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word) as error:
        Recipe(**{"epochs": 1, "learning_rate": 0.1, **change})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_no_warning_of_torch_is_caused() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build_optimizer(nn.Linear(2, 2), Recipe(epochs=1, learning_rate=0.1, momentum=0.0))
        build_optimizer(nn.Linear(2, 2), Recipe(epochs=1, learning_rate=0.1, optimizer="adamw"))
    assert [str(warning.message) for warning in said] == []
