"""What the long search experiment trains, searches and keeps: its plan, its scores, its networks, resumable (lesson 09)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from cookbook.data import Augmentation, ResidentLoader, load_fashion_mnist
from cookbook.environment import seed_everything
from cookbook.errors import EvidenceError
from cookbook.experiments.command import FixedPlan, KeepsNetworks, Task, part_of
from cookbook.files import atomic_path
from cookbook.models import build, load, save
from cookbook.models.registry import config_from_json, config_to_json
from cookbook.precision import PrecisionName
from cookbook.search import (
    Candidate,
    Evaluate,
    RelativeLatency,
    SamplerName,
    Score,
    SearchResult,
    SearchSpace,
    SharedWeights,
    SuperNet,
    search,
    train_supernet,
)
from cookbook.training import Recipe, fit

SAMPLERS: tuple[SamplerName, ...] = ("random", "evolutionary", "tpe")
AUGMENTATION = Augmentation(crop=2, flip=True)
SPACE = SearchSpace(depths=(8, 14), widths=((8, 12, 16), (8, 16, 24, 32), (16, 32, 48, 64)), pruning=(0.0, 0.5))
SEARCHED, HAND = "searched", "hand"


@dataclass(frozen=True, kw_only=True)
class Plan(FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        space: what can be chosen.
        images: training images.
        supernet: recipe of the shared weights.
        drawn: networks drawn in each of its steps.
        statistics: training images for BatchNorm's statistics of a part.
        trials: networks of each search.
        initial: of them at random.
        search_seeds: of each sampler.
        limit: on the latency, as a share of the largest network's.
        widths: of the uniform family.
        alone: recipe of the winners and of the hand-made network.
        seeds: of these trainings; as many winners are trained.
        sampled: networks for the rank correlation of operations and latency.
        rounds: samples of every latency.
        batch_size: images per step.
        tested: images of validation and of test each; None: all.
    """

    space: SearchSpace = SPACE
    images: int = 55_000
    supernet: Recipe = field(default_factory=lambda: Recipe(epochs=6, learning_rate=0.1, weight_decay=1e-4))
    drawn: int = 2
    statistics: int = 5_000
    trials: int = 40
    initial: int = 10
    search_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    limit: float = 0.4
    widths: tuple[int, ...] = tuple(range(4, 17))
    alone: Recipe = field(default_factory=lambda: Recipe(epochs=10, learning_rate=0.1, weight_decay=1e-4))
    seeds: tuple[int, ...] = (0, 1, 2)
    sampled: int = 60
    rounds: int = 30
    batch_size: int = 128
    tested: int | None = None


REHEARSAL = Plan(
    images=400, supernet=Recipe(epochs=1, learning_rate=0.05), drawn=1, statistics=100, trials=4, initial=2,
    search_seeds=(0, 1, 2), widths=(4, 8), alone=Recipe(epochs=1, learning_rate=0.05), sampled=4, rounds=3, batch_size=20,
    tested=500,
)  # fmt: skip


def with_precision(plan: Plan, precision: PrecisionName) -> Plan:
    """Return the plan with this precision in all of its trainings."""
    return replace(plan, supernet=replace(plan.supernet, precision=precision), alone=replace(plan.alone, precision=precision))


class Remembered:
    """Scores that are kept in a file: a network is scored once for all searches and all sessions.

    Args:
        evaluate: scores what the file does not know.
        file: JSON; it is made when it is missing.
    """

    def __init__(self, evaluate: Evaluate, file: Path) -> None:
        self.evaluate, self.file = evaluate, file
        self.known: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, candidate: Candidate) -> Score:
        """Return the score, from the file if it is there."""
        key = json.dumps([config_to_json(candidate.config), candidate.weight_bits])
        if key not in self.known:
            score = self.evaluate(candidate)
            self.known[key] = [score.accuracy, score.latency]
            with atomic_path(self.file) as temporary:
                temporary.write_text(json.dumps(self.known))
        return Score(*self.known[key])

    def describe(self) -> dict[str, object]:
        """Return what identifies the scores."""
        return self.evaluate.describe()  # type: ignore[attr-defined]


class Experiment(KeepsNetworks):
    """A plan with its data and its folder.

    Args:
        plan: what is done.
        folder: for everything that is trained and found; one sub-folder a plan.
        clock: tells a candidate's latency as a share of the largest's; None: a `RelativeLatency`.
    """

    def __init__(self, plan: Plan, folder: Path, *, clock: RelativeLatency | None = None) -> None:
        self.plan, self.folder = plan, folder / plan.digest()
        whole = load_fashion_mnist()
        self.splits = part_of(whole, plan.images, plan.tested)
        self.example = whole.train.normalized()[:1]
        self.clock = clock

    def supernet(self) -> SuperNet:
        """Return the supernet, trained, or trained on from where it was interrupted."""
        plan, file = self.plan, self.folder / "supernet.safetensors"
        seed_everything(plan.supernet.seed)
        supernet = SuperNet(plan.space)
        if not file.exists():
            loader = ResidentLoader(self.splits.train, plan.batch_size, augmentation=AUGMENTATION)
            train_supernet(supernet, loader, plan.supernet, drawn=plan.drawn, checkpoint=self.folder / "supernet.state")
            save(supernet.network, file)
        supernet.network.load_state_dict(load(file).state_dict())
        return supernet

    @functools.cached_property
    def score(self) -> Remembered:
        """What scores candidates: shared weights on validation, and measured latency."""
        plan = self.plan
        clock = self.clock or RelativeLatency(plan.space, self.example, rounds=plan.rounds)
        statistics = ResidentLoader(self.splits.train.subset(plan.statistics), min(250, plan.statistics))
        judged = self.splits.validation
        shared = SharedWeights(self.supernet(), clock, statistics, ResidentLoader(judged, min(250, len(judged))))
        return Remembered(shared, self.folder / "scores.json")

    def results(self, score: Remembered) -> dict[str, list[SearchResult]]:
        """Return the searches of every sampler, seed by seed; those that were interrupted go on."""
        plan = self.plan
        return {
            sampler: [
                search(
                    plan.space, score, trials=plan.trials, initial=plan.initial, sampler=sampler, seed=seed,
                    storage=self.folder / f"{sampler}-{seed}.db",
                )
                for seed in plan.search_seeds
            ]
            for sampler in SAMPLERS
        }  # fmt: skip

    def by_hand(self, score: Remembered) -> Candidate:
        """Return the uniform network that a designer would take: of each depth's slowest within the limit, the better one."""
        plan = self.plan
        families = [[plan.space.uniform(depth, width) for width in plan.widths] for depth in plan.space.depths]
        fitting = [[one for one in family if score(one).latency <= plan.limit] for family in families]
        slowest = [max(family, key=lambda one: score(one).latency) for family in fitting if family]
        if not slowest:
            raise EvidenceError(f"No network of the uniform family keeps {plan.limit:g} of the latency: allow more.")
        return max(slowest, key=lambda one: score(one).accuracy)

    def choose(self) -> dict[str, list[SearchResult]]:
        """Search, and keep which networks are trained alone."""
        found, plan, score = self.results(self.score), self.plan, self.score
        chosen = {
            Task(SEARCHED, seed).name: found["tpe"][at].best_within(plan.limit).candidate for at, seed in enumerate(plan.seeds)
        }
        chosen |= {Task(HAND, seed).name: self.by_hand(score) for seed in plan.seeds}
        with atomic_path(self.folder / "chosen.json") as temporary:
            temporary.write_text(json.dumps({name: config_to_json(one.config) for name, one in chosen.items()}))
        return found

    def tasks(self) -> list[Task]:
        """Return the trainings from fresh weights."""
        return [Task(arm, seed) for arm in (SEARCHED, HAND) for seed in self.plan.seeds]

    def candidate(self, task: Task) -> Candidate:
        """Return the network that a task trains.

        Raises:
            EvidenceError: the search was not done yet.
        """
        file = self.folder / "chosen.json"
        if not file.exists():
            raise EvidenceError(f"{task.name} was not chosen yet: run the experiment again, it goes on with the search.")
        return Candidate(config_from_json(json.loads(file.read_text())[task.name]))

    def train(self, task: Task) -> None:
        """Train one network from fresh weights, or go on where it was interrupted, and write it."""
        if self.file(task).exists():
            return
        plan, state = self.plan, self.folder / f"{task.name}.state"
        seed_everything(task.seed)
        network = build(self.candidate(task).config)
        loader = ResidentLoader(self.splits.train, plan.batch_size, augmentation=AUGMENTATION, seed=task.seed)
        fit(network, loader, replace(plan.alone, seed=task.seed), checkpoint=state)
        save(network, self.file(task))
        state.unlink()
        print(f"{task.name}: trained", flush=True)
