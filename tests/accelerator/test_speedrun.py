"""A speedrun is `fit`; a warm-up and the runs before leave no trace; choices are made on validation."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from cookbook.accelerator import SPEEDRUN, Setting, Speedrun, choose, speedrun
from cookbook.accelerator.setting import REHEARSAL, TINY
from cookbook.accelerator.speedrun import Run, Track, candidates, cold_start, headline, record_speedrun
from cookbook.data import Augmentation, ResidentLoader, Role, Split, Splits
from cookbook.environment import seed_everything
from cookbook.errors import CookbookError, UsageError
from cookbook.models import build
from cookbook.training import Evaluation, Recipe, evaluate, fit

CPU = torch.device("cpu")


def noisy(count: int, role: Role, seed: int) -> Split:
    """Return grey 8×8 images of ten classes that differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
    return Split((noise + 19 * labels.view(-1, 1, 1, 1)).byte(), labels, role, tuple("abcdefghij"), (0.45,), (0.3,))


@pytest.fixture
def setting() -> Setting:
    small = Setting(CPU, REHEARSAL)
    vars(small)["splits"] = Splits(noisy(40, "train", 1), noisy(20, "validation", 2), noisy(30, "test", 3))
    return small


SMALL = Speedrun(
    model=TINY, batch_size=20, compile=False, augmentation=Augmentation(crop=1, flip=True),
    recipe=Recipe(epochs=2, learning_rate=0.05, label_smoothing=0.1, precision="bf16", channels_last=True),
)  # fmt: skip


def test_a_run_after_warm_up_and_others_is_a_fit_from_new_weights(setting: Setting) -> None:
    track = Track(SMALL, setting.splits.train, CPU)
    track.warm_up()
    track.run(4, setting.splits.validation)
    run = track.run(3, setting.splits.test)

    seed_everything(3)
    model = build(TINY)
    loader = ResidentLoader(setting.splits.train, 20, augmentation=SMALL.augmentation, seed=3)
    fit(model, loader, replace(SMALL.recipe, seed=3), progress=False)
    expected = evaluate(model, ResidentLoader(setting.splits.test, 30))
    trained = track.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert torch.equal(run.evaluation.predictions, expected.predictions)
    assert (run.seed, run.evaluation.role) == (3, "test")
    assert run.seconds > 0


def test_the_warm_up_sees_no_image_of_the_data(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Split] = []
    track = Track(SMALL, setting.splits.train, CPU)
    monkeypatch.setattr(track, "_fit", lambda images, seed: seen.append(images))
    track.warm_up()
    (pictures,) = seen
    assert len(pictures) == 3 * SMALL.batch_size
    assert pictures.images.shape[1:] == setting.splits.train.images.shape[1:]
    known = {tuple(image.flatten().tolist()) for image in setting.splits.train.images}
    assert known.isdisjoint(tuple(image.flatten().tolist()) for image in pictures.images)


def scored(seed: int, seconds: float, hits: int, role: Role = "validation") -> Run:
    labels = torch.zeros(100, dtype=torch.int64)
    return Run(seed, seconds, Evaluation(role, (torch.arange(100) >= hits).long(), labels, 1.0))


def offer(results: Sequence[tuple[int, float]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Speedrun], list[Role]]:
    """Return candidates by epochs 1, 2, …, whose runs end with these hits of 100 and seconds."""
    asked: list[Role] = []

    class Told:
        def __init__(self, candidate: Speedrun, train: Split, device: torch.device) -> None:
            self.hits, self.seconds = results[candidate.recipe.epochs - 1]

        def warm_up(self) -> None:
            pass

        def run(self, seed: int, judged_on: Split) -> Run:
            asked.append(judged_on.role)
            return scored(seed, self.seconds, self.hits)

    monkeypatch.setattr(speedrun, "Track", Told)
    return [replace(SMALL, recipe=replace(SMALL.recipe, epochs=number + 1)) for number in range(len(results))], asked


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        ([(95, 3.0), (94, 2.0), (93, 1.0)], 1),  # the fastest that reaches the target
        ([(90, 1.0), (93, 9.0), (92, 2.0)], 1),  # none reaches it: the most accurate
        ([(99, 5.0)], 0),
    ],
)
def test_the_fastest_that_reaches_the_target_is_chosen(
    results: list[tuple[int, float]], chosen: int, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered, asked = offer(results, monkeypatch)
    found, rows = choose(offered, setting, seeds=(8, 9), target=0.94)
    assert found is offered[chosen]
    assert set(asked) == {"validation"}
    assert [(row.split, row.correct, row.images, row.values["training_seconds_mean"]) for row in rows] == [
        ("validation", 2 * hits, 200, seconds) for hits, seconds in results
    ]


def test_choosing_needs_candidates_and_seeds(setting: Setting) -> None:
    with pytest.raises(UsageError, match="at least one candidate"):
        choose([], setting)
    with pytest.raises(UsageError, match="one seed"):
        choose([SMALL], setting, seeds=())


def test_candidates_vary_epochs_and_rates_around_the_recipe() -> None:
    offered = candidates(SPEEDRUN)
    assert SPEEDRUN in offered
    assert len(offered) == len({(one.recipe.epochs, one.recipe.learning_rate) for one in offered}) == 15
    assert {one.batch_size for one in offered} == {SPEEDRUN.batch_size}


def test_the_headline_is_the_mean_over_all_seeds(setting: Setting) -> None:
    runs = [scored(0, 1.0, 90, "test"), scored(1, 3.0, 95, "test")]
    values = headline(setting, runs, {"cold_seconds": 20.0}).values
    assert values["accuracy_mean_percent"] == pytest.approx(92.5)
    assert (values["accuracy_lowest_percent"], values["accuracy_highest_percent"]) == (90.0, 95.0)
    assert (values["training_seconds_mean"], values["training_seconds_longest"]) == (2.0, 3.0)
    assert (values["seeds"], values["cold_seconds"], values["target_percent"]) == (2, 20.0, 94.0)


def test_finished_seeds_are_kept_when_the_cold_start_fails(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **options: Any) -> None:
        assert command[1:] == ["-m", "cookbook.accelerator.cold", "rehearsal", "cpu"]
        raise subprocess.CalledProcessError(1, command, "", "Traceback\nRuntimeError: no kernel image\n")

    monkeypatch.setattr(speedrun.subprocess, "run", failing)
    rows = record_speedrun(setting)
    kept = [next(rows), next(rows)]
    with pytest.raises(CookbookError, match=r"failed \(RuntimeError: no kernel image\)"):
        next(rows)
    assert [row.seed for row in kept] == [0, 1]
    assert all(row.split == "test" and row.images == 30 for row in kept)


def test_a_cold_start_that_hangs_is_ended(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(speedrun.subprocess, "run", hanging)
    with pytest.raises(CookbookError, match="longer than 240 s"):
        cold_start(setting)


def test_every_cold_start_compiles_anew(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def finished(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        folders.append((options["env"]["TORCHINDUCTOR_CACHE_DIR"], options["env"]["TRITON_CACHE_DIR"]))
        return subprocess.CompletedProcess(command, 0, 'a line of a library\n{"cold_training_seconds": 2.5}\n', "")

    monkeypatch.setattr(speedrun.subprocess, "run", finished)
    values = [cold_start(setting) for _ in range(2)]
    assert values[0]["cold_training_seconds"] == 2.5
    assert values[0]["cold_seconds"] > 0
    assert len({folder for pair in folders for folder in pair}) == 4


def test_the_network_is_compiled_once_for_all_seeds(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    usual = torch.nn.Module.compile

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    def compile_to_count(model: torch.nn.Module, **options: Any) -> None:
        usual(model, backend=counting, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_to_count)
    track = Track(replace(SMALL, compile=True), setting.splits.train, CPU)
    track.warm_up()
    after_warm_up = len(compiled)
    first, again = (track.run(seed, setting.splits.test) for seed in (1, 1))
    assert after_warm_up == len(compiled) == 1
    assert torch.equal(first.evaluation.predictions, again.evaluation.predictions)
