"""The pipeline as a whole: stages in any order, measured, chosen and reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import label
from tiny_case import RECIPE, Scale, shrink, tiny_data, tiny_net

from cookbook.data import ResidentLoader
from cookbook.deploy import Runtime, kernels
from cookbook.errors import CheckpointError, UsageError
from cookbook.evidence import Ledger
from cookbook.models import ResNetConfig, build
from cookbook.pipeline import Budget, Distill, Gain, Prune, Quantize, Work, build_stages, make_plan, runner
from cookbook.pipeline.folder import load_weights
from cookbook.pipeline.pruning_stage import UndecidedError
from cookbook.pruning import Latency, MACs
from cookbook.quantization.scheme import Scheme
from cookbook.training import evaluate

LOOSE = Budget(latency=100.0, accuracy_drop=100.0)
PRUNE = Prune(MACs(0.5), multiples=(4,))


def test_one_run_prunes_distills_and_quantizes(tmp_path: Path) -> None:
    model, before = tiny_net(), tiny_net().state_dict()
    found = shrink(tmp_path, model=model, stages=(PRUNE, Distill(), Quantize()), budget=LOOSE, entropy_coded=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [stage.name for stage in found.stages] == ["prune", "distill", "quantize"]
    assert found.met and found.chosen == 2 and "is met" in str(found)
    assert found.path.read_bytes() == found.stages[2].path.read_bytes()
    assert kernels(found.path).coverage["linear"].share == 1.0
    assert not kernels(found.stages[1].path).quantized
    base, pruned = found.baseline.macs, found.stages[0].measurement.macs
    assert base is not None and pruned is not None and abs(pruned / base - 0.5) < 0.05 * 0.5
    assert found.relative.bytes < 0.5 and found.packed is not None
    # what is reported of the file is what the file does
    test = tiny_data().test
    right = (Runtime(found.path)(test.normalized()).argmax(1) == test.labels).sum()
    assert (found.test[1].correct, found.test[1].split, found.measurement.split) == (right, "test", "validation")
    subjects = [row.subject for row in Ledger(tmp_path / "ledger.jsonl").measurements()]
    assert subjects[:4] == ["baseline", "prune", "baseline", "prune → distill"] and subjects[-2] == "baseline"


def test_distillation_trains(fast: None, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=12)
    teacher = tiny_net(1)
    shrink(tmp_path / "teacher", model=teacher, stages=(Distill(recipe, alpha=0.0),), budget=LOOSE)
    taught = load_weights(teacher, tmp_path / "teacher" / "1-distill" / "model.safetensors")
    validation = ResidentLoader(tiny_data().validation, 70)
    assert evaluate(taught, validation).accuracy > max(0.8, evaluate(teacher, validation).accuracy)


ORDERS = [("quantize", "prune"), ("quantize", "distill"), ("distill", "prune"), ("prune", "quantize")]


@pytest.mark.parametrize("stages", ORDERS, ids="-".join)
def test_any_order_and_subset_ends_in_the_file_that_it_names(fast: None, tmp_path: Path, stages: tuple[str, ...]) -> None:
    objects: dict[str, Any] = {"prune": PRUNE, "distill": Distill(), "quantize": Quantize()}
    chosen = [objects[name] for name in stages]
    found = shrink(tmp_path, stages=chosen, budget=LOOSE, recipe=replace(RECIPE, epochs=1))
    assert [stage.name for stage in found.stages] == list(stages) and found.chosen == 1
    trained = stages[-1] == "quantize" or stages == ("quantize", "distill")
    wanted = "trained integers" if trained else "integers" if "quantize" in stages else "float"
    assert label(found.path) == wanted
    pruned = found.measurement.macs != found.baseline.macs
    assert pruned == ("prune" in stages)
    assert [stage.training_seconds > 0 for stage in found.stages] == [True, True]


def test_a_stage_of_ones_own_needs_no_base_class(fast: None, tmp_path: Path) -> None:
    found = shrink(tmp_path, stages=(Scale(0.5), Scale(2.0, "again")), budget=LOOSE)
    own = load_weights(tiny_net(), tmp_path / "2-again" / "model.safetensors")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in tiny_net().state_dict().items())
    assert [stage.note for stage in found.stages] == ["Times 0.5, after nothing.", "Times 2, after scale."]


def test_a_violated_budget_is_never_reported_as_met(fast: None, tmp_path: Path) -> None:
    found = shrink(tmp_path, budget=Budget(latency=1e-6, accuracy_drop=0.0, bytes=0.25))
    assert not found.met and [violation.bound for violation in found.violations] == ["latency", "bytes"]
    for text in (str(found), found.report.read_text()):
        assert "The budget is not met" in text and "is met" not in text


def test_a_model_that_only_guesses_is_told_from_one_that_knows(fast: None, tmp_path: Path) -> None:
    model = tiny_net()
    with torch.no_grad():
        model.head.bias.add_(torch.tensor([100.0, 0.0, 0.0]))  # the same class for every image
    guess = shrink(tmp_path / "guess", model=model, budget=LOOSE)
    labels = tiny_data().validation.labels
    assert guess.guessing == max(int((labels == label).sum()) for label in range(3)) / len(labels)
    assert "is met" in guess.verdict and "better than guessing (3" in guess.verdict
    assert "guessing" not in replace(guess, baseline=replace(guess.baseline, correct=guess.baseline.images)).verdict


@pytest.mark.parametrize("gain", [None, 1.6])
def test_pruning_goes_as_far_as_the_budget_and_the_integers_ask(
    fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float | None
) -> None:
    """Integers that are 1.6 times smaller by themselves leave 1.6 times as many parameters."""
    stages: tuple[Any, ...] = (Prune(multiples=(1,)),)
    if gain is not None:
        monkeypatch.setattr(runner.Compression, "_gain", lambda self: Gain(1.0, gain))
        stages = (*stages, Quantize("ptq"))
    found = shrink(tmp_path, stages=stages, budget=Budget(None, 100.0, bytes=0.4), recipe=replace(RECIPE, epochs=1))
    share = found.stages[0].measurement.parameters / found.baseline.parameters  # type: ignore[operator]
    assert share == pytest.approx(0.95 * 0.4 * (gain or 1.0), rel=0.06)
    assert "Parameters" in found.stages[0].note


def test_the_gain_of_integers_is_measured_once(fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Gain] = []

    def ask(work: Work) -> None:
        asked.extend([work.gain(), work.gain()])

    shrink(tmp_path, stages=(Scale(fail=ask), Quantize("ptq")), budget=LOOSE)
    assert asked[0] == asked[1] and asked[0].latency > 0
    sizes = [(tmp_path / "0-baseline" / name).stat().st_size for name in ("model.onnx", "integers.onnx")]
    assert asked[0].bytes == sizes[0] / sizes[1]


def test_every_stage_sees_an_order_of_its_own(fast: None, tmp_path: Path) -> None:
    orders: list[torch.Tensor] = []

    def look(work: Work) -> None:
        orders.append(torch.cat([labels for _, labels in work.training().batches(0)]))

    shrink(tmp_path, stages=(Scale(fail=look), Scale(1.0, "again", fail=look)), budget=LOOSE)
    assert not torch.equal(orders[0], orders[1]) and torch.equal(orders[0].sort().values, orders[1].sort().values)


def test_channels_last_is_left_where_pruned_widths_are_too_narrow_for_it(fast: None, tmp_path: Path) -> None:
    recipe = replace(RECIPE, channels_last=True)
    asked: list[bool] = []

    def look(work: Work) -> None:
        asked.extend(work.fitting(recipe, build(ResNetConfig(depth=8, width=width))).channels_last for width in (8, 16))

    shrink(tmp_path, stages=(Scale(fail=look),), budget=LOOSE)
    assert asked == [False, True]


def test_a_latency_that_cannot_be_told_is_no_wrong_use(fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*arguments: Any) -> float:
        raise UsageError("The latency cannot be told within 5%.")

    monkeypatch.setattr(Latency, "predictor", lambda self, model, example: MACs(0.5).predictor(model, example))
    monkeypatch.setattr(Latency, "confirmer", lambda self, model, example: busy)
    with pytest.raises(UndecidedError, match=r"call again, which goes on at this point.*MACs") as found:
        shrink(tmp_path, stages=(Prune(multiples=(4,)),), budget=Budget(latency=0.5))
    assert not isinstance(found.value, UsageError)


def test_a_target_out_of_reach_is_said_and_one_from_the_budget_is_relaxed(fast: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be reached"):
        shrink(tmp_path / "asked", stages=(Prune(MACs(0.01), multiples=(16,)),))
    found = shrink(
        tmp_path / "budget",
        stages=(Prune(multiples=(8,)),),
        recipe=replace(RECIPE, epochs=1),
        budget=Budget(None, None, bytes=0.05),
    )
    assert not found.met and found.stages[0].measurement.parameters < found.baseline.parameters  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"model": tiny_net(1)}, "model"),
        ({"data": tiny_data(1)}, "data"),
        ({"budget": Budget(0.5)}, "budget"),
        ({"stages": (Scale(0.5),)}, "stages"),
        ({"recipe": replace(RECIPE, seed=1)}, "recipe"),
        ({"batch_size": 30}, "batch size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_belongs_to_one_compression(fast: None, tmp_path: Path, changed: dict[str, Any], word: str) -> None:
    stage = Scale(fail=_stop)
    with pytest.raises(RuntimeError):
        shrink(tmp_path, stages=(stage,))
    with pytest.raises(CheckpointError, match=f"another {word}: name another folder"):
        shrink(tmp_path, **changed)


def _stop(work: object) -> None:
    raise RuntimeError("stopped")


def test_files_of_others_are_not_overwritten(fast: None, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        shrink(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        shrink(tmp_path / "model.onnx")


@pytest.mark.parametrize("stages", ["prune", (), ("prune", "sharpen")], ids=str)
def test_unknown_stages_are_refused(stages: Any) -> None:
    with pytest.raises(UsageError, match="prune, student, distill, quantize"):
        build_stages(stages)


def test_the_splits_must_have_their_roles(fast: None, tmp_path: Path) -> None:
    data = tiny_data()
    with pytest.raises(UsageError, match="validation split must not be used"):
        shrink(tmp_path, data=replace(data, test=data.validation))


def test_impossible_settings_of_stages_are_refused() -> None:
    for make in (lambda: Prune(multiples=()), lambda: Prune(multiples=(0,)), lambda: Quantize("qqt"),  # type: ignore[arg-type]
                 lambda: Quantize(scheme=Scheme(activation_bits=4))):  # fmt: skip
        with pytest.raises(UsageError, match=r"use|give"):
            make()


def test_the_plan_names_the_epochs_of_every_stage() -> None:
    plan = make_plan(tiny_net(), tiny_data(), recipe=replace(RECIPE, epochs=5), batch_size=25, device="cpu")
    assert [(step.name, step.epochs) for step in plan.steps] == [("prune", 0), ("distill", 5), ("quantize", 1)]
    assert plan.seconds == sum(step.seconds for step in plan.steps) > 0 and "export" in str(plan)
    alone = make_plan(tiny_net(), tiny_data(), stages=("prune",), recipe=RECIPE, batch_size=25, device="cpu")
    assert [step.epochs for step in alone.steps] == [2]
