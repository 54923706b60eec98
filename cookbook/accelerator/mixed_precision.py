"""What 16 bits save and cost in training: amp-01, amp-02 and amp-03 (lesson 02)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from cookbook.accelerator.setting import Setting, Workload, release
from cookbook.accelerator.stepper import resident_step, training_memory
from cookbook.data import ResidentLoader
from cookbook.environment import provenance, seed_everything
from cookbook.evidence import ClaimEvidence, Measurement
from cookbook.measure import Ratio, Timing, compare_seeds, count_parameters, interleave, speedup
from cookbook.models import ResNetConfig, build
from cookbook.precision import PrecisionName
from cookbook.training import Evaluation, evaluate, fit

LESSON = "02"


@dataclass(frozen=True)
class StepCost:
    """What a training step takes in one precision.

    Attributes:
        timing: of the step, in the faster memory format.
        channels_last: whether that is channels-last.
        allocated: peak of the memory that tensors held, in bytes.
        reserved: peak of the memory that the allocator held, in bytes.
    """

    timing: Timing
    channels_last: bool
    allocated: int
    reserved: int


Costs = dict[PrecisionName, StepCost]


def record_step_costs(setting: Setting) -> Iterator[Measurement | ClaimEvidence]:
    """Time a step and read its peak memory for each model in each precision; then judge amp-01 and amp-02."""
    costs: dict[str, Costs] = {}
    for workload in setting.scale.workloads:
        costs[workload.key] = step_costs(setting, workload)
        yield from cost_rows(setting, workload, costs[workload.key])
    yield setting.evidence("amp-01", LESSON, memory_ratios(costs), "peaks of one training step, everything resident included")
    yield setting.evidence("amp-02", LESSON, time_ratios(costs), "step time of fp32 (or tf32) over that of 16 bits")


def step_costs(setting: Setting, workload: Workload) -> Costs:
    """Time one step in all precisions in turns, then measure the memory of each alone on the device.

    Convolutional networks are timed in both memory formats, and each precision is represented by
    its faster one: fp32 kernels want another format than 16-bit kernels, and a comparison in one
    format would favour one side.
    """
    formats = (False, True) if workload.convolutional else (False,)
    sides = [(name, last) for name in setting.precisions for last in formats]
    steps = {
        f"{name} {last}": resident_step(workload, name, setting.device, channels_last=last) for name, last in sides
    }  # fmt: skip
    timings = interleave(steps, batch=workload.batch, rounds=setting.scale.rounds, warmup=3, device=setting.device)
    steps.clear()
    costs: Costs = {}
    for name in setting.precisions:
        timing, last = min(((timings[f"{name} {last}"], last) for last in formats), key=lambda pair: pair[0].median)
        make = partial(resident_step, workload, name, setting.device, channels_last=last)
        costs[name] = StepCost(timing, last, *training_memory(make, setting.device))
    release(setting.device)
    return costs


def cost_rows(setting: Setting, workload: Workload, costs: Costs) -> Iterator[Measurement]:
    """Yield one row a precision."""
    parameters = count_parameters(build(workload.config))
    for name, cost in costs.items():
        yield Measurement(
            subject=f"{workload.name}, {name}", lesson=LESSON, runtime="torch eager, training",
            parameters=parameters, step_seconds=cost.timing.median,
            values={
                "batch": workload.batch, "step_seconds_p10": cost.timing.p10, "step_seconds_p90": cost.timing.p90,
                "training_peak_bytes": cost.allocated, "training_reserved_bytes": cost.reserved,
                "channels_last": float(cost.channels_last),
            },
            provenance=provenance(setting.device),
        )  # fmt: skip


def memory_ratios(costs: dict[str, Costs]) -> dict[str, float]:
    """Return peak memory over that of fp32: for bf16 on ResNet-50 as ``memory_ratio``, and for every model and precision."""
    values = {}
    for key, by_precision in costs.items():
        full = by_precision["fp32"]
        for name in ("bf16", "fp16"):
            if name in by_precision:
                half = by_precision[name]
                # the resident set of a tiny rehearsal may not grow at all
                values[f"memory_ratio_{key}_{name}"] = half.allocated / max(1, full.allocated)
                values[f"reserved_ratio_{key}_{name}"] = half.reserved / max(1, full.reserved)
    return {
        "memory_ratio": values["memory_ratio_resnet50_bf16"],
        "reserved_ratio": values["reserved_ratio_resnet50_bf16"],
        **values,
    }


def time_ratios(costs: dict[str, Costs]) -> dict[str, float]:
    """Return how many times faster 16 bits are.

    ``step_time_ratio_MODEL`` is fp32 over bf16, with ``_low`` and ``_high``; ``_fp16`` in the name means
    fp16 instead of bf16, ``_tf32`` that TF32 is the baseline. ``step_time_ratio`` is ResNet-50's.
    """
    values: dict[str, float] = {}
    for key, by_precision in costs.items():
        for baseline, start in (("fp32", ""), ("tf32", "_tf32")):
            for half, end in (("bf16", ""), ("fp16", "_fp16")):
                if baseline in by_precision and half in by_precision:
                    ratio = speedup(by_precision[baseline].timing, by_precision[half].timing)
                    values |= with_interval(f"step_time_ratio_{key}{end}{start}", ratio)
    main = {
        name.replace("step_time_ratio_resnet50", "step_time_ratio"): value
        for name, value in values.items()
        if name in {f"step_time_ratio_resnet50{end}" for end in ("", "_low", "_high")}
    }
    return main | values


def with_interval(name: str, ratio: Ratio) -> dict[str, float]:
    """Return a ratio with the ends of its interval, as values of a claim."""
    return {name: ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}


def record_accuracy(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge amp-03: train with the same seeds in every precision and compare the accuracies in pairs."""
    scores: dict[PrecisionName, list[float]] = {name: [] for name in setting.precisions if name != "tf32"}
    seeds = setting.scale.accuracy_seeds
    for seed in seeds:
        for name, found in scores.items():
            found.append(100 * train_once(setting, setting.scale.accuracy_model, name, seed).accuracy)
    values: dict[str, float] = {}
    for name in setting.half_precisions:
        comparison = compare_seeds(scores["fp32"], scores[name])
        key = "accuracy_difference_points" + ("" if name == "bf16" else f"_{name}")
        values |= {key: comparison.difference, f"{key}_low": comparison.low, f"{key}_high": comparison.high}
    for name, found in scores.items():
        values |= {f"accuracy_{name}_seed_{seed}": score for seed, score in zip(seeds, found, strict=True)}
    yield setting.evidence("amp-03", LESSON, values, "test accuracy in percent, 16 bits minus fp32, same seeds", seeds)


def train_once(setting: Setting, config: ResNetConfig, precision: PrecisionName, seed: int) -> Evaluation:
    """Train a fresh model for the short recipe and evaluate it in fp32 on the test split."""
    scale = setting.scale
    seed_everything(seed)
    model = build(config).to(setting.device)
    loader = ResidentLoader(
        setting.splits.train, scale.accuracy_batch, augmentation=scale.speedrun.augmentation, device=setting.device, seed=seed
    )
    fit(model, loader, replace(scale.accuracy_recipe, precision=precision, seed=seed))
    return evaluate(model, ResidentLoader(setting.splits.test, 1000, device=setting.device))
