"""The shards, averages and differences of lesson 03 against counting, float64 and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cookbook.distributed.equivalence import averaged, overlap, relative_difference, sampled
from cookbook.errors import UsageError


def gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.mse_loss(model(inputs), targets).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_sampler_parts_the_samples_and_fills_up() -> None:
    shards = sampled(10_001, 2)
    assert [len(shard) for shard in shards] == [5001, 5001]
    assert set(shards[0]) | set(shards[1]) == set(range(10_001))
    assert overlap(shards) == pytest.approx(1 / 10_001)  # the sample that fills up
    assert overlap(sampled(10_000, 2)) == 0.0


def test_without_a_sampler_all_ranks_visit_the_same() -> None:
    assert overlap([list(range(50)), list(reversed(range(50)))]) == 1.0
    assert overlap([[0, 1, 1], [2, 3], [3, 4]]) == 1 / 5


def test_the_order_changes_with_the_epoch_only_where_it_is_set() -> None:
    assert sampled(100, 2, epoch=None) == sampled(100, 2, epoch=None) == sampled(100, 2, epoch=0)
    first, second = sampled(100, 2, epoch=0), sampled(100, 2, epoch=1)
    assert first != second
    assert sorted(first[0] + first[1]) == sorted(second[0] + second[1]) == list(range(100))


def test_counts_make_the_average_that_of_all_samples() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(30, 4).double(), torch.randn(30, 3).double()
    inputs[10:] += 1.0
    parts = [gradients(model, inputs[:10], targets[:10]), gradients(model, inputs[10:], targets[10:])]
    whole = gradients(model, inputs, targets)
    assert relative_difference(averaged(parts, [10, 20]), whole) < 1e-12
    mean_of_means = averaged(parts)
    assert relative_difference(mean_of_means, whole) > 0.05
    assert torch.allclose(mean_of_means["bias"], (parts[0]["bias"] + parts[1]["bias"]) / 2)


def test_the_difference_is_that_of_two_vectors() -> None:
    expected = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    found = {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([[4.0]])}
    assert relative_difference(found, expected) == pytest.approx(0.1)
    assert relative_difference(expected, expected) == 0.0


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: overlap([[], []]), "No rank visits a sample"),
        (lambda: averaged([]), "cannot be averaged"),
        (lambda: averaged([{"a": torch.ones(1)}], [1, 2]), "give one count a rank"),
        (lambda: averaged([{"a": torch.ones(1)}], [0]), "give one count a rank"),
        (lambda: relative_difference({"a": torch.ones(1)}, {"a": torch.ones(2)}), "other names or shapes"),
        (lambda: relative_difference({"a": torch.ones(1)}, {"a": torch.zeros(1)}), "is zero"),
    ],
)
def test_what_cannot_be_compared_is_refused(attempt: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attempt()  # type: ignore[operator]
