"""Front and hypervolume agree with brute force, and with Optuna's own."""

from __future__ import annotations

import itertools
import random

import numpy as np
import optuna
import pytest
from tiny_space import SPACE

from cookbook.errors import UsageError
from cookbook.search import Score, SearchResult, SearchTrial, front, hypervolume, hypervolumes
from cookbook.search.scores import gained

STEPS = 20  # of the grid on which every score lies, so that cells can be counted


def drawn(seed: int, count: int = 12) -> list[Score]:
    generator = random.Random(seed)
    return [Score(generator.randint(0, STEPS) / STEPS, generator.randint(1, STEPS + 4) / STEPS) for _ in range(count)]


def cells(scores: list[Score], reference: Score) -> float:
    """Return the area by counting the cells of the grid whose corner some score dominates."""
    hit = 0
    for column, row in itertools.product(range(STEPS + 8), range(STEPS)):
        latency, accuracy = (column + 0.5) / STEPS, (row + 0.5) / STEPS
        inside = latency < reference.latency and accuracy > reference.accuracy
        hit += inside and any(score.latency <= latency and score.accuracy >= accuracy for score in scores)
    return hit / STEPS**2


@pytest.mark.parametrize("seed", range(12))
def test_the_hypervolume_is_the_area_counted_cell_by_cell(seed: int) -> None:
    scores = drawn(seed)
    for reference in (Score(0.0, 1.0), Score(0.25, 0.75)):
        assert hypervolume(scores, reference) == pytest.approx(cells(scores, reference), abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_the_front_is_what_nothing_beats(seed: int) -> None:
    scores = drawn(seed)

    def beaten(score: Score) -> bool:
        return any(other.accuracy >= score.accuracy and other.latency <= score.latency and other != score for other in scores)

    found = [scores[place] for place in front(scores)]
    assert found == sorted({score for score in scores if not beaten(score)}, key=lambda score: score.latency)


def test_the_front_is_optunas() -> None:
    scores = drawn(5, 30)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for score in scores:
        study.add_trial(optuna.trial.create_trial(values=[score.accuracy, score.latency]))
    best = {tuple(trial.values) for trial in study.best_trials}
    assert {(scores[place].accuracy, scores[place].latency) for place in front(scores)} == best


def test_the_hypervolume_grows_only_by_scores_that_nothing_beats() -> None:
    scores = drawn(3, 25)
    volumes = hypervolumes(scores)
    assert volumes == [hypervolume(scores[: count + 1]) for count in range(25)]
    assert np.all(np.diff(volumes) >= -1e-12)
    better = [score for score in scores if score.latency < 1 and score.accuracy > 0]
    assert hypervolume(better) == pytest.approx(volumes[-1]) and hypervolume([]) == 0
    assert gained([Score(0.5, 0.5), Score(0.4, 0.6), Score(0.6, 0.5)], 1)
    assert not gained([Score(0.5, 0.5), Score(0.6, 0.5), Score(0.4, 0.6), Score(0.5, 1.5)], 2)


def test_a_result_counts_repeated_proposals_once() -> None:
    networks = list(SPACE.candidates())[:3]
    scores = [Score(0.5, 0.5), Score(0.4, 0.4), Score(0.3, 0.6)]
    trials = [SearchTrial(number, networks[number], scores[number]) for number in range(3)]
    repeated = SearchTrial(3, networks[0], scores[0], repeated=True)
    result = SearchResult("name", "tpe", 0, (*trials, repeated), Score(0.0, 1.0), "all trials")
    assert result.evaluations == len(result.history) == 3
    assert [trial.number for trial in result.front] == [1, 0]
    assert result.best_within(0.45).number == 1 and result.best_within(9).number == 0
    assert result.hypervolume == pytest.approx(0.1 * 0.4 + 0.5 * 0.5)
    assert "3 networks evaluated" in str(result) and str(networks[1]) in str(result)
    with pytest.raises(UsageError, match=r"fastest takes 0\.400"):
        result.best_within(0.39)
    with pytest.raises(UsageError, match="there is no trial"):
        SearchResult("name", "tpe", 0, (), Score(0.0, 1.0), "time").best_within(1)


@pytest.mark.parametrize(("accuracy", "latency"), [(1.1, 1), (-0.1, 1), (0.5, 0), (0.5, float("inf")), (float("nan"), 1)])
def test_what_is_no_score_is_refused(accuracy: float, latency: float) -> None:
    with pytest.raises(UsageError, match="are no score"):
        Score(accuracy, latency)
