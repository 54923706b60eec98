"""Masks that grow by a schedule: its closed form, and a training that can be stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_nets import loader, make
from torch import Tensor, nn

from cookbook.errors import CheckpointError, UsageError
from cookbook.models import ResNetConfig
from cookbook.pruning import CubicSchedule, GradualMasking, Slimming, attach_masks, mask_report
from cookbook.training import Recipe, fit

RESNET = ResNetConfig(depth=8, width=4, classes=2)
RECIPE = Recipe(epochs=3, learning_rate=0.1)  # three batches an epoch


def test_the_schedule_is_the_published_polynomial() -> None:
    schedule = CubicSchedule(final=0.9, initial=0.1, begin=10, end=110, every=20)
    assert [schedule.sparsity_at(step) for step in (0, 9)] == [0.0, 0.0]
    for step in (10, 30, 60, 110):
        assert schedule.sparsity_at(step) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (step - 10) / 100) ** 3)
    assert schedule.sparsity_at(10_000) == 0.9
    values = [schedule.sparsity_at(step) for step in range(130)]
    assert values == sorted(values)
    assert [step for step in range(130) if schedule.is_due(step)] == [10, 30, 50, 70, 90, 110]
    assert [step for step in range(20) if CubicSchedule(final=0.5, end=7, every=5).is_due(step)] == [0, 5, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"final": 1.0, "end": 9}, "rises from 0.0 to 1.0"),
        ({"final": 0.2, "initial": 0.2, "end": 9}, "rises from 0.2 to 0.2"),
        ({"final": 0.2, "initial": -0.1, "end": 9}, "rises from -0.1"),
        ({"final": 0.5, "begin": 9, "end": 9}, "grow from step 9 to 9"),
        ({"final": 0.5, "begin": -1, "end": 9}, "grow from step -1"),
        ({"final": 0.5, "end": 9, "every": 0}, "every 0"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CubicSchedule(**arguments)  # type: ignore[arg-type]


class Watching(GradualMasking):
    """Notes the share of zeros that each step computes with."""

    def __init__(self, schedule: CubicSchedule, **arguments: object) -> None:
        super().__init__(schedule, **arguments)  # type: ignore[arg-type]
        self.seen: list[float] = []

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = super().__call__(model, images, labels)
        zeros = [(layer.weight == 0).flatten() for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self.seen.append(torch.cat(zeros).float().mean().item())
        return loss


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_every_step_has_the_zeros_of_its_schedule(scope: str, ema: float | None) -> None:
    model = attach_masks(make(RESNET))
    schedule = CubicSchedule(final=0.8, begin=1, end=7, every=2)
    objective = Watching(schedule, scope=scope)
    fit(model, loader(), Recipe(epochs=3, learning_rate=0.1, ema_decay=ema), objective=objective)
    expected = [schedule.sparsity_at(step) for step in (0, 1, 1, 3, 3, 5, 5, 7, 7)]
    assert objective.seen == pytest.approx(expected, abs=0.01)
    report = mask_report(model)
    assert report.sparsity == pytest.approx(0.8, abs=0.01)
    shares = [zeros / weights for zeros, weights in report.layers.values()]
    assert (max(shares) - min(shares) > 0.1) == (scope == "global")


def test_an_evaluation_is_no_step() -> None:
    model = attach_masks(make(RESNET)).eval()
    objective = GradualMasking(CubicSchedule(final=0.8, end=1))
    for _ in range(3):
        objective(model, torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    assert mask_report(model).zeros == 0
    with pytest.raises(UsageError, match="ResNet has no masks that could grow"):
        objective(make(RESNET), torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))


def test_other_objectives_go_under_it() -> None:
    images, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    model, inner = attach_masks(make(RESNET)), Slimming(0.5)
    objective = GradualMasking(CubicSchedule(final=0.8, begin=5, end=9), objective=inner)
    assert torch.equal(objective(model, images, labels), inner(model, images, labels))


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_a_resumed_training_ends_with_the_same_masks_to_the_bit(criterion: str, tmp_path: Path, one_thread: None) -> None:
    path, half = tmp_path / "run.pt", tmp_path / "half.pt"
    schedule, movement = CubicSchedule(final=0.8, begin=1, end=7), criterion == "movement"

    class Keeping(GradualMasking):
        calls = 0

        def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            if self.calls == 5:
                shutil.copy(path, half)  # as a kill would leave it, in the second epoch
            self.calls += 1
            return super().__call__(model, images, labels)

    whole, resumed = (attach_masks(make(RESNET, seed=seed), movement=movement) for seed in (0, 1))
    keeping = Keeping(schedule, criterion=criterion)  # type: ignore[arg-type]
    fit(whole, loader(), RECIPE, objective=keeping, checkpoint=path, checkpoint_every=1)
    objective = Watching(schedule, criterion=criterion)
    fit(resumed, loader(), RECIPE, objective=objective, checkpoint=half, checkpoint_every=1)
    assert 0 < len(objective.seen) < 9
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(make(RESNET), loader(), RECIPE, checkpoint=path)
    with pytest.raises(CheckpointError, match="belongs to a training with another model"):
        fit(attach_masks(make(RESNET)), loader(), RECIPE, checkpoint=path)
