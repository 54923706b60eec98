"""Scores of movement: the sum that the paper writes down, kept by the optimizer, and what they remove."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import loader, make
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import PerceptronConfig, ResNetConfig
from cookbook.pruning import CubicSchedule, GradualMasking, attach_masks, make_permanent, mask_weights
from cookbook.training import Recipe, fit

RESNET = ResNetConfig(depth=8, width=4, classes=2)
RECIPE = Recipe(epochs=2, learning_rate=0.3, momentum=0.0, schedule="constant", weight_decay=0.1)  # three batches an epoch


def linear() -> nn.Module:
    """Return softmax regression on 8×8 images of two classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def by_hand(model: nn.Module, schedule: CubicSchedule | None) -> tuple[Tensor, Tensor, Tensor]:
    """Train the softmax regression in float64 by its closed-form gradients; return weights, scores and what is removed."""
    layer = model[1]  # type: ignore[index]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    scores, removed, step = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.bool), 0
    for epoch in range(RECIPE.epochs):
        for images, labels in loader().batches(epoch):
            if schedule is not None and schedule.is_due(step):
                count = round(schedule.sparsity_at(step) * weight.numel())
                order = scores.masked_fill(removed, -float("inf")).flatten().argsort()
                removed.view(-1)[order[:count]] = True
            x = images.double().flatten(1)
            error = ((x @ (weight * ~removed).T + bias).softmax(1) - F.one_hot(labels, 2)) / len(labels)
            gradient = error.T @ x
            scores -= RECIPE.learning_rate * gradient * weight
            weight = weight - RECIPE.learning_rate * (gradient * ~removed + RECIPE.weight_decay * weight)
            bias = bias - RECIPE.learning_rate * error.sum(0)
            step += 1
    return weight * ~removed, scores, removed


def scores_of(model: nn.Module) -> Tensor:
    mask = model[1].parametrizations.weight[0]  # type: ignore[index]
    return mask.scores.detach().view(2, 64).double()


@pytest.mark.parametrize("schedule", [None, CubicSchedule(final=0.5, begin=2, end=4)])
def test_scores_and_masks_are_those_of_a_loop_by_hand_in_float64(schedule: CubicSchedule | None) -> None:
    model = linear()
    weight, scores, removed = by_hand(model, schedule)
    masked = attach_masks(model, movement=True)
    fit(masked, loader(), RECIPE, objective=None if schedule is None else GradualMasking(schedule, criterion="movement"))
    torch.testing.assert_close(scores_of(masked), scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(masked[1].weight.double(), weight, rtol=1e-4, atol=1e-6)  # type: ignore[index]
    assert torch.equal(masked[1].weight == 0, removed)  # type: ignore[index]
    if schedule is None:
        pruned = mask_weights(masked, sparsity=0.25, criterion="movement")
        lowest = scores.flatten().sort().values[31]
        assert torch.equal(pruned[1].weight == 0, scores <= lowest)  # type: ignore[index]
        assert not torch.equal(pruned[1].weight == 0, mask_weights(masked, sparsity=0.25)[1].weight == 0)  # type: ignore[index]


def test_the_gradient_of_a_score_is_the_slope_of_the_loss_along_its_weight_removed_or_not() -> None:
    model = make(PerceptronConfig(height=8, width=8, hidden=(3,), classes=2)).double()
    images, labels = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    masked = attach_masks(model, movement=True)
    mask = masked.head.parametrizations.weight[0]
    mask.removed[0, 1] = 1
    F.cross_entropy(masked(images), labels).backward()
    plain, weight = make_permanent(masked), model.head.weight.detach()
    for row, column in ((0, 0), (0, 1), (1, 2)):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                plain.head.weight.copy_(masked.head.weight)
                plain.head.weight[row, column] += sign * 1e-6 * weight[row, column]
            losses.append(F.cross_entropy(plain(images), labels).item())
        assert mask.scores.grad.view(2, 3)[row, column] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5)


def test_what_is_removed_stays_so_however_low_other_scores_fall() -> None:
    masked = attach_masks(linear(), movement=True)
    masked[1].parametrizations.weight[0].scores.data = torch.linspace(-9, 9, 128)
    first = mask_weights(masked, sparsity=0.25, criterion="movement")
    first[1].parametrizations.weight[0].scores.data.neg_()
    second = mask_weights(first, sparsity=0.5, criterion="movement")
    assert (second[1].weight == 0).flatten().nonzero().flatten().tolist() == [*range(32), *range(96, 128)]
    with pytest.raises(UsageError, match="removed already, more than a sparsity of 0"):
        mask_weights(second, sparsity=0.25, criterion="movement")


def test_scores_change_nothing_that_is_computed_and_leave_with_the_masks() -> None:
    model, images = make(RESNET), torch.randn(4, 1, 8, 8)
    plain, moved = attach_masks(model), attach_masks(model, movement=True)
    assert torch.equal(moved(images), plain(images))
    objective = GradualMasking(CubicSchedule(final=0.6, begin=1, end=2), criterion="movement", scope="global")
    fit(moved, loader(), Recipe(epochs=1, learning_rate=0.1, ema_decay=0.5), objective=objective)
    assert make_permanent(moved).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("model", "words"),
    [(make(RESNET), "needs scores: train a model from attach_masks"), (attach_masks(make(RESNET)), "needs scores: train"),
     (attach_masks(make(RESNET), movement=True), "needs weights that have moved: take training steps")],
)  # fmt: skip
def test_without_scores_that_have_moved_nothing_is_removed(model: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mask_weights(model, sparsity=0.5, criterion="movement")


def test_a_schedule_takes_two_criteria() -> None:
    with pytest.raises(UsageError, match="criterion is 'taylor': use magnitude or movement"):
        GradualMasking(CubicSchedule(final=0.5, end=9), criterion="taylor")  # type: ignore[arg-type]
