"""The perceptron against its formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cookbook.errors import UsageError
from cookbook.models import Perceptron, PerceptronConfig, build


def test_forward_equals_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    model = Perceptron(PerceptronConfig(in_channels=2, height=3, width=4, classes=5, hidden=(7, 6))).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    x = images.reshape(3, 24)
    weights = list(model.parameters())
    for weight, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
        x = torch.maximum(x @ weight.T + bias, torch.zeros(()))
    torch.testing.assert_close(model(images), x @ weights[4].T + weights[5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden", [(), (9,), (512, 256), (3, 8, 5)])
def test_parameters_follow_the_closed_form(hidden: tuple[int, ...]) -> None:
    config = PerceptronConfig(in_channels=3, height=4, width=5, classes=7, hidden=hidden)
    assert config.in_features == 60
    sizes = (60, *hidden, 7)
    expected = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    assert sum(p.numel() for p in build(config).parameters()) == expected


def test_without_hidden_layers_it_is_linear() -> None:
    model = build(PerceptronConfig(hidden=())).double()
    a, b = torch.randn(2, 1, 1, 28, 28, dtype=torch.float64)
    bias = model(torch.zeros_like(a))
    torch.testing.assert_close(model(2 * a - b) - bias, 2 * (model(a) - bias) - (model(b) - bias), rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = build(PerceptronConfig(hidden=(64,), dropout=0.5))
    images = torch.rand(2, 1, 28, 28)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_hidden_variance_is_kept() -> None:
    torch.manual_seed(0)
    model = build(PerceptronConfig(hidden=(512, 512, 512, 512)))
    assert isinstance(model, Perceptron)
    second_moment = model.hidden(torch.randn(256, 784)).square().mean().item()
    assert second_moment == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden": 128}, "hidden is 128"),
        ({"hidden": (128, 0)}, "hidden is (128, 0)"),
        ({"height": 0}, "height is 0"),
        ({"width": 2.0}, "width is 2.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": "0.1"}, "dropout is '0.1'"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        PerceptronConfig(**fields)  # type: ignore[arg-type]
    assert words in str(caught.value)
