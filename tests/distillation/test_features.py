"""Hooks that are named by path, that go away, and that say what is missing."""

from __future__ import annotations

import pytest
import torch
from small_students import same_weights, small_net, small_teacher, weights_of
from torch import Tensor, nn

from cookbook.distillation import Feature, attention_transfer, hint
from cookbook.distillation.features import WithRegressors, captured, feature_loss, find_module, make_regressors, unwrapped
from cookbook.errors import UsageError

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ATTENTION = Feature(student="1", teacher="1", loss="attention", weight=2.0)
HINT = Feature(student="0", teacher="0", loss="hint", weight=3.0)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_modules_own_outputs_are_captured_and_the_hooks_go() -> None:
    net = small_net().eval()
    with captured(net, ["0", "2"], "student") as outputs:
        net(IMAGES)
        assert hooks_of(net) == 2
    torch.testing.assert_close(outputs["0"], net[0](IMAGES))
    torch.testing.assert_close(outputs["2"], net[2](net[1](net[0](IMAGES))))
    assert hooks_of(net) == 0


def test_the_hooks_go_when_the_model_fails() -> None:
    net = small_net()
    with pytest.raises(RuntimeError), captured(net, ["0"], "student"):
        net(IMAGES[:, :, 0])
    assert hooks_of(net) == 0


@pytest.mark.parametrize(("path", "near"), [("blocks.9", "blocks.0"), ("hed", "head"), ("", "blocks"), ("zzzzzz", "blocks")])
def test_a_missing_module_is_named_with_its_neighbours(path: str, near: str) -> None:
    net = nn.ModuleDict({"blocks": nn.Sequential(nn.Identity(), nn.Identity()), "head": nn.Identity()})
    with pytest.raises(UsageError, match=f"The teacher has no module '{path}'.*{near}") as error:
        find_module(net, path, "teacher")
    assert "\n" not in str(error.value)


def test_a_module_that_does_not_run_or_gives_no_tensor_is_refused() -> None:
    net = nn.ModuleDict({"used": nn.Identity(), "idle": nn.Identity(), "pair": nn.LSTM(2, 2)})
    with pytest.raises(UsageError, match="student's module idle did not run"), captured(net, ["idle"], "student"):
        net["used"](IMAGES)
    with pytest.raises(UsageError, match="module pair gives a tuple"), captured(net, ["pair"], "student"):
        net["pair"](torch.zeros(1, 1, 2))


def test_regressors_fit_both_sides_and_leave_models_and_generators_alone() -> None:
    student, teacher = small_net(), small_teacher()
    before, state = [weights_of(student), weights_of(teacher)], torch.get_rng_state()
    made = make_regressors(student, teacher, [ATTENTION, HINT], IMAGES, seed=4)
    assert not list(made[0].parameters())
    assert made[1].weight.shape == (6, 4, 1, 1)
    again = make_regressors(student, teacher, [ATTENTION, HINT], IMAGES, seed=4)
    assert torch.equal(made[1].weight, again[1].weight)
    assert torch.equal(state, torch.get_rng_state())
    assert same_weights(before[0], student.state_dict())
    assert same_weights(before[1], teacher.state_dict())
    assert student.training
    assert teacher.training
    flat = Feature(student="6", teacher="6", loss="hint", weight=1.0)
    assert make_regressors(student, teacher, [flat], IMAGES, seed=0)[0].weight.shape == (3, 3)
    with pytest.raises(UsageError, match="has 4 and 2 dimensions"):
        make_regressors(student, teacher, [Feature(student="6", teacher="0", loss="hint", weight=1.0)], IMAGES, seed=0)


def test_the_loss_is_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    own = {"0": torch.randn(4, 4, 5, 5, generator=generator), "1": torch.randn(4, 4, 5, 5, generator=generator)}
    theirs = {"0": torch.randn(4, 6, 5, 5, generator=generator), "1": torch.randn(4, 6, 5, 5, generator=generator)}
    regressor = nn.Conv2d(4, 6, 1)
    expected = 2 * attention_transfer(own["1"], theirs["1"]) + 3 * hint(regressor(own["0"]), theirs["0"])
    torch.testing.assert_close(feature_loss([ATTENTION, HINT], own, theirs, [nn.Identity(), regressor]), expected)
    with pytest.raises(UsageError, match="has no regressor"):
        feature_loss([HINT], own, theirs, ())
    with pytest.raises(UsageError, match="no features"):
        feature_loss([], own, theirs, ())


def test_wrappers_are_seen_through() -> None:
    net = small_net()
    wrapped = WithRegressors(net, [])
    assert unwrapped(wrapped) is net
    assert unwrapped(nn.DataParallel(wrapped)) is net
    net.eval()
    output: Tensor = wrapped(IMAGES)
    torch.testing.assert_close(output, net(IMAGES))


@pytest.mark.parametrize(("change", "words"), [
    ({"loss": "crd"}, "'crd': use attention, hint, relational"),
    ({"weight": 0.0}, "positive"),
    ({"weight": float("nan")}, "positive"),
])  # fmt: skip
def test_a_feature_with_other_values_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Feature(**{"student": "0", "teacher": "0", "loss": "hint", "weight": 1.0, **change})  # type: ignore[arg-type]
