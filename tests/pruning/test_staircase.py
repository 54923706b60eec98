"""The width staircase: inversions and waste as a machine with blocks must show them, and the multiple that follows."""

from __future__ import annotations

import pytest
import torch
from fake_clocks import BlockClock
from torch import nn

from cookbook.errors import UsageError
from cookbook.measure import Timing, count_macs
from cookbook.pruning.clock import OrtClock
from cookbook.pruning.staircase import Staircase, Step, preferred_multiple, width_staircase

EXAMPLE = torch.zeros(1, 8, 6, 6)
WIDTHS = [*range(12, 36), 40, 48]


def chain(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3))


def stepped(block: int) -> Staircase:
    return width_staircase(chain, WIDTHS, EXAMPLE, clock=BlockClock(block))


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
def test_the_multiple_is_the_machines_block(block: int) -> None:
    choice = preferred_multiple(stepped(block))
    assert choice.multiple == block
    assert not choice.wasteful[block]
    finer = [multiple for multiple in choice.judged if multiple < block]
    assert all(choice.wasteful[multiple] for multiple in finer)
    assert f"multiples of {block}" in str(choice)


def test_widths_are_sorted_and_counted() -> None:
    staircase = width_staircase(chain, (16, 8, 12), EXAMPLE, clock=BlockClock())
    assert [step.channels for step in staircase.steps] == [8, 12, 16]
    assert [step.macs for step in staircase.steps] == [count_macs(chain(width), EXAMPLE) for width in (8, 12, 16)]
    assert staircase.ratio(12, 16).value == pytest.approx(1.0)
    assert staircase.ratio(8, 16).value == pytest.approx((1 + 1) / (2 + 4))


def test_wasteful_widths_are_those_within_a_block() -> None:
    wasteful = stepped(8).wasteful()
    assert all(width % 8 for width in wasteful)
    assert set(wasteful) == {width for width in WIDTHS if width % 8}
    assert all(better == -(-width // 8) * 8 for width, better in wasteful.items())


def stairs(*seconds: float) -> Staircase:
    return Staircase(tuple(Step(8 + at, 100 * (8 + at) ** 2, Timing((time,) * 3, 1, 1)) for at, time in enumerate(seconds)))


def test_the_worst_inversion_is_the_largest_ratio_of_a_narrower_network() -> None:
    narrow, wide, ratio = stairs(1.0, 3.0, 2.0, 1.5).worst_inversion
    assert (narrow, wide, ratio.value) == (9, 11, 2.0)
    narrow, wide, ratio = stairs(1.0, 2.0, 3.0).worst_inversion
    assert (narrow, wide) == (9, 10)
    assert ratio.value == pytest.approx(2 / 3)


def test_with_waste_everywhere_the_smallest_share_wins() -> None:
    flat = stairs(*([1.0] * 17))
    choice = preferred_multiple(flat, multiples=(1, 2, 4))
    assert choice.multiple == 1  # all widths waste, so nothing speaks for a larger multiple
    uneven = Staircase(
        tuple(Step(channels, channels**2, Timing((time,) * 3, 1, 1)) for channels, time in
              ((8, 1.0), (12, 4.0), (16, 4.0), (20, 9.0), (24, 5.0), (32, 5.0), (40, 10.0)))
    )  # fmt: skip
    assert preferred_multiple(uneven, multiples=(1, 2, 4, 8)).multiple == 8


def test_the_text_holds_the_ratios() -> None:
    text = str(width_staircase(chain, (8, 12, 16), EXAMPLE, clock=BlockClock()))
    assert text.splitlines()[-1].split() == ["16", "1.00", "1.00"]
    assert "12" in text and "no faster than 16" in text


@pytest.mark.parametrize("widths", [(8, 16), (8, 8, 16), (0, 8, 16)])
def test_wrong_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="give three or more different numbers"):
        width_staircase(chain, widths, EXAMPLE, clock=BlockClock())


def test_what_cannot_be_judged_is_refused() -> None:
    staircase = width_staircase(chain, (8, 12, 16), EXAMPLE, clock=BlockClock())
    with pytest.raises(UsageError, match="13 channels were not measured"):
        staircase.ratio(13, 16)
    with pytest.raises(UsageError, match="measure more widths"):
        preferred_multiple(staircase, multiples=(16,))
    with pytest.raises(UsageError, match="give numbers of at least 1"):
        preferred_multiple(staircase, multiples=(0, 8))


def test_the_real_clock_times_every_model_in_the_same_rounds() -> None:
    timings = OrtClock(batch=2, rounds=3)({"a": chain(2), "b": chain(3)}, EXAMPLE)
    assert list(timings) == ["a", "b"]
    assert all((len(timing.samples), timing.batch, timing.threads) == (3, 2, 1) for timing in timings.values())
    for wrong in ({"threads": 0}, {"batch": 0}, {"rounds": 2}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
            OrtClock(**wrong)


def test_a_model_is_exported_once_and_again_when_its_shape_has_changed() -> None:
    clock, model = OrtClock(rounds=3), chain(2)
    first = clock._runtime(model, EXAMPLE)
    model[0].weight.data.add_(1)
    assert clock._runtime(model, EXAMPLE) is first
    model[0], model[2] = nn.Conv2d(8, 5, 3), nn.Conv2d(5, 2, 3)
    second = clock._runtime(model, EXAMPLE)
    torch.testing.assert_close(second(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)
    assert clock._runtime(model, torch.zeros(1, 8, 7, 7)) is not second
