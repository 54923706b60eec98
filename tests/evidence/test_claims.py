"""The claims as data."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from cookbook.errors import EvidenceError
from cookbook.evidence import load_claims
from cookbook.evidence.claims import OPERATORS, parse_claims

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
[[claim]]
id = "test-01"
wording = "It is so"
metric = "how much"
device = "any"
lessons = ["00"]
[claim.rule]
value = "much"
operator = ">"
threshold = 1
threshold_source = "a paper"
"""


def test_there_are_forty_claims_with_words_devices_and_lessons() -> None:
    entries = tomllib.loads(resources.files("cookbook.evidence").joinpath("claims.toml").read_text("utf-8"))["claim"]
    claims = load_claims()
    assert list(claims) == [entry["id"] for entry in entries]
    assert len(set(claims)) == len(entries) == 40
    for claim in claims.values():
        assert claim.wording, claim.id
        assert claim.metric, claim.id
        assert claim.device in ("any", "gpu", "gpu, cpu", "gpu, cpu analogue", "gpus>=2"), claim.id
        assert all(len(lesson) == 2 and lesson.isdigit() for lesson in claim.lessons), claim.id
    assert {lesson for claim in claims.values() for lesson in claim.lessons} == {f"{number:02}" for number in range(10)}


def test_the_first_claims_threshold_is_the_published_gain() -> None:
    rule = load_claims()["measure-01"].rule
    assert rule is not None
    assert rule.threshold == pytest.approx(93.77 - 93.53)
    assert (rule.operator, rule.minimum_seeds) == (">", 3)


def test_what_records_a_decided_claim_writes_the_values_of_its_rule() -> None:
    recorders = [path for folder in ("accelerator", "experiments") for path in (ROOT / "cookbook" / folder).glob("*.py")]
    for claim in load_claims().values():
        for lesson in claim.lessons if claim.rule else ():
            lessons = sorted((ROOT / "notebooks" / "src").glob(f"{lesson}_*.py"))
            assert lessons, f"lesson {lesson} is not written, but {claim.id} has a rule"
            text = "".join(path.read_text("utf-8") for path in (*lessons, *recorders))
            assert claim.rule is not None
            assert [name for name in (claim.rule.value, *claim.rule.also) if name not in text] == [], claim.id


def test_the_claims_travel_with_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "evidence/claims.toml" in settings["tool"]["setuptools"]["package-data"]["cookbook"]


def test_a_reader_of_the_claims_cannot_change_them() -> None:
    load_claims().clear()
    assert load_claims()


def test_a_rule_is_read() -> None:
    rule = parse_claims(GOOD)["test-01"].rule
    assert rule is not None
    assert OPERATORS[rule.operator](2, rule.threshold)
    assert not OPERATORS[rule.operator](1, rule.threshold)


@pytest.mark.parametrize(
    ("wrong", "right", "reason"),
    [
        ("GOOD" + GOOD, "GOOD" + GOOD + GOOD, "comes twice"),
        ('device = "any"', 'device = "abacus"', "abacus"),
        ('lessons = ["00"]', 'lessons = ["0"]', "two digits"),
        ('lessons = ["00"]', "lessons = []", "two digits"),
        ('operator = ">"', 'operator = "near"', "near"),
        ('metric = "how much"', "", "metric"),
        ("threshold = 1", "", "threshold"),
        ('metric = "how much"', 'metric = "how much"\nmood = "good"', "mood"),
        ("[[claim]]", "[[claims]]", "claim"),
        ("[[claim]]", "[[claim]", "line 2"),
    ],
)
def test_claims_that_make_no_sense_are_refused_with_the_reason(wrong: str, right: str, reason: str) -> None:
    text = ("GOOD" + GOOD).replace(wrong, right).replace("GOOD", "")
    assert text != GOOD
    with pytest.raises(EvidenceError, match=reason):
        parse_claims(text)
