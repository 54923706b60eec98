"""Intervals and paired tests, and the three words in which every comparison ends (lesson 00)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

import torch
from torch import Tensor

from cookbook.errors import UsageError

Word = Literal["better", "worse", "no difference"]


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a share: the shares that a test at this level would not reject.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209–212. Unlike
    the textbook's ±1.96 standard errors it stays inside 0 to 1 and has a width at 0 % and 100 %.

    Args:
        hits: successes, 0 to `total`.
        total: trials, at least 1.
        confidence: between 0 and 1.

    Raises:
        UsageError: an argument is out of range.
    """
    if total < 1 or not 0 <= hits <= total:
        raise UsageError(f"{hits} of {total} is not a share: count at least one image, and no more hits than images.")
    if not 0 < confidence < 1:
        raise UsageError(f"A confidence of {confidence:g} is out of range: use a value between 0 and 1, such as 0.95.")
    z = _normal_quantile(1 - confidence)
    share = hits / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == total else centre + half)


@dataclass(frozen=True)
class PairedComparison:
    """Two candidates on the same images.

    Attributes:
        difference: accuracy of the candidate minus that of the baseline, in points (percent).
        low: lower end of the interval of `difference`, at the level 1 - `alpha`.
        high: upper end.
        p_value: of McNemar's exact test that gains and losses are equally likely.
        gained: images that only the candidate has right.
        lost: images that only the baseline has right.
        images: number of images.
        alpha: the largest `p_value` that is called a difference.
    """

    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    images: int
    alpha: float = 0.05

    @property
    def word(self) -> Word:
        """The verdict, by the exact test."""
        return _word(self.difference, self.p_value, self.alpha)

    def __str__(self) -> str:
        return (
            f"{self.difference:+.2f} points [{self.low:+.2f}, {self.high:+.2f}], p = {self.p_value:.2g}: {self.word} "
            f"({self.gained} gained, {self.lost} lost of {self.images:,})"
        )


def compare_paired(baseline_correct: Tensor, candidate_correct: Tensor, *, alpha: float = 0.05) -> PairedComparison:
    """Compare two candidates image by image on one test set.

    The word comes from McNemar's exact test (Q. McNemar, Psychometrika 12, 1947, 153–157): among
    the images on which the two disagree, gains are Binomial(gained + lost, 1/2) when there is no
    difference. The interval is the adjusted Wald interval of D. G. Bonett and R. M. Price, Journal
    of Educational and Behavioral Statistics 37 (2012), 479–488, which adds one gain and one loss.
    The exact test is the more cautious of the two: close to `alpha`, an interval without zero can
    stand beside ``no difference``.

    Args:
        baseline_correct: bool (N,), whether each image is predicted right.
        candidate_correct: bool (N,), for the same images in the same order.
        alpha: the rate at which equal candidates may be called different, between 0 and 1.

    Raises:
        UsageError: other shapes or dtypes, no images, or `alpha` out of range.
    """
    for name, correct in (("baseline_correct", baseline_correct), ("candidate_correct", candidate_correct)):
        if correct.dtype != torch.bool or correct.ndim != 1:
            raise UsageError(f"{name} must be bool of shape (N,), not {correct.dtype} of shape {tuple(correct.shape)}.")
    images = len(baseline_correct)
    if images != len(candidate_correct) or not images:
        raise UsageError(
            f"{images} and {len(candidate_correct)} images cannot be compared in pairs: pass the same images, at least one."
        )
    z = _normal_quantile(alpha)
    baseline, candidate = baseline_correct.cpu(), candidate_correct.cpu()
    gained = int((candidate & ~baseline).sum())
    lost = int((baseline & ~candidate).sum())
    gain, loss = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    centre, half = gain - loss, z * math.sqrt((gain + loss - (gain - loss) ** 2) / (images + 2))
    return PairedComparison(
        difference=100 * (gained - lost) / images,
        low=100 * max(-1.0, centre - half),
        high=100 * min(1.0, centre + half),
        p_value=_fair_coin_p_value(gained, lost),
        gained=gained,
        lost=lost,
        images=images,
        alpha=alpha,
    )


@dataclass(frozen=True)
class SeedComparison:
    """Two ways of training over the same seeds, in the unit of the values that were compared.

    Attributes:
        difference: mean of candidate minus baseline over the seeds.
        low: lower end of the interval of `difference`, at the level 1 - `alpha`.
        high: upper end.
        p_value: of the two-sided paired t test.
        seeds: number of pairs.
        alpha: the largest `p_value` that is called a difference.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: int
    alpha: float = 0.05

    @property
    def word(self) -> Word:
        """The verdict, for values of which more is better."""
        return _word(self.difference, self.p_value, self.alpha)

    def bounded(self, name: str) -> dict[str, float]:
        """Return the difference and its interval as a claim's values: `name`, and it with ``_low`` and ``_high``."""
        return {name: self.difference, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        least = 1e-9 * (self.high - self.low)  # below it a number is what rounding left of zero
        mean, low, high = (value if abs(value) > least else 0.0 for value in (self.difference, self.low, self.high))
        return f"{mean:+.4g} [{low:+.4g}, {high:+.4g}], p = {self.p_value:.2g}: {self.word} (over {self.seeds} seeds)"


def compare_seeds(baseline: Sequence[float], candidate: Sequence[float], *, alpha: float = 0.05) -> SeedComparison:
    """Compare two ways of training by Student's paired t test over seeds.

    Source: Student (W. S. Gosset), Biometrika 6 (1908), 1–25.

    Args:
        baseline: a value a seed, more is better.
        candidate: the values of the same seeds in the same order.
        alpha: between 0 and 1.

    Raises:
        UsageError: fewer than three seeds, different numbers of them, a value that is not finite, or
            `alpha` out of range.
    """
    if len(baseline) != len(candidate) or len(baseline) < 3:
        raise UsageError(
            f"{len(baseline)} and {len(candidate)} values cannot be compared: "
            "pass one value a seed for both, of three seeds or more."
        )
    _require_rate(alpha)
    differences = [ours - theirs for theirs, ours in zip(_finite(baseline), _finite(candidate), strict=True)]
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    half = t_quantile(alpha, freedom) * error
    if error:
        p_value = 1 - _t_coverage(math.atan(abs(mean) / error / math.sqrt(freedom)), freedom)
    else:
        p_value = 0.0 if mean else 1.0
    return SeedComparison(mean, mean - half, mean + half, p_value, len(differences), alpha)


@dataclass(frozen=True)
class Spread:
    """How far repeated runs lie apart, in the unit of the values.

    Attributes:
        mean: arithmetic mean.
        std: sample standard deviation (divided by count - 1).
        low: smallest value.
        high: largest value.
        count: number of values.
    """

    mean: float
    std: float
    low: float
    high: float
    count: int

    @property
    def range(self) -> float:
        """Largest minus smallest value."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.std:.2g} ({self.low:.4g} to {self.high:.4g}, {self.count} runs)"


def spread(values: Sequence[float]) -> Spread:
    """Summarize the values of repeated runs, such as one accuracy a seed.

    Raises:
        UsageError: fewer than two values, or one that is not finite.
    """
    if len(values) < 2:
        raise UsageError(f"{len(values)} values have no spread: pass two or more.")
    numbers = _finite(values)
    return Spread(fmean(numbers), stdev(numbers), min(numbers), max(numbers), len(numbers))


def t_quantile(alpha: float, freedom: int) -> float:
    """Return the t that Student's distribution exceeds in absolute value with probability `alpha`.

    Args:
        alpha: between 0 and 1.
        freedom: degrees of freedom, at least 1.

    Raises:
        UsageError: an argument is out of range.
    """
    _require_rate(alpha)
    if freedom < 1:
        raise UsageError(f"Student's t has no distribution with {freedom} degrees of freedom: use 1 or more.")
    low, high = 0.0, math.pi / 2
    for _ in range(64):  # halvings: more than a float64 can resolve
        middle = (low + high) / 2
        low, high = (middle, high) if _t_coverage(middle, freedom) < 1 - alpha else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _t_coverage(angle: float, freedom: int) -> float:
    """Return the probability that abs(t) < tan(angle) · sqrt(freedom), for angles from 0 to pi / 2.

    The finite sums for whole degrees of freedom: Abramowitz and Stegun, Handbook of Mathematical
    Functions (1964), 26.7.3 and 26.7.4.
    """
    odd = freedom % 2
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _fair_coin_p_value(heads: int, tails: int) -> float:
    """Return the two-sided exact p-value that a fair coin falls as unevenly; whole numbers, no rounding."""
    tosses = heads + tails
    ways, tail = 1, 0
    for few in range(min(heads, tails) + 1):
        tail += ways
        ways = ways * (tosses - few) // (few + 1)
    return min(1.0, 2 * tail / 2**tosses)


def _word(difference: float, p_value: float, alpha: float) -> Word:
    if p_value > alpha or difference == 0:
        return "no difference"
    return "better" if difference > 0 else "worse"


def _normal_quantile(alpha: float) -> float:
    """Return the z that a standard normal variable exceeds in absolute value with probability `alpha`."""
    _require_rate(alpha)
    return NormalDist().inv_cdf(1 - alpha / 2)


def _require_rate(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise UsageError(f"An error rate of {alpha:g} is out of range: use a value between 0 and 1, such as 0.05.")


def _finite(values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{numbers} are not all finite numbers: leave out or repeat the runs that failed.")
    return numbers
