"""Steps are those of plain torch, ratios are what their names say, and memory grows with the batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from cookbook.accelerator.mixed_precision import StepCost, memory_ratios, record_accuracy, step_costs, time_ratios
from cookbook.accelerator.setting import FULL, REHEARSAL, Setting, Workload
from cookbook.accelerator.stepper import Stepper, resident_step, step_recipe, training_memory
from cookbook.measure import Timing, peak_memory
from cookbook.models import PerceptronConfig, ResNetConfig, build
from cookbook.precision import PrecisionName

CPU = torch.device("cpu")
SETTING = Setting(CPU, REHEARSAL)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_that_of_a_loop_written_by_hand(precision: PrecisionName) -> None:
    workload = REHEARSAL.workloads[0]
    torch.manual_seed(1)
    model = build(workload.config)
    twin = copy.deepcopy(model).train()
    recipe = step_recipe(precision)
    stepper = Stepper(model, recipe)
    decayed = [p for p in twin.parameters() if p.ndim >= 2]
    others = [p for p in twin.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)
    images, labels = workload.random_batch(CPU)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(twin(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(stepper(images, labels), loss.detach())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_stepper_leaves_kernels_and_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = build(PerceptronConfig())
    torch.manual_seed(5)
    Stepper(model, step_recipe("fp32"))
    assert torch.equal(torch.rand(3), expected)
    assert torch.backends.cudnn.deterministic is False


def test_a_batch_is_the_same_each_time_and_as_large_as_asked() -> None:
    workload = Workload("key", "name", ResNetConfig(classes=3), (1, 8, 8), 6)
    (images, labels), (again, _) = workload.random_batch(CPU), workload.random_batch(CPU)
    assert torch.equal(images, again)
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((6, 1, 8, 8), torch.float32, (6,), torch.int64)
    assert set(labels.tolist()) <= {0, 1, 2}
    assert len(workload.random_batch(CPU, 2)[1]) == 2


def test_a_step_on_a_larger_batch_takes_more_memory() -> None:
    workload = Workload("wide", "", PerceptronConfig(hidden=(64,)), (1, 28, 28), 64)
    build(workload.config)
    small, large = (
        training_memory(lambda batch=batch: resident_step(workload, "fp32", CPU, batch=batch), CPU)[0] for batch in (64, 32_768)
    )
    assert large > small + 4 * 32_768 * 64  # at least one activation and its gradient


def test_memory_is_that_of_one_step_after_the_first_ones() -> None:
    calls: list[int] = []
    peak, reserved = training_memory(lambda: lambda: calls.append(1), CPU)
    assert len(calls) == 4
    assert peak == reserved
    assert peak < 2**24 or peak_memory(lambda: None) > 2**24


def cost(median: float, allocated: int = 1, reserved: int = 1) -> StepCost:
    return StepCost(Timing((median,) * 5, 1, 8), False, allocated, reserved)


COSTS = {
    "resnet20": {"fp32": cost(1.0, 10, 10), "tf32": cost(0.9, 10, 10), "bf16": cost(0.8, 6, 7), "fp16": cost(0.5, 5, 5)},
    "resnet50": {"fp32": cost(4.0, 100, 100), "tf32": cost(2.0, 98, 99), "bf16": cost(1.0, 55, 65), "fp16": cost(0.5, 50, 60)},
    "transformer": {"fp32": cost(3.0, 8, 8), "bf16": cost(1.0, 4, 4)},
}


def test_time_ratios_name_both_sides() -> None:
    values = time_ratios(COSTS)  # type: ignore[arg-type]
    assert values["step_time_ratio"] == values["step_time_ratio_resnet50"] == 4.0
    assert values["step_time_ratio_low"] == values["step_time_ratio_high"] == 4.0
    assert values["step_time_ratio_resnet50_tf32"] == 2.0
    assert values["step_time_ratio_resnet50_fp16"] == 8.0
    assert values["step_time_ratio_resnet50_fp16_tf32"] == 4.0
    assert values["step_time_ratio_resnet20"] == pytest.approx(1.25)
    assert values["step_time_ratio_transformer"] == 3.0
    assert "step_time_ratio_transformer_tf32" not in values
    assert "step_time_ratio_tf32" not in values


def test_memory_ratios_divide_by_fp32() -> None:
    values = memory_ratios(COSTS)  # type: ignore[arg-type]
    assert (values["memory_ratio"], values["reserved_ratio"]) == (0.55, 0.65)
    assert (values["memory_ratio_resnet50_fp16"], values["memory_ratio_resnet20_bf16"]) == (0.5, 0.6)
    assert "memory_ratio_transformer_fp16" not in values


def test_the_faster_memory_format_represents_a_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(steps: dict[str, object], **options: object) -> dict[str, Timing]:
        seconds = {"fp32 False": 1.0, "fp32 True": 2.0, "bf16 False": 4.0, "bf16 True": 3.0}
        assert set(steps) == set(seconds)
        return {name: Timing((seconds[name],) * 3, 1, 4) for name in steps}

    monkeypatch.setattr("cookbook.accelerator.mixed_precision.interleave", timed)
    monkeypatch.setattr("cookbook.accelerator.mixed_precision.training_memory", lambda make, device: (7, 9))
    costs = step_costs(SETTING, REHEARSAL.workloads[0])
    assert {name: (found.timing.median, found.channels_last) for name, found in costs.items()} == {
        "fp32": (1.0, False), "bf16": (3.0, True),
    }  # fmt: skip


def test_accuracies_are_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scored:
        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

    lower = {0: 0.001, 1: 0.002, 2: 0.003}

    def trained(setting: Setting, config: ResNetConfig, precision: PrecisionName, seed: int) -> Scored:
        assert config == REHEARSAL.accuracy_model
        return Scored(0.9 + 0.01 * seed - (lower[seed] if precision == "bf16" else 0))

    monkeypatch.setattr("cookbook.accelerator.mixed_precision.train_once", trained)
    (row,) = record_accuracy(SETTING)
    assert row.seeds == (0, 1, 2)
    assert row.values["accuracy_difference_points"] == pytest.approx(-0.2)
    assert row.values["accuracy_difference_points_low"] == pytest.approx(-0.2 - 4.30265 * 0.1 / 3**0.5, abs=1e-4)
    assert row.values["accuracy_bf16_seed_2"] == pytest.approx(91.7)


def test_full_scale_is_large_enough_for_evidence() -> None:
    assert [workload.key for workload in FULL.workloads] == ["resnet20", "resnet50", "transformer"]
    assert FULL.images is None
    assert len(FULL.accuracy_seeds) >= 3
    assert len(FULL.speedrun_seeds) >= 10
    assert FULL.rounds >= 20
