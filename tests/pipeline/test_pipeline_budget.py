"""Budgets: what they refuse, what breaks them, and which file is taken."""

from __future__ import annotations

import math

import pytest
from tiny_case import row

from cookbook.errors import UsageError
from cookbook.pipeline import Budget, Relative
from cookbook.pipeline.runner import choose


def test_proportions_are_those_of_the_two_rows() -> None:
    found = Relative.of(row("small", correct=88, bytes=25, seconds=0.2), row("baseline"))
    assert (found.latency, found.bytes) == pytest.approx((0.2, 0.25))
    assert found.accuracy_drop == pytest.approx(2.0) and found.points_gained == -2.0
    assert f"{Relative(1.0, 1e-15, 1.0).points_gained:+.2f}" == "+0.00"


def test_rows_of_two_runs_are_not_compared() -> None:
    with pytest.raises(UsageError, match="not measured together"):
        Relative.of(row("small", recorded="later"), row("baseline"))


@pytest.mark.parametrize(
    ("budget", "found", "broken"),
    [
        (Budget(0.2, 2.0, 0.25), Relative(0.2, 2.0, 0.25), {}),  # a bound that is just met is met
        (Budget(0.2, 2.0, 0.25), Relative(0.3, 2.0, 0.25), {"latency": 0.1}),
        (Budget(0.2, 2.0, 0.25), Relative(0.1, 2.5, 0.25), {"accuracy_drop": 0.5}),
        (Budget(0.2, 2.0, 0.25), Relative(0.4, 4.0, 0.5), {"latency": 0.2, "accuracy_drop": 2.0, "bytes": 0.25}),
        (Budget(None, 0.0, None), Relative(9.0, -3.0, 9.0), {}),  # more accurate, and nothing else bounded
        (Budget(None, 0.0, None), Relative(0.1, 0.01, 0.1), {"accuracy_drop": 0.01}),
    ],
)
def test_every_broken_bound_is_named_with_its_excess(budget: Budget, found: Relative, broken: dict[str, float]) -> None:
    violations = budget.check(found)
    assert {violation.bound: violation.by for violation in violations} == pytest.approx(broken)
    assert (budget.excess(found) == 0) == (not broken)


def test_a_value_that_is_no_number_keeps_no_bound() -> None:
    assert [violation.bound for violation in Budget(0.2, 2.0).check(Relative(math.nan, math.nan, 1))] == [
        "latency",
        "accuracy_drop",
    ]


def test_a_violation_says_by_how_much() -> None:
    (slow,) = Budget(0.1, None).check(Relative(0.25, 0, 1))
    assert str(slow) == "latency is 0.250 of the baseline's, 0.150 more than the 0.100 allowed (4.0× instead of 10.0×)"
    (wrong,) = Budget(None, 0.5).check(Relative(0.25, 1.25, 1))
    assert str(wrong) == "accuracy drops by 1.25 points, 0.75 more than the 0.50 allowed"


@pytest.mark.parametrize(
    "bounds",
    [
        {"latency": 0}, {"latency": -1}, {"bytes": 0}, {"bytes": math.inf}, {"accuracy_drop": -0.1},
        {"accuracy_drop": math.nan}, {"latency": None, "accuracy_drop": None},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_bounds_are_refused(bounds: dict[str, float | None]) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget(**bounds)


def test_the_last_row_within_the_budget_is_taken() -> None:
    rows = [row("prune", seconds=0.4), row("distill", seconds=0.3), row("quantize", seconds=0.1, correct=50)]
    assert choose(Budget(0.5, 1.0), row("baseline"), rows) == 1


def test_without_such_a_row_the_one_that_breaks_least_is_taken_and_the_later_of_near_equals() -> None:
    rows = [row("prune", seconds=0.2), row("distill", seconds=0.9), row("quantize", seconds=0.8)]
    assert choose(Budget(0.1, 1.0), row("baseline"), rows) == 0
    rows[2] = row("quantize", seconds=0.21)
    assert choose(Budget(0.1, 1.0), row("baseline"), rows) == 2


def test_the_unchanged_model_is_taken_where_every_stage_is_worse() -> None:
    assert choose(Budget(None, 1.0, 0.5), row("baseline"), [row("prune", correct=20, bytes=40)]) == -1
