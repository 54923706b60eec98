"""The claims under test, read from ``claims.toml`` beside this file (lesson 00)."""

from __future__ import annotations

import functools
import operator
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from cookbook.errors import EvidenceError

Needs = Literal["any", "gpu", "gpu, cpu", "gpu, cpu analogue", "gpus>=2"]
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How recorded values decide a claim.

    Attributes:
        value: name of the deciding number in `ClaimEvidence.values`.
        operator: ``<``, ``<=``, ``>`` or ``>=``; the claim holds when value, operator, threshold is true.
        threshold: in the unit of the value.
        threshold_source: where the threshold comes from, in words.
        minimum_seeds: trainings that the number must rest on; 0 where nothing is trained.
        also: names of further values that the verdict reports.
        neutral: the value that means no effect, such as 0 for a difference or 1 for a ratio. When
            the interval from ``<value>_low`` to ``<value>_high`` contains it, there is no difference.
    """

    value: str
    operator: str
    threshold: float
    threshold_source: str
    minimum_seeds: int = 0
    also: tuple[str, ...] = ()
    neutral: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing that practitioners repeat.

    Attributes:
        id: such as ``measure-01``.
        wording: the claim.
        metric: what is measured, with the threshold where the claim names one.
        device: what deciding it takes; everything but ``any`` takes an accelerator.
        lessons: two digits each, the lessons that measure it.
        rule: how recorded values decide it; None: not decided yet.
    """

    id: str
    wording: str
    metric: str
    device: Needs
    lessons: tuple[str, ...]
    rule: Rule | None = None


def load_claims() -> dict[str, Claim]:
    """Return all claims by id, in the order of the file."""
    return dict(_packaged_claims())


@functools.cache
def _packaged_claims() -> dict[str, Claim]:
    return parse_claims(resources.files("cookbook.evidence").joinpath("claims.toml").read_text(encoding="utf-8"))


def parse_claims(text: str) -> dict[str, Claim]:
    """Read claims from TOML.

    Raises:
        EvidenceError: the text is not TOML, a field is missing, unknown or has no meaning, or an id
            comes twice.
    """
    claims: dict[str, Claim] = {}
    try:
        for entry in tomllib.loads(text)["claim"]:
            claim = _claim(entry)
            if claim.id in claims:
                raise ValueError(f"the id {claim.id} comes twice")
            claims[claim.id] = claim
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(
            f"The claims cannot be read ({error}): compare with the fields described at the top of claims.toml."
        ) from error
    return claims


def _claim(entry: dict[str, Any]) -> Claim:
    entry = dict(entry)
    fields = entry.pop("rule", None)
    rule = None
    if fields is not None:
        rule = Rule(**{**fields, "also": tuple(fields.get("also", ()))})
        if rule.operator not in OPERATORS:
            raise ValueError(f"{entry['id']} has the operator {rule.operator!r}, not one of {', '.join(OPERATORS)}")
    claim = Claim(**{**entry, "lessons": tuple(entry["lessons"])}, rule=rule)
    if claim.device not in get_args(Needs):
        raise ValueError(f"{claim.id} has the device {claim.device!r}, not one of {'; '.join(get_args(Needs))}")
    if not claim.lessons or not all(re.fullmatch(r"\d\d", lesson) for lesson in claim.lessons):
        raise ValueError(f"{claim.id} has the lessons {claim.lessons}, not one or more of two digits")
    return claim
