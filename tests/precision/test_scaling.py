"""What is reported about scaled steps is what happened to the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cookbook.precision import LossScaling, StepOutcome

CPU = torch.device("cpu")
OVERFLOWS = [True, True, False, False, False, True, False, False]


def scaled_steps(fused: bool | None, scaling_class: type[LossScaling] | None = LossScaling):
    """Take a step for each of OVERFLOWS; return outcomes, weights after each step, and scales by get_scale()."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    scaling = scaling_class(scaler, optimizer, CPU) if scaling_class else None
    outcomes, weights, scales = [], [], []
    for overflow in OVERFLOWS:
        optimizer.zero_grad()
        scaler.scale((weight * (float("inf") if overflow else 1.0)).sum()).backward()
        if scaling is None:
            scaler.step(optimizer)
            scaler.update()
        else:
            scaling.step()
            outcomes.append(scaling.settle())
        weights.append(weight.detach().clone())
        scales.append(scaler.get_scale())
    return outcomes, weights, scales


@pytest.mark.parametrize("fused", [None, True])
def test_outcomes_tell_of_weights_and_scale(fused: bool | None) -> None:
    """SGD, fused or not: a step was taken exactly when the weights moved, and the scale is get_scale()'s."""
    outcomes, weights, scales = scaled_steps(fused)
    moved = [not torch.equal(a, b) for a, b in zip([torch.ones(3), *weights], weights, strict=False)]
    assert outcomes == [StepOutcome(taken, scale) for taken, scale in zip(moved, scales, strict=True)]
    assert moved == [not overflow for overflow in OVERFLOWS]
    assert scales == [32.0, 16.0, 16.0, 32.0, 32.0, 16.0, 16.0, 32.0]
    plain = scaled_steps(fused, None)
    assert all(torch.equal(a, b) for a, b in zip(weights, plain[1], strict=True)) and scales == plain[2]


def test_an_outcome_is_told_once_and_never_before_a_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaling = LossScaling(torch.amp.GradScaler("cpu"), optimizer, CPU)
    assert scaling.settle() is None
    scaling.scaler.scale(weight.sum()).backward()
    scaling.step()
    assert scaling.settle() == StepOutcome(True, 65536.0)
    assert scaling.settle() is None


def test_the_scale_is_never_asked_for_while_stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    """get_scale() would wait for an accelerator; with a fused optimizer no tensor is read before `settle` either."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    scaling = LossScaling(torch.amp.GradScaler("cpu"), optimizer, CPU)
    scaling.scaler.scale(weight.sum()).backward()

    def waits(*_: object) -> None:
        raise AssertionError("a tensor was read")

    with monkeypatch.context() as patch:
        patch.setattr(torch.amp.GradScaler, "get_scale", waits)
        for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, waits)
        scaling.step()
    assert scaling.settle() == StepOutcome(True, 65536.0)
