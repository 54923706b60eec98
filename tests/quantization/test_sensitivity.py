"""One layer alone: against layers rounded by hand, and the fallback against trying every number of layers."""

from __future__ import annotations

import math

import pytest
import torch
from narrow_models import blob_loader, blobs, plain_net
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.errors import UsageError
from cookbook.quantization.fallback import fewest_in_float
from cookbook.quantization.layers import fold_batchnorm
from cookbook.quantization.ptq import quantize
from cookbook.quantization.rounding import round_to_nearest
from cookbook.quantization.scheme import Scheme
from cookbook.quantization.sensitivity import LayerSensitivity, SensitivityReport, most_layers_within, sensitivity
from cookbook.training import Recipe, evaluate, fit

VALIDATION = blob_loader(60, 60, role="validation", seed=9)
NAMES = ["0", "3", "6", "10", "12"]


def decibels(signal: Tensor, found: Tensor) -> float:
    return 10 * math.log10(float(signal.double().square().sum() / (signal - found).double().square().sum()))


@pytest.mark.parametrize("bits", [3, 8])
def test_with_float_activations_it_is_what_rounding_one_layers_weights_does(bits: int) -> None:
    model, images = plain_net(), blobs(48).normalized()
    everything = Scheme(weight_bits=bits, activation_bits=None)
    report = sensitivity(model, blob_loader(48, 48), scheme=everything, images=48, validation=VALIDATION)
    assert [layer.name for layer in report.layers] == NAMES
    folded = fold_batchnorm(model, images)
    assert report.float_accuracy == evaluate(model, VALIDATION).accuracy
    for layer in report.layers:
        others = tuple(name for name in NAMES if name != layer.name)
        rounded = round_to_nearest(
            model, images, scheme=Scheme(weight_bits=bits, activation_bits=None, exclude=others), ranges="min-max"
        )
        with torch.no_grad():
            assert layer.logits_sqnr_db == pytest.approx(decibels(folded(images), rounded(images)), abs=0.01)
            until = {"0": 3, "3": 6, "6": 7, "10": 12, "12": 13}[layer.name]
            own = decibels(folded[:until](images), rounded[:until](images))
        assert layer.sqnr_db == pytest.approx(own, abs=0.01)
        assert layer.accuracy == evaluate(rounded, VALIDATION).accuracy


def test_activations_add_noise_and_fewer_bits_more() -> None:
    loader = blob_loader(48, 48)
    noise = {
        bits: sensitivity(plain_net(), loader, scheme=Scheme(weight_bits=8, activation_bits=bits), images=48)
        for bits in (None, 8, 4)
    }
    for number in range(len(NAMES)):
        values = [noise[bits].layers[number].logits_sqnr_db for bits in (None, 8, 4)]
        assert values[0] > values[1] > values[2]
    assert all(layer.accuracy is None for layer in noise[8].layers)
    assert noise[8].float_accuracy is None


def test_excluded_layers_are_not_tried_and_the_model_is_left_alone() -> None:
    model = plain_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = sensitivity(model, blob_loader(), scheme=Scheme(exclude=("0", "12")), images=24)
    assert [layer.name for layer in report.layers] == ["3", "6", "10"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_are_ranked_by_accuracy_then_noise() -> None:
    layers = (
        LayerSensitivity("a", 30, 20, 0.9), LayerSensitivity("b", 10, 30, 0.8), LayerSensitivity("c", 20, 10, 0.9),
    )  # fmt: skip
    report = SensitivityReport(Scheme(), layers, 0.95)
    assert report.ranked() == ["b", "c", "a"]
    without = tuple(LayerSensitivity(layer.name, layer.sqnr_db, layer.logits_sqnr_db) for layer in layers)
    assert SensitivityReport(Scheme(), without).ranked() == ["c", "a", "b"]
    lines = str(report).splitlines()
    assert lines[0] == f"One layer alone in {Scheme()}:"
    assert lines[3].split() == ["b", "10.0", "30.0", "+15.00"]
    assert str(SensitivityReport(Scheme(), without)).splitlines()[2].split()[-1] == "—"


def test_a_limit_on_the_drop_leaves_the_noisiest_layers_in_float() -> None:
    model = plain_net()
    fit(model, blob_loader(96, 24), Recipe(epochs=4, learning_rate=0.02), progress=False)
    reference = evaluate(model, VALIDATION).accuracy
    loader, scheme = blob_loader(48, 48), Scheme(weight_bits=2)
    free = quantize(model, loader, scheme=scheme, images=48)
    lost = 100 * (reference - evaluate(free.module, VALIDATION).accuracy)
    assert lost > 1, "two bits cost nothing here, so that nothing is decided"
    bounded = quantize(model, loader, scheme=scheme, images=48, max_drop=0.5 * lost, validation=VALIDATION)
    assert 100 * (reference - evaluate(bounded.module, VALIDATION).accuracy) <= 0.5 * lost
    ranked = sensitivity(model, loader, scheme=scheme, images=48).ranked()
    count = len(bounded.scheme.exclude)
    assert bounded.scheme.exclude == tuple(ranked[:count])
    assert 0 < count < 5
    assert f"{count} of 5 layers stay in floats" in str(bounded)
    with pytest.raises(UsageError, match="test split must not be used to decide"):
        most_layers_within(model, blobs(12).normalized(), blob_loader(role="test"), max_drop=1, scheme=scheme)


def test_roles_are_checked() -> None:
    with pytest.raises(UsageError, match="test split must not be used to calibrate"):
        sensitivity(plain_net(), ResidentLoader(blobs(12, role="test"), 6))
    with pytest.raises(UsageError, match="test split must not be used to rank layers"):
        sensitivity(plain_net(), blob_loader(), validation=ResidentLoader(blobs(12, role="test"), 6))
    with pytest.raises(UsageError, match="test split must not be used to decide"):
        fewest_in_float(1, lambda scheme: nn.Identity(), nn.Identity(), blob_loader(role="test"), scheme=Scheme(), ranked=())


class Answers(nn.Module):
    """Right about every image but the last `wrong`."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.arange(60) % 3
        answers[60 - self.wrong :] += 1
        return torch.nn.functional.one_hot(answers % 3, 3).float()


@pytest.mark.parametrize("losses", [(0, 0, 0, 0, 0), (6, 5, 2, 1, 1), (30, 3, 3, 0, 0), (9, 9, 9, 9, 1), (9, 8, 7, 6, 5)])
@pytest.mark.parametrize("allowed", [0.0, 1.7, 5.0, 10.0, 20.0])
def test_the_fallback_finds_the_fewest_float_layers_that_suffice(losses: tuple[int, ...], allowed: float) -> None:
    built: list[tuple[str, ...]] = []

    def build(scheme: Scheme) -> nn.Module:
        built.append(scheme.exclude)
        return Answers(losses[len(scheme.exclude) - 1])

    ranked = ["e", "d", "c", "b", "a"]
    scheme = Scheme(exclude=("stem",))
    enough = [number for number in range(5) if 100 * losses[number] / 60 <= allowed + 1e-9]
    if not enough:
        with pytest.raises(UsageError, match="allow a larger drop"):
            fewest_in_float(allowed, build, Answers(0), VALIDATION, scheme=scheme, ranked=ranked)
        return
    found = fewest_in_float(allowed, build, Answers(0), VALIDATION, scheme=scheme, ranked=ranked)
    assert found.scheme.exclude == ("stem", *ranked[: enough[0]])
    assert found.drop == pytest.approx(100 * losses[enough[0]] / 60)
    assert isinstance(found.module, Answers)
    assert found.module.wrong == losses[enough[0]]
    assert [len(exclude) - 1 for exclude in built] == [count for count, _ in found.tried]
    assert len(built) == len(set(built)) <= 4


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf")])
def test_a_drop_that_is_no_number_of_points_is_refused(drop: float) -> None:
    with pytest.raises(UsageError, match="use a number of points"):
        fewest_in_float(drop, lambda scheme: nn.Identity(), Answers(0), VALIDATION, scheme=Scheme(), ranked=("a",))
