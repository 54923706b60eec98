"""A study is resumed where it stopped, shared by processes, and refuses what is not its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tiny_space import SPACE, score

from cookbook.errors import CheckpointError, UsageError
from cookbook.search import Candidate, Score, SearchResult, SearchSpace, SearchTrial, search
from cookbook.search.samplers import SamplerName

SAMPLERS: tuple[SamplerName, ...] = ("tpe", "evolutionary", "random")


class Stops:
    """Scores as `score` does, and stops with an error at its n-th call."""

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, candidate: Candidate) -> Score:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return score(candidate)

    def describe(self) -> str:
        return "the same in every session"


def proposals(result: SearchResult) -> list[tuple[Candidate, Score, bool]]:
    return [(trial.candidate, trial.score, trial.repeated) for trial in result.trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_study_ends_as_an_undisturbed_one(sampler: SamplerName) -> None:
    storage = optuna.storages.InMemoryStorage()
    settings: dict[str, Any] = {"sampler": sampler, "seed": 4, "initial": 4}
    undisturbed = search(SPACE, Stops(0), trials=14, **settings)
    for at in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            search(SPACE, Stops(at), trials=14, storage=storage, **settings)
    resumed = search(SPACE, Stops(0), trials=14, storage=storage, **settings)
    assert proposals(resumed) == proposals(undisturbed)
    assert resumed.history == undisturbed.history and resumed.evaluations == 14
    states = [trial.state for trial in optuna.load_study(study_name="search", storage=storage).trials]
    assert states.count(TrialState.FAIL) == 2 and TrialState.RUNNING not in states


def test_seeds_and_samplers_differ_and_the_same_call_repeats_itself() -> None:
    runs = {
        (sampler, seed): proposals(search(SPACE, score, trials=12, sampler=sampler, seed=seed, initial=4))
        for sampler in SAMPLERS for seed in (0, 1)
    }  # fmt: skip
    assert len({tuple(run) for run in runs.values()}) == 6
    assert proposals(search(SPACE, score, trials=12, seed=1, initial=4)) == runs["tpe", 1]


def test_the_learning_samplers_end_nearer_to_the_true_front_than_chance() -> None:
    def total(sampler: SamplerName) -> float:
        return sum(search(SPACE, score, trials=24, sampler=sampler, seed=seed, initial=6).hypervolume for seed in range(3))

    control = total("random")
    assert total("evolutionary") > control and total("tpe") > control


def test_a_file_keeps_the_study_and_a_network_is_scored_once(tmp_path: Path) -> None:
    seen: list[Candidate] = []

    def evaluate(candidate: Candidate) -> Score:
        seen.append(candidate)
        return score(candidate)

    told: list[SearchTrial] = []
    first = search(SPACE, evaluate, trials=2, initial=2, storage=tmp_path / "deeper" / "study.db", on_trial=told.append)
    assert first.evaluations == 2 and told == list(first.trials)
    again = search(SPACE, evaluate, trials=4, initial=2, storage=tmp_path / "deeper" / "study.db")
    assert proposals(again)[: len(first.trials)] == proposals(first)
    assert again.evaluations == 4 == len(seen) == len(set(seen))


def test_a_space_that_is_used_up_ends_the_search() -> None:
    space = SearchSpace(depths=(8,), widths=((4, 8), (8,), (16,)))
    evaluate = Stops(0)
    result = search(space, evaluate, trials=10, sampler="random")
    assert (result.evaluations, evaluate.calls, result.ending) == (2, 2, "nothing new")
    assert len(result.history) == 2 and sum(trial.repeated for trial in result.trials) >= 50


def test_it_stops_when_nothing_is_gained_or_the_time_is_over() -> None:
    flat = search(SPACE, lambda candidate: Score(0.5, 0.5), trials=50, patience=5)
    assert (flat.ending, flat.evaluations) == ("no gain", 6)
    late = search(SPACE, score, trials=50, time_limit=1e-9)
    assert (late.ending, late.evaluations) == ("time", 0)
    assert search(SPACE, score, trials=5, patience=5).ending == "all trials"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"space": SearchSpace(depths=(8, 14))}, "space"),
        ({"evaluate": lambda candidate: Score(0.5, 0.5)}, "evaluation"),
        ({"sampler": "random"}, "sampler"),
        ({"seed": 1}, "seed"),
        ({"initial": 3}, "initial"),
    ],
)
def test_a_study_of_another_search_is_refused(changed: dict[str, Any], named: str) -> None:
    storage = optuna.storages.InMemoryStorage()
    call: dict[str, Any] = {"space": SPACE, "evaluate": score, "trials": 2, "storage": storage, "initial": 2}
    search(**call)
    with pytest.raises(CheckpointError, match=f"another {named}"):
        search(**{**call, **changed})


def test_a_study_that_others_made_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="search", directions=["maximize", "minimize"])
    study.tell(study.ask(), (0.5, 0.5))
    with pytest.raises(CheckpointError, match="not made by"):
        search(SPACE, score, trials=2, storage=storage)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"initial": 0}, "initial is 0"),
        ({"initial": 1, "sampler": "evolutionary"}, "no pairs"),
        ({"sampler": "annealing"}, "tpe, evolutionary, random"),
        ({"time_limit": 0}, "positive seconds"),
        ({"name": ""}, "no name"),
        ({"storage": "nonsense://somewhere/secret"}, r"nonsense://… cannot be opened"),
        ({"evaluate": lambda candidate: 0.5}, "return a Score"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        search(**{"space": SPACE, "evaluate": score, "trials": 2, **wrong})
    assert "secret" not in str(caught.value)


def test_a_folder_and_a_damaged_file_are_no_storage(tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_bytes(b"no database at all" * 100)
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "damaged.db", "cannot be opened")):
        with pytest.raises(UsageError, match=words):
            search(SPACE, score, trials=2, storage=path)


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_study import shared_search
shared_search(sys.argv[2])
"""


def shared_search(folder: str) -> SearchResult:
    """Search in a folder's file as another process may do at the same time, and log every network that is scored."""

    def evaluate(candidate: Candidate) -> Score:
        with Path(folder, "log.txt").open("a") as log:
            log.write(f"{os.getpid()} {candidate.to_json()}\n")
        time.sleep(0.05)
        return score(candidate)

    evaluate.__module__ = "shared"
    return search(SPACE, evaluate, trials=9, storage=Path(folder, "study.db"), sampler="random")


@pytest.mark.timeout(600)
def test_two_processes_share_a_file_and_do_the_total_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        while not (tmp_path / "log.txt").exists() and other.poll() is None:
            time.sleep(0.02)
        ours = shared_search(str(tmp_path))
        _, words = other.communicate(timeout=300)
    assert other.returncode == 0, words
    lines = [line.split(" ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert len({process for process, _ in lines}) == 2  # both worked
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{(tmp_path / 'study.db').as_posix()}")
    done = [t for t in study.trials if t.state == TrialState.COMPLETE and "repeats" not in t.user_attrs]
    assert len(done) == len(lines) == 9 and len(ours.trials) >= 8
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


def test_a_trial_whose_process_is_gone_is_given_up_and_done_again() -> None:
    storage = optuna.storages.InMemoryStorage()
    undisturbed = search(SPACE, score, trials=3)
    search(SPACE, score, trials=2, storage=storage)
    study = optuna.load_study(study_name="search", storage=storage)
    dead = {"host": platform.node(), "pid": os.getpid(), "started": 0.0}  # the number belongs to another process now
    study.ask().set_user_attr("worker", dead)
    assert proposals(search(SPACE, score, trials=3, storage=storage)) == proposals(undisturbed)


def test_an_old_trial_of_a_machine_that_went_away_is_given_up() -> None:
    storage = optuna.storages.InMemoryStorage()
    search(SPACE, score, trials=2, storage=storage)
    study = optuna.load_study(study_name="search", storage=storage)
    study.ask().set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
    assert search(SPACE, score, trials=3, storage=storage).evaluations == 2  # it may still be at work
    time.sleep(0.02)
    assert search(SPACE, score, trials=3, storage=storage, abandoned_after=0.01).evaluations == 3
