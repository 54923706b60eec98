"""Torchvision's models go all the way to a served file; the table of how they fare ends the test's output."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cookbook import zoo
from cookbook.deploy import Parity, ParityReport, Runtime, export
from cookbook.errors import CookbookError, UsageError
from cookbook.models import eval_mode
from cookbook.models.torchvision_models import TorchvisionConfig, build_torchvision
from cookbook.zoo import STEPS, ZOO, Step, ZooRow, random_model, run_zoo, try_model, zoo_table

SIZE = 64  # pixels: the smallest that all fourteen take


class Tiny(nn.Module):
    """A network of the zoo's interface that is exported within a second."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 4 * 4, zoo.CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Return a network that stands in for every model of the zoo."""
    torch.manual_seed(0)
    model = Tiny().eval()
    monkeypatch.setattr(zoo, "random_model", lambda name, size, classes: model)
    return model


@pytest.mark.parametrize("name", ZOO)
def test_a_model_goes_all_the_way_or_a_known_limit_stops_it(name: str, zoo_rows: list[ZooRow]) -> None:
    row = try_model(name, size=SIZE)
    zoo_rows.append(row)
    assert row.stopped("fail") == []
    assert list(row.steps) == list(STEPS)


def test_the_zoo_has_the_fourteen_families() -> None:
    assert len(set(ZOO)) == len(ZOO) == 14


def test_without_settled_statistics_a_deep_network_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(model: nn.Module) -> Tensor:
        with eval_mode(model), torch.no_grad():
            return model(torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))

    state = torch.random.get_rng_state()
    settled = random_model("mnasnet0_5", SIZE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in settled.modules())
    assert logits(build_torchvision(TorchvisionConfig("mnasnet0_5", classes=10))).std() < 1e-3 < logits(settled).std()
    again = random_model("mnasnet0_5", SIZE)
    assert torch.equal(logits(settled), logits(again))
    monkeypatch.setattr(zoo, "random_model", lambda name, size, classes: nn.Sequential(nn.Flatten(), Constant()))
    row = try_model("mnasnet0_5", size=SIZE)
    assert row.steps["logits"].status == "fail" and "any comparison would pass" in row.steps["logits"].detail
    assert all(step.status == "not reached" for name, step in row.steps.items() if name != "logits")


class Constant(nn.Module):
    """Answers every image alike."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(10.0).repeat(len(images), 1)


def test_a_tiny_model_passes_and_leaves_no_file(tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row = try_model("resnet18", size=SIZE)
    assert {step.status for step in row.steps.values()} == {"pass"}, row
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bound", "noticed"),
    [(1.0, {"parity"}), (0.01, {"parity", "onnxslim", "onnxsim", "serve"})],
    ids=["out of range only", "everywhere"],
)
def test_a_file_that_computes_something_else_fails_where_it_is_compared(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, bound: float, noticed: set[str]
) -> None:
    def export_clipped(model: nn.Module, *arguments: Any) -> object:
        return export(nn.Sequential(model, nn.Hardtanh(-bound, bound)), *arguments)

    monkeypatch.setattr(zoo, "export", export_clipped)
    row = try_model("resnet18", size=SIZE)
    assert {name for name, step in row.steps.items() if step.status == "fail"} == noticed, row
    assert "on images of the kind 'ten times'" in row.steps["parity"].detail or bound < 1


def test_a_server_that_mixes_up_its_answers_fails(tiny: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = zoo.MicroBatcher.submit

    async def submit_another(server: zoo.MicroBatcher, image: Tensor) -> Tensor:
        return await submit(server, image.flip(-1))

    monkeypatch.setattr(zoo.MicroBatcher, "submit", submit_another)
    row = try_model("resnet18", size=SIZE)
    assert [name for name, step in row.steps.items() if step.status != "pass"] == ["serve"]


@pytest.mark.parametrize(
    ("difference", "own", "expected"),
    [(0.5, 0.1, Step("pass", "5e-01 (1e-01)")), (0.5, 1e-6, "fail"), (0.5, float("nan"), "fail"), (float("nan"), 0.1, "fail")],
    ids=["chaotic", "exact", "no number to compare with", "no number"],
)
def test_a_difference_is_excused_by_what_float32_itself_loses(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, difference: float, own: float, expected: Step | str
) -> None:
    def suite(model: nn.Module, runtime: Callable[[Tensor], Tensor], images: Tensor) -> ParityReport:
        deployed = isinstance(runtime, Runtime)
        assert model is tiny and (runtime(images).dtype == torch.float32) == deployed
        torch.testing.assert_close(runtime(images).float(), model(images))
        largest = {"in range": 1e-6, "ten times": difference if deployed else own}
        return ParityReport({kind: Parity(value, value, value, 1.0, 7) for kind, value in largest.items()})

    monkeypatch.setattr(zoo, "parity_suite", suite)
    step = try_model("resnet18", size=SIZE).steps["parity"]
    assert step == expected or step.status == expected


@pytest.mark.parametrize(
    ("kind", "own", "typical", "status"),
    [
        ("shifted", 2e-3, 1e-6, "pass"),
        ("shifted", 1e-6, 1e-6, "fail"),  # float32 loses nothing there, so that nothing excuses the file
        ("shifted", 2e-3, 1.0, "fail"),
        ("in range", 2e-3, 1e-6, "fail"),
    ],
)
def test_one_image_of_many_may_be_chaotic_where_no_training_goes(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, kind: str, own: float, typical: float, status: str
) -> None:
    def suite(model: nn.Module, runtime: Callable[[Tensor], Tensor], images: Tensor) -> ParityReport:
        if isinstance(runtime, Runtime):
            return ParityReport({kind: Parity(1.0, typical, 0.1, 6 / 7, 7)})
        return ParityReport({kind: Parity(own, 1e-6, 1e-6, 1.0, 7)})

    monkeypatch.setattr(zoo, "parity_suite", suite)
    assert try_model("resnet18", size=SIZE).steps["parity"].status == status


def test_the_exception_of_one_model_is_a_row_and_the_next_has_its_turn(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, size: int, classes: int) -> nn.Module:
        if name == "resnet18":
            raise ZeroDivisionError("the planted\nfault")
        return tiny

    monkeypatch.setattr(zoo, "random_model", build)
    first, second = run_zoo(["resnet18", "googlenet"], size=SIZE)
    assert first.steps["logits"] == Step("fail", "ZeroDivisionError: the planted fault")
    assert (second.name, second.stopped("fail")) == ("googlenet", [])


@pytest.mark.parametrize(
    ("message", "status"),
    [("Failed to serialize proto", "limit"), ("larger than the 2GiB limit", "limit"), ("2 apples", "fail")],
)
def test_a_known_limit_is_told_from_a_failure(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, message: str, status: str
) -> None:
    def fail(*_: object) -> None:
        raise CookbookError(message)

    monkeypatch.setattr(zoo, "export", fail)
    row = try_model("resnet18", size=SIZE)
    step = row.steps["export"]
    assert step.status == status and ("onnx/onnx#4394" in step.detail) == (status == "limit")
    assert [row.steps[name].status for name in STEPS[2:]] == ["not reached"] * 5
    text = str(zoo_table([row]))
    assert ("1 of 1 models" in text) == (status == "limit")
    assert ("Limit: resnet18, export" in text) == (status == "limit")


def test_a_limit_explains_its_own_step_only(tiny: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CookbookError("Failed to serialize proto")

    monkeypatch.setattr(zoo, "simplify", fail)
    row = try_model("resnet18", size=SIZE)
    assert row.stopped("limit") == [] and len(row.stopped("fail")) == 2
    assert row.steps["serve"].status == "pass"


def test_an_unknown_name_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "try_model", lambda *_, **__: pytest.fail("a model ran"))
    with pytest.raises(UsageError, match="did you mean resnet18"):
        run_zoo(["googlenet", "resnet81"])
