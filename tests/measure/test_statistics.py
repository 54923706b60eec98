import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from cookbook.errors import UsageError
from cookbook.measure import compare_paired, compare_seeds, spread, wilson_interval
from cookbook.measure.statistics import t_quantile


def answers(both: int, gained: int, lost: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return baseline's and candidate's right answers with these counts, shuffled."""
    pairs = [(True, True)] * both + [(False, True)] * gained + [(True, False)] * lost + [(False, False)] * neither
    order = np.random.default_rng(3).permutation(len(pairs))
    table = torch.tensor(pairs)[torch.from_numpy(order)]
    return table[:, 0], table[:, 1]


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 50), (9480, 10_000), (3, 7)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_interval_is_scipys(hits, total, confidence):
    expected = scipy.stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_never_leaves_the_possible_shares():
    for total in range(1, 300):
        assert wilson_interval(0, total)[0] == 0.0 and wilson_interval(total, total)[1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 0), "0 of 0"), ((3, 2), "3 of 2"), ((-1, 2), "-1 of 2"), ((1, 2, 1.0), "confidence of 1"), ((1, 2, 0), "of 0 is")],
)
def test_wilson_interval_refuses_what_is_no_share(arguments, words):
    with pytest.raises(UsageError, match=words):
        wilson_interval(*arguments)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 9), (7, 1), (12, 12), (30, 51), (400, 300), (700, 900)])
def test_the_paired_p_value_is_the_exact_binomial_test(gained, lost):
    result = compare_paired(*answers(500, gained, lost, 20))
    expected = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert (result.gained, result.lost, result.images) == (gained, lost, 520 + gained + lost)
    assert result.difference == pytest.approx(100 * (gained - lost) / result.images)
    assert result.low <= result.difference <= result.high


def test_a_paired_comparison_ends_in_one_of_three_words():
    assert compare_paired(*answers(900, 40, 10, 50)).word == "better"
    assert compare_paired(*answers(900, 10, 40, 50)).word == "worse"
    assert compare_paired(*answers(900, 25, 25, 50)).word == "no difference"
    small = answers(900, 12, 3, 85)  # p = 0.035
    assert compare_paired(*small).word == "better"
    assert compare_paired(*small, alpha=0.01).word == "no difference"


def test_a_paired_comparison_reads_the_same_from_both_sides():
    baseline, candidate = answers(900, 40, 10, 50)
    there, back = compare_paired(baseline, candidate), compare_paired(candidate, baseline)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p_value == there.p_value
    assert "+3.00 points" in str(there) and "better (40 gained, 10 lost of 1,000)" in str(there)


def test_equal_and_perfect_answers_still_have_an_interval():
    every = torch.ones(50, dtype=torch.bool)
    result = compare_paired(every, every)
    assert (result.difference, result.p_value, result.word) == (0.0, 1.0, "no difference")
    assert result.low < 0 < result.high
    opposite = compare_paired(~every, every)
    assert opposite.difference == opposite.high == 100 and opposite.low > 80


@pytest.mark.parametrize(
    ("images", "gain", "loss", "at_most"),
    [(1000, 0.04, 0.03, 0.96), (300, 0.30, 0.05, 0.955), (400, 0.03, 0.03, 0.96), (1000, 0.005, 0.002, 0.98)],
)
def test_the_paired_interval_covers_the_true_difference_with_95_percent(images, gain, loss, at_most):
    """Sum the probability of every sample whose interval holds the truth; rare disagreements make it cautious."""
    samples = scipy.stats.multinomial(images, [gain, loss, 1 - gain - loss])
    covered = 0.0
    for gained in range(int(images * gain + 6 * math.sqrt(images * gain))):
        losses = np.arange(int(images * loss + 6 * math.sqrt(images * loss)))
        counts = np.stack([np.full(len(losses), gained), losses, images - gained - losses], axis=1)
        for lost, probability in zip(losses, samples.pmf(counts), strict=True):
            if probability > 1e-9:
                index = torch.arange(images)
                result = compare_paired(index < lost, (index >= lost) & (index < lost + gained))
                covered += probability * (result.low <= 100 * (gain - loss) <= result.high)
    assert 0.945 <= covered <= at_most


def test_equal_candidates_are_called_different_in_at_most_alpha_of_the_samples():
    generator = np.random.default_rng(5)
    false_alarms = 0
    for _ in range(1000):
        first, second = torch.from_numpy(generator.random((2, 300)) < 0.9)
        false_alarms += compare_paired(first, second, alpha=0.1).word != "no difference"
    assert 0.04 <= false_alarms / 1000 <= 0.1


@pytest.mark.parametrize(
    ("baseline", "candidate", "alpha", "words"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.bool), 0.05, "baseline_correct must be bool"),
        (torch.ones(3, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool), 0.05, r"candidate_correct .* \(3, 1\)"),
        (torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool), 0.05, "3 and 4 images"),
        (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool), 0.05, "0 and 0 images"),
        (torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), 0.0, "error rate of 0"),
        (torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), 1.0, "error rate of 1"),
    ],
)
def test_a_paired_comparison_refuses_other_things_than_pairs(baseline, candidate, alpha, words):
    with pytest.raises(UsageError, match=words):
        compare_paired(baseline, candidate, alpha=alpha)


@pytest.mark.parametrize("seeds", [3, 4, 5, 8, 21])
@pytest.mark.parametrize("gain", [0.0, 0.1, 1.0])
def test_seeds_are_compared_by_scipys_paired_t_test(seeds, gain):
    generator = np.random.default_rng(seeds)
    baseline = generator.normal(94, 0.5, seeds)
    candidate = baseline + gain + generator.normal(0, 0.2, seeds)
    for alpha in (0.05, 0.01):
        result = compare_seeds(list(baseline), list(candidate), alpha=alpha)
        expected = scipy.stats.ttest_rel(candidate, baseline)
        interval = expected.confidence_interval(1 - alpha)
        assert result.p_value == pytest.approx(expected.pvalue, abs=1e-12)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
        assert result.difference == pytest.approx((candidate - baseline).mean())
        apart = interval.low > 0 or interval.high < 0
        assert (result.word != "no difference") == apart


def test_seeds_end_in_one_of_three_words():
    baseline, better = [94.1, 94.4, 94.2], [95.0, 95.4, 95.1]
    assert compare_seeds(baseline, better).word == "better"
    assert compare_seeds(better, baseline).word == "worse"
    assert compare_seeds(baseline, [94.3, 94.1, 94.4]).word == "no difference"
    cancelled = compare_seeds([67.6, 67.6, 67.0], [68.2, 67.4, 66.6])
    assert cancelled.difference != 0 and str(cancelled).startswith("+0 [-")
    assert str(compare_seeds([0.0] * 3, [1e-30, 1.1e-30, 1.2e-30])).startswith("+1.1e-30 [+")
    same = compare_seeds(baseline, baseline)
    assert (same.difference, same.low, same.high, same.p_value, same.word) == (0, 0, 0, 1, "no difference")
    assert compare_seeds([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).word == "better"
    assert "over 3 seeds" in str(same)


@pytest.mark.parametrize(
    ("baseline", "candidate", "words"),
    [([1, 2], [1, 2], "three seeds"), ([1, 2, 3], [1, 2], "3 and 2"), ([1, 2, math.nan], [1, 2, 3], "finite")],
)
def test_seeds_are_refused_when_they_cannot_be_paired(baseline, candidate, words):
    with pytest.raises(UsageError, match=words):
        compare_seeds(baseline, candidate)


def test_t_quantiles_are_scipys():
    for freedom, alpha in itertools.product((1, 2, 3, 4, 9, 10, 49, 200), (0.5, 0.1, 0.05, 0.001)):
        assert t_quantile(alpha, freedom) == pytest.approx(scipy.stats.t.isf(alpha / 2, freedom), rel=1e-9)
    with pytest.raises(UsageError, match="0 degrees"):
        t_quantile(0.05, 0)


def test_spread_is_numpys():
    values = [94.81, 94.62, 95.07, 94.9]
    result = spread(values)
    assert (result.mean, result.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (result.low, result.high, result.count) == (94.62, 95.07, 4)
    assert result.range == pytest.approx(0.45)
    with pytest.raises(UsageError, match="1 values have no spread"):
        spread([1.0])
    with pytest.raises(UsageError, match="finite"):
        spread([1.0, math.inf])
