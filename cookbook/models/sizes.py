"""Checks that every configuration shares: sizes are whole numbers of at least 1 (lesson 00)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cookbook.errors import UsageError


def require_sizes(**sizes: Any) -> None:
    """Refuse a size, or a tuple of sizes, that is not made of whole numbers of at least 1.

    Raises:
        UsageError: naming the first argument that is wrong.
    """
    for name, value in sizes.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(type(number) is int and number >= 1 for number in numbers):
            raise UsageError(f"{name} is {value!r}: use whole numbers of at least 1.")


def require_probability(**probabilities: Any) -> None:
    """Refuse a dropout that is not a number from 0 up to, not including, 1.

    Raises:
        UsageError: naming the first argument that is wrong.
    """
    for name, value in probabilities.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UsageError(f"{name} is {value!r}: use a number from 0 up to, not including, 1.")


def as_tuple(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return `values` as a tuple, because JSON brings lists.

    Raises:
        UsageError: `values` is no sequence.
    """
    try:
        return tuple(values)
    except TypeError as error:
        raise UsageError(f"{name} is {values!r}: use a tuple of whole numbers.") from error
