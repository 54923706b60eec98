"""The baseline trained again with other seeds, on a GPU: measure-01 (lesson 00)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from cookbook.accelerator.setting import Setting
from cookbook.data import Augmentation, ResidentLoader
from cookbook.environment import seed_everything
from cookbook.evidence import ClaimEvidence
from cookbook.files import data_directory
from cookbook.measure import spread
from cookbook.models import build
from cookbook.training import Recipe, evaluate, fit

LESSON = "00"


def record_seeds(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge measure-01: train the shipped baseline's recipe in bf16 with each seed; measured as in lesson 00."""
    recipe, augmentation = baseline_recipe(setting)
    seeds, splits = setting.scale.baseline_seeds, setting.splits
    accuracies, step_times = [], []
    for seed in seeds:
        seed_everything(seed)
        model = build(setting.scale.accuracy_model).to(setting.device)
        batch = min(128, len(splits.train))
        loader = ResidentLoader(splits.train, batch, augmentation=augmentation, device=setting.device, seed=seed)
        history = fit(model, loader, replace(recipe, seed=seed))
        accuracies.append(100 * evaluate(model, ResidentLoader(splits.validation, 500, device=setting.device)).accuracy)
        step_times.append(min(record.seconds for record in history) / len(loader))
    runs, times = spread(accuracies), spread(step_times)
    values = {"accuracy_range_points": runs.range, "step_time_range_percent": 100 * times.range / times.mean}
    values |= {f"accuracy_seed_{seed}": accuracy for seed, accuracy in zip(seeds, accuracies, strict=True)}
    yield setting.evidence("measure-01", LESSON, values, "the baseline's recipe in bf16, validation accuracy", seeds)


def baseline_recipe(setting: Setting) -> tuple[Recipe, Augmentation]:
    """Return recipe and augmentation of the shipped checkpoint's record, in bf16."""
    record = json.loads((data_directory() / "checkpoints" / "baseline.json").read_text(encoding="utf-8"))
    recipe = replace(Recipe(**record["recipe"]), precision="bf16")
    if setting.scale.baseline_epochs is not None:
        recipe = replace(recipe, epochs=setting.scale.baseline_epochs)
    fields = record["augmentation"]
    return recipe, Augmentation(**{**fields, "resolutions": tuple(map(tuple, fields["resolutions"]))})
