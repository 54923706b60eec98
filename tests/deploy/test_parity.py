"""The suite of images finds what the usual ones hide."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cookbook.deploy import Parity, ParityReport, parity, parity_suite
from cookbook.deploy.parity import compare
from cookbook.errors import UsageError

IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))


def faulty(model: nn.Module, wrong: Callable[[Tensor], bool]) -> Callable[[Tensor], Tensor]:
    """Return a deployed model that answers for other images where `wrong` says so."""
    return lambda images: model(-images - 1 if wrong(images) else images).detach()


def test_a_right_model_passes_every_kind_of_images(model: nn.Module) -> None:
    report = parity_suite(model, lambda images: model(images).detach(), IMAGES)
    assert report.worst.largest == 0
    assert report.agreement == 1
    assert {name: case.images for name, case in report.cases.items()} == {
        "in range": 8, "ten times": 8, "shifted": 8, "noise": 8, "all zero": 2, "batch of 1": 1, "odd batch": 7,
    }  # fmt: skip
    assert len(str(report).splitlines()) == 1 + len(report.cases)


FAULTS: dict[str, tuple[Callable[[Tensor], bool], set[str]]] = {
    "a clamp at 2": (lambda images: bool(images.max() > 2.1), {"ten times", "shifted", "noise"}),
    "zero is no number": (lambda images: not images.any(), {"all zero"}),
    "one image is squeezed": (lambda images: len(images) == 1, {"batch of 1"}),
    "pairs of images": (lambda images: len(images) % 2 == 1 and len(images) > 1, {"odd batch"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_shows_in_its_kind_and_nowhere_else(model: nn.Module, fault: str) -> None:
    wrong, kinds = FAULTS[fault]
    report = parity_suite(model, faulty(model, wrong), IMAGES)
    shown = {name for name, case in report.cases.items() if case.largest > 0}
    assert shown
    assert shown <= kinds
    assert {"ten times", "shifted"} <= shown or kinds == shown
    assert report.worst.largest == max(case.largest for case in report.cases.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_images_are_enough(model: nn.Module, count: int) -> None:
    sizes = {name: case.images for name, case in parity_suite(model, lambda x: model(x).detach(), IMAGES[:count]).cases.items()}
    assert sizes["odd batch"] == 3
    assert sizes["batch of 1"] == 1


def test_the_seed_draws_the_noise(model: nn.Module) -> None:
    seen: list[Tensor] = []

    def noting(images: Tensor) -> Tensor:
        seen.append(images)
        return model(images).detach()

    for seed in (0, 0, 1):
        parity_suite(model, noting, IMAGES, seed=seed)
    first, second, third = seen[3::7]
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert first.mean() == pytest.approx(float(IMAGES.mean()), abs=0.2)


def test_the_worst_and_the_agreement_weigh_cases_rightly() -> None:
    cases = {"a": Parity(0.5, 0.5, 0.1, 1.0, 1), "b": Parity(0.2, 0.2, 0.1, 0.5, 3)}
    assert ParityReport(cases).worst is cases["a"]
    assert ParityReport(cases).agreement == pytest.approx((1 + 1.5) / 4)
    cases["c"] = Parity(math.nan, math.nan, math.nan, 0.0, 1)
    assert ParityReport(cases).worst is cases["c"]


def test_the_typical_difference_is_that_of_the_median_image() -> None:
    reference = torch.tensor([[1.0, -1.0]] * 4)  # of standard deviation 1
    off = torch.tensor([[0.0, 0.1], [3.0, 0.0], [0.3, 0.2], [0.0, 0.0]])
    found = compare(reference, reference + off)
    assert found.typical == pytest.approx(0.2)
    assert found.largest == pytest.approx(3.0) and found.mean == pytest.approx(3.6 / 8)
    assert math.isnan(compare(reference, reference + off.index_fill(0, torch.tensor(3), math.nan)).typical)


def test_wrong_arguments(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="no images"):
        parity_suite(model, model, IMAGES[:0])
    with pytest.raises(UsageError, match="one row of classes"):
        compare(torch.ones(3), torch.ones(3))

    class Dictionary(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": images}

    with pytest.raises(UsageError, match="Dictionary returns a dict"):
        parity(Dictionary(), lambda images: images, IMAGES)
