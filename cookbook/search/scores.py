"""What a candidate is worth, the front of the best, and the area that it dominates (lesson 09)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cookbook.errors import UsageError
from cookbook.plots.scoreboard import pareto_front


@dataclass(frozen=True)
class Score:
    """The two objectives of a search.

    Attributes:
        accuracy: share of the validation images that are right, 0 to 1; more is better.
        latency: by custom as a share of a reference network's; less is better.

    Raises:
        UsageError: the accuracy is no share, or the latency is not a positive number.
    """

    accuracy: float
    latency: float

    def __post_init__(self) -> None:
        if not (0 <= self.accuracy <= 1 and 0 < self.latency < math.inf):
            raise UsageError(
                f"An accuracy of {self.accuracy} and a latency of {self.latency} are no score: give a share of right "
                "predictions from 0 to 1 and a positive latency."
            )


REFERENCE = Score(accuracy=0.0, latency=1.0)  # as slow as the reference network, and never right

ROUNDING = 1e-9  # relative; less is no gain


def front(scores: Sequence[Score]) -> list[int]:
    """Return the places of the scores that no other beats in both objectives, the fastest first.

    Of equal scores the first is kept.
    """
    found = pareto_front([(score.latency, score.accuracy) for score in scores])
    return [place for number, place in enumerate(found) if not number or scores[place] != scores[found[number - 1]]]


def hypervolume(scores: Sequence[Score], reference: Score = REFERENCE) -> float:
    """Return the area between the scores and a reference point that they are better than.

    These are the pairs of latency and accuracy that some score is at least as good as: an area from 0 to the reference's
    latency times the accuracy that it lacks. More is better, and every score that no other beats adds to it (Zitzler and
    Thiele, IEEE Transactions on Evolutionary Computation 3, 1999, 257–271).

    Args:
        scores: those that are not better than the reference in both objectives count nothing.
        reference: the corner.
    """
    better = [score for score in scores if score.latency < reference.latency and score.accuracy > reference.accuracy]
    stairs = [better[place] for place in front(better)]
    ends = [*(score.latency for score in stairs), reference.latency][1:]
    return sum((end - score.latency) * (score.accuracy - reference.accuracy) for score, end in zip(stairs, ends, strict=True))


def hypervolumes(scores: Sequence[Score], reference: Score = REFERENCE) -> list[float]:
    """Return the hypervolume after the first score, after the first two, and so on; it never falls."""
    return [hypervolume(scores[: count + 1], reference) for count in range(len(scores))]


def gained(scores: Sequence[Score], last: int, reference: Score = REFERENCE) -> bool:
    """Say whether any of the last scores enlarged the hypervolume."""
    return hypervolume(scores, reference) > (1 + ROUNDING) * hypervolume(scores[:-last], reference)
