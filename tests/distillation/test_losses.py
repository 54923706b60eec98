"""The losses against closed forms, brute force in float64 and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cookbook.distillation import (
    attention_transfer,
    decoupled,
    decoupled_parts,
    hint,
    logit_mse,
    relational,
    soft_targets,
)
from cookbook.errors import UsageError

LABELS = torch.tensor([0, 2, 1, 2, 0])


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = draw(5, 3), draw(5, 3, seed=1)
MAPS, OTHER_MAPS = draw(4, 2, 3, 3, seed=2), draw(4, 5, 3, 3, seed=3)
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "soft targets": (soft_targets, STUDENT, TEACHER),
    "soft targets, cold": (lambda s, t: soft_targets(s, t, 0.5), STUDENT, TEACHER),
    "logit mse": (logit_mse, STUDENT, TEACHER),
    "logit mse, centered": (lambda s, t: logit_mse(s, t, centered=True), STUDENT, TEACHER),
    "decoupled": (lambda s, t: decoupled(s, t, LABELS, 2.0), STUDENT, TEACHER),
    "attention": (attention_transfer, MAPS, OTHER_MAPS),
    "hint": (hint, MAPS, draw(4, 2, 3, 3, seed=4)),
    "relational": (relational, draw(5, 4), draw(5, 7, seed=1)),
}


def kl_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Sum p · log(p / q) image by image in plain Python."""
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in logits] for logits in (theirs, ours))
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_targets_are_the_kl_by_hand_times_the_squared_temperature(temperature: float) -> None:
    expected = temperature**2 * kl_by_hand(STUDENT, TEACHER, temperature)
    assert soft_targets(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    student = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, teacher), (student,))
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    direction, step = draw(*student.shape, seed=9, scale=1.0), 1e-5
    ends = [loss(student.detach() + sign * step * direction, teacher).item() for sign in (1, -1)]
    assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_zero_for_the_teachers_own_values_and_positive_elsewhere(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    assert abs(loss(teacher.clone(), teacher).item()) < 1e-12
    assert loss(student, teacher).item() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_sixteen_bits_are_computed_in_32(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    halved = loss(student.bfloat16(), teacher.bfloat16())
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(loss(student.bfloat16().double(), teacher.bfloat16().double()).item(), rel=1e-4)


def test_a_hot_softmax_matches_centered_logits() -> None:
    limit = logit_mse(STUDENT, TEACHER, centered=True).item() / 2
    errors = [abs(soft_targets(STUDENT, TEACHER, temperature).item() / limit - 1) for temperature in (1e2, 1e3, 1e4)]
    assert errors[0] < 2e-2
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)  # the next term falls as 1 / T
    by_hand = sum(
        (s - t) ** 2
        for ours, theirs in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)
        for s, t in zip([v - sum(ours) / 3 for v in ours], [v - sum(theirs) / 3 for v in theirs], strict=True)
    )
    assert limit == pytest.approx(by_hand / (2 * 3) / 5)


def test_the_gradient_has_the_closed_form_of_the_docstring() -> None:
    student, temperature = STUDENT.clone().requires_grad_(), 3.0
    (gradient,) = torch.autograd.grad(soft_targets(student, TEACHER, temperature), student)
    difference = (STUDENT / temperature).softmax(1) - (TEACHER / temperature).softmax(1)
    torch.testing.assert_close(gradient, temperature * difference / len(STUDENT))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_the_decoupled_parts_add_up_to_the_kl(temperature: float) -> None:
    target, among, sure = decoupled_parts(STUDENT, TEACHER, LABELS, temperature)
    whole = F.kl_div(
        (STUDENT / temperature).log_softmax(1), (TEACHER / temperature).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    torch.testing.assert_close(target + (1 - sure) * among, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sure, (TEACHER / temperature).softmax(1).gather(1, LABELS[:, None])[:, 0])
    assert (among > 0).all(), "with all weight on the target part the test above could not fail"
    expected = temperature**2 * (0.5 * target + 3 * among).mean()
    torch.testing.assert_close(decoupled(STUDENT, TEACHER, LABELS, temperature, alpha=0.5, beta=3), expected)


def test_the_part_among_the_others_does_not_see_the_labelled_class() -> None:
    shifted = STUDENT.clone()
    shifted[torch.arange(5), LABELS] += 3
    before, after = (decoupled_parts(student, TEACHER, LABELS, 2.0) for student in (STUDENT, shifted))
    torch.testing.assert_close(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def test_attention_ignores_scale_and_order_of_channels_but_not_place() -> None:
    shuffled = -3 * MAPS[:, [1, 0]]  # squares forget the sign
    assert attention_transfer(shuffled, MAPS).item() == pytest.approx(0, abs=1e-12)
    assert attention_transfer(MAPS.flip(3), MAPS).item() > 1e-3
    apart = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    apart[:, :, :, 0] = 1
    assert attention_transfer(apart, apart.flip(3)).item() == pytest.approx(2)


def test_relations_ignore_scale_shift_and_rotation() -> None:
    points = draw(6, 4)
    rotation = torch.linalg.qr(draw(4, 4, seed=8))[0]
    assert relational(5 * points @ rotation + 2, points).item() == pytest.approx(0, abs=1e-10)
    assert relational(points * torch.tensor([1.0, 1, 1, 4], dtype=torch.float64), points).item() > 1e-3


def test_relations_are_those_of_a_triangle() -> None:
    """3-4-5 against equilateral: distances over their mean, and each corner's cosine twice a triplet."""
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    distances = sum(0.5 * (side / 4 - 1) ** 2 for side in (3, 4, 5)) / 3
    angles = 2 * sum(0.5 * (cosine - 0.5) ** 2 for cosine in (0.0, 3 / 5, 4 / 5)) / 27
    assert relational(right, even, angle=0).item() == pytest.approx(distances)
    assert relational(right, even, distance=0, angle=1).item() == pytest.approx(angles)


@pytest.mark.parametrize("name", LOSSES)
def test_a_teacher_with_gradients_and_other_images_are_refused(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    with pytest.raises(UsageError, match=r"carries gradients.*torch\.no_grad\(\)"):
        loss(student, teacher.clone().requires_grad_())
    with pytest.raises(UsageError):
        loss(student[:-1], teacher)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    for loss in (lambda: soft_targets(STUDENT, TEACHER, temperature), lambda: decoupled(STUDENT, TEACHER, LABELS, temperature)):
        with pytest.raises(UsageError, match=r"temperature is .*: use a positive number"):
            loss()


def test_other_classes_shapes_and_labels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"gives \(5, 3\) and the teacher \(5, 2\).*same classes"):
        soft_targets(STUDENT, TEACHER[:, :2])
    with pytest.raises(UsageError, match="one int64 label for each of the 5 images"):
        decoupled(STUDENT, TEACHER, LABELS[:4])
    with pytest.raises(UsageError, match="one height and width"):
        attention_transfer(MAPS, OTHER_MAPS[..., :2])
    with pytest.raises(UsageError, match="activations of one shape"):
        hint(MAPS, OTHER_MAPS)
    with pytest.raises(UsageError, match="batches of 3 or more"):
        relational(STUDENT[:2], TEACHER[:2])
