from __future__ import annotations

import dataclasses

import pytest

from cookbook.errors import UsageError
from cookbook.quantization.scheme import Scheme


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (6, 31), (8, 127)])
def test_weights_use_a_symmetric_range(bits: int, largest: int) -> None:
    assert Scheme(weight_bits=bits).weight_range == (-largest, largest)


def test_a_reduced_range_keeps_the_sum_of_two_products_within_16_bits() -> None:
    _, largest = Scheme(reduce_range=True).weight_range
    assert 2 * 255 * largest <= 2**15 - 1 < 2 * 255 * Scheme().weight_range[1]


@pytest.mark.parametrize(("bits", "largest"), [(4, 15), (6, 63), (8, 255)])
def test_activations_use_the_whole_unsigned_range(bits: int, largest: int) -> None:
    assert Scheme(activation_bits=bits).activation_range == (0, largest)


def test_32_bits_mean_float_activations() -> None:
    assert Scheme(activation_bits=32) == Scheme(activation_bits=None)
    with pytest.raises(UsageError, match="no range of integers"):
        _ = Scheme(activation_bits=None).activation_range


def test_a_scheme_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scheme().weight_bits = 4  # type: ignore[misc]


def test_excluding_a_block_excludes_what_is_inside_it_and_nothing_else() -> None:
    scheme = Scheme(exclude=("layer1", "head"))
    assert [scheme.excludes(name) for name in ("layer1", "layer1.0.conv1", "layer10", "head", "header")] == [
        True, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_bits": 5}, "weight_bits is 5: use one of 2, 3, 4, 6, 8"),
        ({"activation_bits": 3}, "activation_bits is 3: use one of 4, 6, 8, or None"),
        ({"exclude": "head"}, "pass a tuple of layers' names"),
        ({"exclude": ("",)}, "pass a tuple of layers' names"),
        ({"weight_bits": 4, "reduce_range": True}, "reduce_range is for 8-bit weights"),
    ],
)
def test_an_impossible_scheme_is_refused_in_a_sentence(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Scheme(**settings)  # type: ignore[arg-type]


def test_a_scheme_says_what_it_does() -> None:
    scheme = Scheme(weight_bits=4, activation_bits=None, per_channel=False, exclude=("head",))
    assert str(scheme) == "4-bit weights (one scale per tensor), float activations, without head"
