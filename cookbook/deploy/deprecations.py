"""Deprecations that are the point of a lesson, or another library's own, held back one by one (lesson 07)."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def expected_deprecations(pattern: str) -> Iterator[list[warnings.WarningMessage]]:
    """Hold back the deprecation warnings of the block whose message matches; issue every other warning again after it.

    Args:
        pattern: a regular expression for the message's beginning.

    Yields:
        All warnings of the block, as they come.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
    for warning in said:
        deprecation = issubclass(warning.category, DeprecationWarning | FutureWarning)
        if not (deprecation and re.match(pattern, str(warning.message))):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
