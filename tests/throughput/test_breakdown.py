"""The breakdown: its parts are the whole, each pays for its own work, and the model is left alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from cookbook.data import Batch, ResidentLoader, Split
from cookbook.errors import UsageError
from cookbook.throughput import PHASES, Breakdown, breakdown, step_breakdown
from cookbook.training import Recipe

RECIPE = Recipe(epochs=1, learning_rate=0.01)


class Clock:
    """A clock that stands still until somebody works."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(breakdown, "time", made)
    return made


def split(role: str = "train", size: int = 12) -> Split:
    images = torch.arange(4 * size, dtype=torch.uint8).view(size, 1, 2, 2)
    return Split(images, torch.arange(size) % 2, role, ("a", "b"), (0.4,), (0.3,))  # type: ignore[arg-type]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


class SlowLoader(ResidentLoader):
    """Takes 5 seconds a batch on the test's clock."""

    clock: Clock

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, first):
            self.clock.now += 5
            yield batch


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_phase_pays_for_its_own_work(accumulate: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SlowLoader(split(), 4)
    loader.clock = clock
    step = torch.optim.SGD.step

    def slow_step(self: torch.optim.SGD, closure: None = None) -> None:
        clock.now += 7
        step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", torch_optimizer.Optimizer.profile_hook_step(slow_step))

    class Slow(torch.autograd.Function):
        """A function that takes 1 second forward and 2 backward."""

        @staticmethod
        def forward(ctx: object, value: Tensor) -> Tensor:
            clock.now += 1
            return value.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            clock.now += 2
            return gradient

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return Slow.apply(nn.functional.cross_entropy(model(images), labels))

    recipe = Recipe(epochs=1, learning_rate=0.01, accumulate=accumulate, clip_norm=1.0)
    found = step_breakdown(network(), loader, recipe, steps=4, warmup=2, objective=objective)
    means = {"data": 5 * accumulate, "forward": accumulate, "backward": 2 * accumulate, "optimizer": 7}
    assert {phase: found.mean(phase) for phase in PHASES} == pytest.approx(means)
    assert found.whole == pytest.approx([sum(means.values())] * 4)
    assert [found.share(phase) for phase in PHASES] == pytest.approx([mean / sum(means.values()) for mean in means.values()])


def test_real_parts_add_up_to_each_step() -> None:
    found = step_breakdown(network(), ResidentLoader(split(), 4), RECIPE, steps=8)  # more steps than an epoch has
    assert len(found.whole) == 8 and set(found.phases) == set(PHASES)
    for number, whole in enumerate(found.whole):
        assert sum(found.phases[phase][number] for phase in PHASES) == pytest.approx(whole, rel=1e-9)
        assert all(found.phases[phase][number] > 0 for phase in PHASES)
    assert sum(found.mean(phase) for phase in PHASES) == pytest.approx(found.seconds)


def test_model_random_numbers_and_hooks_are_left_alone() -> None:
    model = network().eval()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    step_breakdown(model, ResidentLoader(split(), 4), RECIPE, steps=2)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    with pytest.raises(ZeroDivisionError):
        step_breakdown(model, ResidentLoader(split(), 4), RECIPE, steps=2, objective=lambda *_: torch.tensor(1 / 0))
    assert not torch_optimizer._global_optimizer_pre_hooks


def test_parts_that_do_not_add_up_are_refused() -> None:
    parts = {"data": (1.0,), "forward": (2.0,), "backward": (3.0,), "optimizer": (4.0,)}
    assert Breakdown((10.0,), parts, "cpu").share("optimizer") == pytest.approx(0.4)
    with pytest.raises(UsageError, match="by one clock"):
        Breakdown((10.1,), parts, "cpu")


def test_wrong_arguments_are_refused() -> None:
    for settings in ({"steps": 0}, {"warmup": 0}):
        with pytest.raises(UsageError, match="use 1 or more of both"):
            step_breakdown(network(), ResidentLoader(split(), 4), RECIPE, **settings)
    with pytest.raises(UsageError, match="must not be used to train"):
        step_breakdown(network(), ResidentLoader(split("test"), 4), RECIPE)


def test_the_table_ends_with_the_whole() -> None:
    shown = Breakdown((0.010, 0.010), {name: (0.0025, 0.0025) for name in PHASES}, "cpu")
    assert [row[0] for row in shown.table().rows] == [*PHASES, "whole step"]
    assert shown.table().rows[-1] == ("whole step", "10", "100.0%") and shown.table().rows[0][2] == "25.0%"
    assert "2 steps on cpu" in str(shown) and "<table>" in shown._repr_html_()
