"""Two ranks compute what one process computes on the whole batch, and agree about everything else."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
import torch.nn.functional as F
from helpers import RICH_RECIPE, small_loader, small_model, small_split
from ranked import run_on_ranks, scenarios_of
from torch import Tensor

from cookbook.data import ResidentLoader
from cookbook.errors import UsageError
from cookbook.measure import pinned_threads
from cookbook.training import Parallel, Recipe, evaluate, evaluate_across_ranks, fit

smooth, train = scenarios._smooth_model, scenarios._train


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return by scenario what each of the two ranks found, and under "folder" where they wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    with pinned_threads(1):
        with pytest.raises(ConnectionAbortedError):
            scenarios.for_one(0, folder)
        (folder / "two.state").rename(folder / "one.state")
    found = run_on_ranks("scenarios", list(scenarios_of(scenarios)), folder)
    return {**found, "folder": folder}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over the norm of what was expected, in float64."""
    assert found.keys() == expected.keys()
    both = [torch.cat([part.double().flatten() for part in parts.values()]) for parts in (found, expected)]
    return float((both[0] - both[1]).norm() / both[1].norm())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "recipe", "batch"),
    [("plain", scenarios.PLAIN, 8), ("mixed", scenarios.MIXED, 8), ("uneven", scenarios.PLAIN, 7),
     ("wrapped_loader", scenarios.PLAIN, 7), ("compiled", scenarios.MIXED, 8)],
)  # fmt: skip
def test_two_ranks_are_one_process(together: dict[str, Any], name: str, recipe: Recipe, batch: int) -> None:
    """Gradients to 1e-6, weights after 12 to 24 steps to 1e-5, in float32; augmented pictures, batches of 7 in 4 and 3."""
    alone = train(smooth(), recipe, small_loader(batch_size=batch))
    for rank in together[name]:
        assert difference(rank["gradients"], alone["gradients"]) < 1e-6
        assert difference(rank["weights"], alone["weights"]) < 1e-5
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert same(*(rank["weights"] for rank in together[name]))


@pytest.mark.usefixtures("one_thread")
def test_a_rank_without_an_image_in_the_last_batch_takes_part(together: dict[str, Any]) -> None:
    alone = train(smooth(), scenarios.PLAIN, ResidentLoader(small_split(49), 16, shuffle=False))
    for rank in together["last_batch_too_small"]:
        assert difference(rank["weights"], alone["weights"]) < 1e-5


def test_unequal_batches_of_own_data_have_the_gradient_of_the_mean_over_all_images(together: dict[str, Any]) -> None:
    """Ten images on rank 0 and twenty on rank 1: against float64, where the mean of the two means is far off."""
    split, model = small_split(40), smooth().double()
    images, labels = split.normalized().double(), split.labels
    F.cross_entropy(model(_rows(images)), _rows(labels)).backward()
    exact = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for rank in together["own_data"]:
        assert difference(rank["gradients"], exact) < 1e-6
    model.zero_grad()
    parts = [slice(0, 10), slice(20, 40)]
    torch.stack([F.cross_entropy(model(images[part]), labels[part]) for part in parts]).mean().backward()
    naive = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert difference(naive, exact) > 1e-2

    class TheSame(ResidentLoader):
        def batches(self, epoch: int, first: int = 0):
            yield _rows(split.normalized()), _rows(labels)
            yield split.normalized()[10:20], labels[10:20]  # rank 1 is through

    alone = train(smooth(), Recipe(epochs=1, learning_rate=0.05), TheSame(split, 20, shuffle=False))
    assert all(difference(rank["weights"], alone["weights"]) < 1e-5 for rank in together["own_data"])
    assert same(*(rank["weights"] for rank in together["own_data"]))


def _rows(tensor: Tensor) -> Tensor:
    return torch.cat((tensor[:10], tensor[20:40]))


@pytest.mark.usefixtures("one_thread")
def test_with_batchnorm_the_result_is_another_one(together: dict[str, Any]) -> None:
    alone = train(small_model(), scenarios.PLAIN)
    assert difference(together["with_batchnorm"][0]["gradients"], alone["gradients"]) > 1e-2
    assert same(*(rank["weights"] for rank in together["with_batchnorm"])), "statistics included"
    one, other = together["with_batchnorm"]
    assert one["validation"] == other["validation"] and one["validation"][-1] == pytest.approx(one["judged"], rel=1e-6)


def test_half_precision_ends_equal_on_both_ranks(together: dict[str, Any]) -> None:
    for one, other in zip(*together["half"], strict=True):
        assert same(one["weights"], other["weights"])
        assert one["losses"][-1] < one["losses"][0]


@pytest.mark.usefixtures("one_thread")
def test_options_of_the_exchange_do_not_change_what_is_learned(together: dict[str, Any]) -> None:
    for place, recipe in enumerate((scenarios.PLAIN, scenarios.MIXED)):
        alone = train(smooth(), recipe)
        assert all(difference(rank[place]["weights"], alone["weights"]) < 1e-5 for rank in together["options"])


@pytest.mark.usefixtures("one_thread")
def test_compression_changes_little_and_the_ranks_alike(together: dict[str, Any]) -> None:
    alone = train(smooth(), scenarios.PLAIN)
    for one, other, most in zip(*together["compressed"], (1e-2, 3e-2, 0.5), strict=True):
        assert same(one["weights"], other["weights"])
        assert 1e-7 < difference(one["weights"], alone["weights"]) < most


def test_gradients_travel_once_a_step(together: dict[str, Any]) -> None:
    every, fourth = together["travels"][0]
    assert every == 6  # steps in an epoch, one bucket each
    assert fourth == 2


def test_evaluation_counts_each_image_once_in_order(together: dict[str, Any]) -> None:
    for size, role, place in ((13, "validation", 0), (11, "test", 1)):
        alone = evaluate(smooth(), ResidentLoader(small_split(size, role), 5))  # type: ignore[arg-type]
        for rank in together["evaluation"]:
            predictions, labels, loss, found = rank[place]
            assert torch.equal(predictions, alone.predictions) and torch.equal(labels, alone.labels)
            assert loss == pytest.approx(alone.loss, rel=1e-6) and found == role


def test_one_interrupted_rank_stops_both_after_the_same_step_and_the_same_call_resumes(together: dict[str, Any]) -> None:
    for rank in together["interrupted"]:
        calls = 4 * RICH_RECIPE.accumulate
        assert rank["stopped"] == [f"SystemExit in call {calls}", f"KeyboardInterrupt in call {calls}"]
        assert all(same(end, rank["undisturbed"]) for end in rank["ends"])
    assert together["signal_in_validation"] == [1, 1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("one_thread")
def test_a_state_goes_on_with_another_number_of_ranks(together: dict[str, Any]) -> None:
    alone = train(smooth(), scenarios.MIXED)
    assert all(difference(rank["weights"], alone["weights"]) < 1e-5 for rank in together["from_one"])
    assert together["for_one"] == ["ConnectionAbortedError: planted"] * 2
    resumed = train(smooth(seed=5), scenarios.MIXED, checkpoint=Path(together["folder"]) / "two.state")
    assert difference(resumed["weights"], alone["weights"]) < 1e-5
    assert resumed["losses"] == pytest.approx(alone["losses"], rel=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_two_ranks_distil_as_one_process(together: dict[str, Any]) -> None:
    alone = scenarios._distilled()
    assert all(difference(found, alone) < 1e-5 for found in together["distilled"])


@pytest.mark.usefixtures("one_thread")
def test_three_ranks_are_one_process_and_go_on_where_two_stopped(together: dict[str, Any], tmp_path: Path) -> None:
    """Batches of 8 in parts of 3, 3 and 2, and 13 and 11 images in batches of 5."""
    shutil.copy(together["folder"] / "two.state", tmp_path / "one.state")
    three = run_on_ranks("scenarios", ["plain", "evaluation", "from_one"], tmp_path, world=3)
    plain, grown = train(smooth(), scenarios.PLAIN), train(smooth(), scenarios.MIXED)
    for rank in range(3):
        assert difference(three["plain"][rank]["gradients"], plain["gradients"]) < 1e-6
        assert difference(three["from_one"][rank]["weights"], grown["weights"]) < 1e-5
        for (predictions, labels, loss, _), two in zip(three["evaluation"][rank], together["evaluation"][0], strict=True):
            assert torch.equal(predictions, two[0]) and torch.equal(labels, two[1])
            assert loss == pytest.approx(two[2], rel=1e-6)


def test_what_goes_wrong_is_a_sentence_on_both_ranks(together: dict[str, Any]) -> None:
    expected = [
        "RankError: Rank 1 has another recipe", "RankError: Rank 1 has another model", "UsageError: sync_batchnorm needs GPUs",
        ("CheckpointError: ", "RankError: Rank 0 stopped: "), "NonFiniteLossError: The loss is nan in epoch 1 at step 1",
        "UsageError: Some parameters took no part", "UsageError: static_graph fails", "RankError: Rank 1 has another data",
    ]  # fmt: skip
    for place, begin in enumerate(expected):
        for rank in (0, 1):
            said = together["refused"][rank][place]
            assert said.startswith(begin if isinstance(begin, str) else begin[rank]), said
            assert "\n" not in said
    assert "another model and recipe" in together["refused"][1][3]


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"data": "some"}, "data"), ({"bucket_mb": 0}, "bucket_mb"), ({"compression": "int4"}, "compression"),
     ({"powersgd_rank": 0}, "powersgd_rank"), ({"powersgd_after": 1}, "powersgd_after")],
)  # fmt: skip
def test_options_out_of_range_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is "):
        Parallel(**settings)


def test_a_single_process_takes_the_options_without_effect() -> None:
    models = [small_model(), small_model()]
    fit(models[0], small_loader(), Recipe(epochs=1, learning_rate=0.05), progress=False)
    fit(models[1], small_loader(), Recipe(epochs=1, learning_rate=0.05), progress=False, parallel=Parallel(compression="fp16"))
    assert same(models[0].state_dict(), models[1].state_dict())
    loader = ResidentLoader(small_split(13, "validation"), 5)
    assert evaluate_across_ranks(models[0], loader).hits == evaluate(models[0], loader).hits
    assert math.isfinite(evaluate(models[0], loader).loss)
