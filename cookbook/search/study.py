"""The search: a sampler proposes networks, an evaluation scores them, a study keeps both (lesson 09)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.search.result import Ending, SearchResult, SearchTrial
from cookbook.search.samplers import SamplerName, TrialSeededSampler
from cookbook.search.scores import REFERENCE, Score, gained
from cookbook.search.space import Candidate, SearchSpace
from cookbook.search.storage import WORKER, Storage, opened_study, release_abandoned, this_worker

Evaluate = Callable[[Candidate], Score]
"""Scores a candidate. Its `describe()`, where it has one, returns JSON types that say what the scores mean."""

CANDIDATE, REPEATS = "candidate", "repeats"  # names of what is noted with a trial
REPEATS_IN_A_ROW = 50  # after which the sampler is taken to know nothing new


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    *,
    trials: int,
    sampler: SamplerName = "tpe",
    storage: Storage = None,
    name: str = "search",
    seed: int = 0,
    initial: int = 10,
    patience: int | None = None,
    time_limit: float | None = None,
    reference: Score = REFERENCE,
    abandoned_after: float = 3600.0,
    on_trial: Callable[[SearchTrial], object] | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Look for networks of high accuracy and low latency; return all trials and their front.

    With a storage, the search can be stopped at any moment: the same call goes on where it was, and with one process
    ends with the same trials as an undisturbed search, if the evaluation gives the same scores. Several processes, on
    one machine or on many, that make the same call with the same storage share the study: together they evaluate
    `trials` networks. A network that is proposed again is not evaluated again and does not count.

    Args:
        space: what can be chosen.
        evaluate: scores a candidate, such as `SharedWeights`; choose on validation, never on test.
        trials: networks to evaluate, in all processes and sessions of the study together.
        sampler: ``tpe``, ``evolutionary`` (NSGA-II) or ``random``, which is the control.
        storage: None: memory; a path: an SQLite file; or a URL of a database that machines share. See `open_storage`.
        name: of the study in the storage.
        seed: of the proposals.
        initial: random trials before ``tpe`` begins to learn, or the population of ``evolutionary``.
        patience: stop when so many networks in a row did not enlarge the hypervolume; None: do all trials.
        time_limit: seconds of this call after which no trial begins; None: no limit.
        reference: from which the hypervolume is measured; not part of what the samplers see.
        abandoned_after: seconds after which another machine's unfinished trial is given up. One of this machine is
            given up as soon as its process is gone.
        on_trial: called with each trial that this process finished, repeated ones included.
        progress: show a bar; None decides by terminal, JupyterLab and CI.

    Raises:
        UsageError: a number is out of range, there is no such sampler, or the storage cannot be opened.
        CheckpointError: the study belongs to another space, evaluation, sampler or seed.
        KeyboardInterrupt: Ctrl-C, after the trial was marked as failed; the same call tries it anew. So does any error
            of `evaluate`, which is passed on.
    """
    for label, count in (("trials", trials), ("initial", initial), ("patience", 1 if patience is None else patience)):
        if count < 1:
            raise UsageError(f"{label} is {count}: use 1 or more.")
    if sampler == "evolutionary" and initial < 2:
        raise UsageError("A population of 1 has no pairs of parents: use initial=2 or more for the evolutionary sampler.")
    if (time_limit is not None and not time_limit > 0) or not abandoned_after > 0:
        raise UsageError(f"time_limit is {time_limit} and abandoned_after is {abandoned_after}: use positive seconds.")
    started = time.monotonic()
    identity = {
        "space": space.to_dict(), "evaluation": _description(evaluate), "sampler": sampler, "initial": initial, "seed": seed
    }  # fmt: skip
    with opened_study(storage, name, TrialSeededSampler(sampler, seed, initial), identity) as study:
        release_abandoned(study, abandoned_after)
        ending: Ending = "all trials"
        with progress_bar("searching", trials, done=min(trials, _counted(study)), show=progress) as advance:
            while _counted(study) < trials:
                known = _finished(study)
                scores = [trial.score for trial in known if not trial.repeated]
                if time_limit is not None and time.monotonic() - started >= time_limit:
                    ending = "time"
                elif patience is not None and len(scores) > patience and not gained(scores, patience, reference):
                    ending = "no gain"
                elif len(known) >= REPEATS_IN_A_ROW and all(trial.repeated for trial in known[-REPEATS_IN_A_ROW:]):
                    ending = "nothing new"
                if ending != "all trials":
                    break
                trial = _one_trial(study, space, evaluate, trials)
                if trial is None:
                    break
                if not trial.repeated:
                    advance(f"{trial.score.accuracy:.1%} at {trial.score.latency:.2f}")
                if on_trial is not None:
                    on_trial(trial)
        return SearchResult(name, sampler, seed, tuple(_finished(study)), reference, ending)


def _one_trial(study: Study, space: SearchSpace, evaluate: Evaluate, trials: int) -> SearchTrial | None:
    """Propose, score and store; None where another process began the last trial at the same moment."""
    trial = study.ask()
    try:
        trial.set_user_attr(WORKER, this_worker())
        if _counted(study, trial.number) >= trials:
            study.tell(trial, state=TrialState.FAIL)
            return None
        candidate = space.sample(trial)
        trial.set_user_attr(CANDIDATE, candidate.to_json())
        earlier = next((known for known in _finished(study) if known.candidate == candidate), None)
        if earlier is not None:
            trial.set_user_attr(REPEATS, earlier.number)
        score = evaluate(candidate) if earlier is None else earlier.score
        if not isinstance(score, Score):
            raise UsageError(f"The evaluation returned {score!r} for {candidate}: return a Score(accuracy, latency).")
        study.tell(trial, (score.accuracy, score.latency), skip_if_finished=True)
    except BaseException:  # Ctrl-C too: no trial stays open behind this process
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    return SearchTrial(trial.number, candidate, score, earlier is not None)


def _counted(study: Study, before: int | None = None) -> int:
    """Return the trials, up to a number, that are or will be evaluations."""
    return sum(
        trial.state != TrialState.FAIL and REPEATS not in trial.user_attrs
        for trial in study.get_trials(deepcopy=False)
        if before is None or trial.number < before
    )


def _finished(study: Study) -> list[SearchTrial]:
    return [_read(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]


def _read(trial: FrozenTrial) -> SearchTrial:
    accuracy, latency = trial.values
    attributes = trial.user_attrs
    return SearchTrial(
        trial.number, Candidate.from_json(attributes[CANDIDATE]), Score(accuracy, latency), REPEATS in attributes
    )


def _description(evaluate: Evaluate) -> Any:
    describe = getattr(evaluate, "describe", None)
    if describe is not None:
        return describe()
    return f"{getattr(evaluate, '__module__', '')}.{getattr(evaluate, '__qualname__', type(evaluate).__qualname__)}"
