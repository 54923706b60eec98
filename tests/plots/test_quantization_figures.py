"""Figures of quantization: both themes, everything drawn that was given, and findings that say what the numbers say."""

from __future__ import annotations

import math

import pytest

from cookbook.errors import UsageError
from cookbook.measure import Ratio
from cookbook.plots.quantization import bits_figure, quantizer_figure, sensitivity_figure
from cookbook.quantization.scheme import Scheme
from cookbook.quantization.sensitivity import LayerSensitivity, SensitivityReport

LAYERS = (
    LayerSensitivity("stem", 30.0, 21.5, 0.90), LayerSensitivity("body", 40.0, math.inf, 0.93),
    LayerSensitivity("head", 20.0, 20.0, 0.92),
)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_most_sensitive_layer_is_named_and_all_are_drawn(theme) -> None:
    picture = sensitivity_figure(SensitivityReport(Scheme(), LAYERS, 0.93), theme=theme)
    assert picture.finding == (
        "Quantized alone, stem hurts most: the logits' signal is 21.5 dB above its noise, and 3.00 points are lost"
    )
    axes = picture.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "body", "head"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[30.0, 40.0, 20.0], [21.5, 60.0, 20.0]]
    beside = axes.child_axes[0]
    assert [bar.get_width() for bar in beside.patches] == pytest.approx([3.0, 0.0, 1.0])
    assert picture.png().startswith(b"\x89PNG")


def test_without_validation_only_noise_is_drawn() -> None:
    layers = tuple(LayerSensitivity(layer.name, layer.sqnr_db, layer.logits_sqnr_db) for layer in LAYERS)
    picture = sensitivity_figure(SensitivityReport(Scheme(), layers))
    assert picture.finding == "Quantized alone, head hurts most: the logits' signal is 20.0 dB above its noise"
    assert not picture.axes[0].child_axes


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_bits_name_the_best_and_the_worst_at_the_narrowest(theme) -> None:
    picture = bits_figure(
        {"nearest": {2: [40.0, 44.0], 8: [90.0, 91.0]}, "AdaRound": {2: [60.0, 62.0]}, "trained": {4: [90.0]}},
        [91.0, 92.0],
        theme=theme,
    )
    assert picture.finding == "With 2-bit weights AdaRound reaches 61.00%, nearest 42.00%; in float it is 91.50%"
    lines = {line.get_label(): line.get_xydata().tolist() for line in picture.axes[0].lines}
    assert lines["nearest"] == [[2, 42], [8, 90.5]]
    assert lines["trained"] == [[4, 90]]
    assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_slow_quantizers_are_counted(theme) -> None:
    ratios = {
        "ours": {1: Ratio(2.0, 1.9, 2.1), 64: Ratio(3.0, 2.9, 3.1)},
        "dynamic": {1: Ratio(0.2, 0.19, 0.21), 64: Ratio(0.3, 0.2, 0.4)},
        "even": {1: Ratio(0.9, 0.8, 1.1), 64: Ratio(0.8, 0.7, 0.9)},
    }
    picture = quantizer_figure(ratios, theme=theme)
    assert picture.finding == (
        "ours is the fastest, 2.00 times at batch 1 and 3.00 times at batch 64; "
        "1 of 3 quantizers make the model slower than float"
    )
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == list(ratios)
    assert picture.png().startswith(b"\x89PNG")


def test_where_another_quantizer_wins_at_another_batch_both_are_named() -> None:
    ratios = {
        "ours": {1: Ratio(2.0, 1.9, 2.1), 64: Ratio(3.0, 2.9, 3.1)},
        "tool": {1: Ratio(1.9, 1.8, 2.0), 64: Ratio(3.1, 3.0, 3.2)},
    }
    assert quantizer_figure(ratios).finding == (
        "fastest: at batch 1 ours with 2.00 times, at batch 64 tool with 3.10 times; "
        "0 of 2 quantizers make the model slower than float"
    )


def test_nothing_to_draw_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="holds no layer"):
        sensitivity_figure(SensitivityReport(Scheme(), ()))
    for accuracies, reference in (({}, [1.0]), ({"a": {4: [1.0]}}, []), ({"a": {4: []}}, [1.0])):
        with pytest.raises(UsageError, match="Give accuracies"):
            bits_figure(accuracies, reference)
    for ratios in ({}, {"a": {1: Ratio(1, 1, 1)}, "b": {64: Ratio(1, 1, 1)}}):
        with pytest.raises(UsageError, match="same batch sizes"):
            quantizer_figure(ratios)
