"""What a search found, as plain data (lesson 09)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cookbook.errors import UsageError
from cookbook.search.scores import Score, front, hypervolume, hypervolumes
from cookbook.search.space import Candidate

Ending = Literal["all trials", "no gain", "nothing new", "time"]


@dataclass(frozen=True)
class SearchTrial:
    """One proposal of the sampler, and what it was worth.

    Attributes:
        number: in the study; failed trials leave gaps.
        candidate: the network.
        score: what it was worth.
        repeated: an earlier trial proposed the same network, whose score was taken.
    """

    number: int
    candidate: Candidate
    score: Score
    repeated: bool = False


@dataclass(frozen=True)
class SearchResult:
    """All finished trials of a study, those of other processes and of earlier sessions included.

    Attributes:
        name: of the study.
        sampler: that proposed the trials.
        seed: of the sampler.
        trials: in the order of their numbers.
        reference: the corner from which the hypervolume is measured.
        ending: why it ended: ``all trials`` were done, the last ones brought ``no gain``, the sampler proposed
            ``nothing new``, or the ``time`` was over.
    """

    name: str
    sampler: str
    seed: int
    trials: tuple[SearchTrial, ...]
    reference: Score
    ending: Ending

    @property
    def scores(self) -> list[Score]:
        """The scores in the order of the trials."""
        return [trial.score for trial in self.trials]

    @property
    def front(self) -> tuple[SearchTrial, ...]:
        """The trials that no other beats in both objectives, the fastest first (Pareto front)."""
        return tuple(self.trials[place] for place in front(self.scores))

    @property
    def hypervolume(self) -> float:
        """The area between the front and the reference; see `cookbook.search.hypervolume`."""
        return hypervolume(self.scores, self.reference)

    @property
    def history(self) -> list[float]:
        """The hypervolume after each evaluated network."""
        return hypervolumes([trial.score for trial in self.trials if not trial.repeated], self.reference)

    @property
    def evaluations(self) -> int:
        """Number of networks that were evaluated; a repeated proposal costs none."""
        return sum(not trial.repeated for trial in self.trials)

    def best_within(self, latency: float) -> SearchTrial:
        """Return the most accurate trial that takes at most this latency.

        Raises:
            UsageError: no trial is that fast.
        """
        fitting = [trial for trial in self.front if trial.score.latency <= latency]
        if not fitting:
            least = f"the fastest takes {self.front[0].score.latency:.3f}" if self.trials else "there is no trial"
            raise UsageError(f"No trial keeps a latency of {latency:.3f}; {least}: allow more, or search on.")
        return fitting[-1]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {len(self.trials)} trials of {self.sampler} (seed {self.seed}), {self.evaluations} networks "
            f"evaluated (ended: {self.ending}), hypervolume {self.hypervolume:.4f}",
            "latency  accuracy  network",
        ]
        lines += [f"{trial.score.latency:7.3f}  {trial.score.accuracy:8.2%}  {trial.candidate}" for trial in self.front]
        return "\n".join(lines)
