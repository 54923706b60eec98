"""A space yields exactly its networks, and refuses what cannot be one."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import optuna
import pytest
import torch
from tiny_space import SPACE, macs

from cookbook.errors import UsageError
from cookbook.models import ResNet, ResNetConfig, build
from cookbook.search import Candidate, SearchSpace


def test_the_candidates_are_the_product_of_the_choices() -> None:
    space = SearchSpace(depths=(14, 8), widths=((8, 4), (8,), (16, 32)), stem_strides=(1, 2), weight_bits=(8, 32))
    found = list(space.candidates())
    described = {(c.config.depth, c.widths, c.config.stem_stride, c.weight_bits) for c in found}
    widths = itertools.product((4, 8), (8,), (16, 32))
    assert described == set(itertools.product((8, 14), widths, (1, 2), (8, 32)))
    assert len(found) == len(described) == space.combinations == 32
    assert (found[0], found[-1]) == (space.smallest, space.largest)


def test_the_smallest_and_the_largest_network_bound_all_others() -> None:
    sizes = [macs(candidate) for candidate in (SPACE.smallest, SPACE.largest, *list(SPACE.candidates())[::9])]
    assert macs(SPACE.smallest) == min(sizes) and macs(SPACE.largest) == max(sizes)
    assert SPACE.smallest.inner_widths == (2, 4, 4) and SPACE.largest.inner_widths == (8, 12, 16)


def test_pruned_channels_are_rounded_and_never_more_than_the_stage_has() -> None:
    space = SearchSpace(depths=(8,), widths=((4,), (12,), (32,)), pruning=(0.3, 0.5, 0.9), multiple=8)
    by_share = {c.inner_widths[0]: c for c in space.candidates()}
    assert set(by_share) == {4}  # a stage narrower than the multiple keeps its channels
    assert {c.inner_widths[1] for c in space.candidates()} == {8}
    assert {c.inner_widths[2] for c in space.candidates()} == {8, 16, 24}
    assert len(list(space.candidates())) == 3 < space.combinations


def test_a_candidate_builds_the_network_that_it_describes_and_survives_json() -> None:
    for candidate in (SPACE.smallest, SPACE.largest, SPACE.draw(torch.Generator().manual_seed(1))):
        model = candidate.build()
        assert isinstance(model, ResNet) and model(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
        assert [block.conv2.out_channels for block in model.blocks][:: candidate.blocks_per_stage] == list(candidate.widths)
        again = Candidate.from_json(candidate.to_json())
        assert again == candidate and hash(again) == hash(candidate) and again.to_json() == candidate.to_json()


def test_the_widths_of_the_family_are_candidates_too() -> None:
    space = SearchSpace(depths=(8, 14), widths=((8, 16), (16, 32), (32, 64)))
    twin = next(c for c in space.candidates() if c.config.depth == 14 and c.widths == (8, 16, 32))
    ours, theirs = (build(config).state_dict() for config in (twin.config, ResNetConfig(depth=14, width=8)))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert space.uniform(14, 8) == twin and space.uniform(8, 12).widths == (12, 24, 48)
    assert twin.at_depth(8) == space.uniform(8, 8) and twin.at_depth(8, 2).config.stem_stride == 2


def test_sampling_asks_only_for_axes_with_a_choice() -> None:
    space = SearchSpace(depths=(8,), widths=((4, 8), (8,), (16, 32)))
    trial = optuna.trial.FixedTrial({"width 1": 1, "width 3": 0})
    assert space.sample(trial).widths == (8, 8, 16)
    assert set(trial.params) == {"width 1", "width 3"}


def test_drawing_is_uniform_along_an_axis_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [SPACE.draw(generator) for _ in range(600)]
    counts = Counter(candidate.widths[1] for candidate in drawn)
    assert set(counts) == {6, 8, 12} and max(abs(count - 200) for count in counts.values()) < 60
    generator = torch.Generator().manual_seed(0)
    assert [SPACE.draw(generator) for _ in range(5)] == drawn[:5]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depths": ()}, "one choice or more"),
        ({"depths": (9,)}, "6·n"),
        ({"depths": (8.0,)}, "6·n|whole numbers"),
        ({"widths": ((8,), (16,))}, "3 tuples"),
        ({"widths": ((8,), (), (16,))}, "one choice or more"),
        ({"widths": ((8,), (0, 4), (16,))}, "at least 1"),
        ({"pruning": (1.0,)}, "up to, not including, 1"),
        ({"pruning": ("half",)}, "use numbers"),
        ({"weight_bits": (5,)}, "2, 3, 4, 6, 8, 32"),
        ({"stem_strides": (0,)}, "at least 1"),
        ({"multiple": 0}, "at least 1"),
        ({"depths": (8,), "widths": ((8,), (16,), (32,))}, "single network"),
    ],
)
def test_an_impossible_space_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SearchSpace(**wrong)


def test_what_is_no_candidate_is_refused() -> None:
    with pytest.raises(UsageError, match="describes no candidate"):
        Candidate.from_json('{"weight_bits": 8}')
    with pytest.raises(UsageError, match="use a ResNetConfig"):
        Candidate("resnet")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Weights of 7 bits"):
        Candidate(SPACE.largest.config, 7)
