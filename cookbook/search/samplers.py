"""Optuna's samplers, seeded trial by trial, so that a resumed study goes on as if it had never stopped (lesson 09)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cookbook.environment import derive_seed
from cookbook.errors import UsageError

SamplerName = Literal["tpe", "evolutionary", "random"]


def make_sampler(name: SamplerName, seed: int, initial: int) -> BaseSampler:
    """Return Optuna's sampler of this kind.

    Args:
        name: ``tpe``, the tree-structured Parzen estimator for several objectives (Ozaki et al., GECCO 2020,
            doi 10.1145/3377930.3389817); ``evolutionary``, NSGA-II (Deb et al., IEEE Transactions on Evolutionary Computation
            6, 2002, 182–197); ``random``, the control.
        seed: of its random numbers.
        initial: random trials before the estimator begins; the population of the evolution.

    Raises:
        UsageError: there is no such sampler.
    """
    if name not in get_args(SamplerName):
        raise UsageError(f"The sampler is {name!r}: use one of {', '.join(get_args(SamplerName))}.")
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=initial)
    return RandomSampler(seed=seed) if name == "random" else NSGAIISampler(seed=seed, population_size=initial)


class TrialSeededSampler(BaseSampler):
    """A sampler that starts each trial with random numbers of its own, from the seed and the trial's position.

    What it proposes then depends on the finished trials in the storage alone, and not on what this process drew before.

    Args:
        name: see `make_sampler`, as for `initial`.
        seed: of the study.
    """

    def __init__(self, name: SamplerName, seed: int, initial: int) -> None:
        self.name, self.seed, self.initial = name, seed, initial
        self._inner = make_sampler(name, 0, initial)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin anew, with the seed of this trial's position."""
        seed = derive_seed(self.seed, position(study, trial)) % 2**32
        self._inner = make_sampler(self.name, seed, self.initial)
        self._inner.before_trial(study, trial)
        if isinstance(self._inner, NSGAIISampler):
            # whoever asks first gets the parents in another order than those who ask later: let no trial be the first
            self._inner.get_parent_population(study, self._inner.get_trial_generation(study, trial))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Hand on to the sampler inside."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Hand on to the sampler inside."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Hand on to the sampler inside."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Hand on to the sampler inside."""
        self._inner.after_trial(study, trial, state, values)


def position(study: Study, trial: FrozenTrial) -> int:
    """Return how many trials before this one are finished or running: a failed one leaves its place to another."""
    return sum(other.number < trial.number and other.state != TrialState.FAIL for other in study.get_trials(deepcopy=False))
