"""What the long pruning experiment cuts and trains: its arms, one training at a time, resumable (lesson 04)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch_pruning  # the peer itself: what its defaults give is measured beside ours
from torch import Tensor, nn

from cookbook.data import Augmentation, Loader, ResidentLoader, Split, load_fashion_mnist
from cookbook.distillation import ViewLoader, augmented_views, distill, fingerprint, teacher_logits
from cookbook.environment import seed_everything
from cookbook.errors import EvidenceError
from cookbook.experiments.command import KeepsNetworks, Task
from cookbook.experiments.pruning_plan import Plan
from cookbook.measure import count_macs
from cookbook.models import ResNetConfig, build, load, save
from cookbook.models.widths import config_of_widths
from cookbook.pruning import (
    Clock,
    Importance,
    Latency,
    LayerTable,
    OrtClock,
    allocate_ratios,
    prunable_layers,
    prune,
    prune_channels,
    reestimate_batchnorm,
    scan_sensitivity,
    scratch_control,
    width_of_equal_latency,
)
from cookbook.training import Recipe, evaluate, fit
from cookbook.training.memory_format import fitting_recipe


class Experiment(KeepsNetworks):
    """A plan with its unpruned model, its data and its folder.

    Args:
        plan: what is done.
        baseline: file that `cookbook.models.save` wrote.
        folder: for checkpoints and trained networks; one sub-folder a plan and baseline.
        clock: times whole networks; None: `OrtClock` with 60 rounds.
        table: predicts their latency; None: a new `LayerTable`.
    """

    def __init__(
        self, plan: Plan, baseline: Path, folder: Path, *, clock: Clock | None = None, table: LayerTable | None = None
    ) -> None:
        self.plan, self.clock, self.table = plan, clock or OrtClock(rounds=60), table or LayerTable()
        self.model = load(baseline)
        self.folder = folder / f"{plan.digest()}-{fingerprint(self.model)[:8]}"
        self.splits = load_fashion_mnist()
        self.train_split = self.splits.train.subset(plan.images)
        self.example = self.splits.validation.normalized()[:1]
        self.judged = ResidentLoader(self.splits.train.subset(plan.judged), min(100, plan.judged), shuffle=False)
        self.chosen_by = ResidentLoader(self.splits.validation.subset(plan.judged), 250)

    def tasks(self, stage: str) -> list[Task]:
        """Return the trainings of ``small``, ``small-tuned``, ``baseline`` or ``controls``."""
        plan = self.plan
        arms = {
            "small": ["small"],
            "small-tuned": [*(f"small-{name}" for name in plan.criteria), "small-scratch"],
            "baseline": [*plan.latencies, "peer"],
        }
        if stage == "controls":
            return [Task(arm, seed) for arm in ("half-hard", "scratch", "narrow") for seed in plan.control_seeds]
        return [Task(arm, seed) for arm in arms[stage] for seed in plan.seeds]

    @functools.cached_property
    def views(self) -> list[Split]:
        """Fixed augmented copies of the training images."""
        crop_and_flip = Augmentation(crop=self.plan.augmentation.crop, flip=self.plan.augmentation.flip)
        return augmented_views(self.train_split, crop_and_flip, self.plan.views)

    def answers(self) -> Tensor:
        """Return the unpruned model's logits (views, N, classes), asked for once and kept in the cache."""
        precision = self.plan.original.precision
        return torch.stack([teacher_logits(self.model, view, precision=precision) for view in self.views])

    def prepare(self) -> None:
        """Cut the baseline for every arm, and write what comes out; what lies there is kept."""
        plan, scan = self.plan, None
        for arm, share in plan.latencies.items():
            if self.cut_file(arm).exists():
                continue
            if scan is None:
                scan = scan_sensitivity(
                    self.model, self.example, self.chosen_by, ratios=(0.5,), multiple=plan.multiple, statistics=self.judged
                )
            widths = prunable_layers(self.model, self.example)
            self._write(arm, self._best(share, widths, allocate_ratios(scan, 0.5, widths)))
        half = load(self.cut_file("half"))
        if not self.cut_file("peer").exists():
            self._write("peer", peer(self.model, self.example, count_macs(half, self.example), plan.equal_macs))
        if not self.cut_file("narrow").exists():
            config: ResNetConfig = self.model.config  # type: ignore[assignment]
            width, _ = width_of_equal_latency(
                half, lambda w: build(replace(config, width=w)), plan.widths, self.example, clock=self.clock
            )
            self._write("narrow", build(replace(config, width=width)))

    def _best(self, share: float, widths: dict[str, int], scanned: dict[str, float]) -> nn.Module:
        """Return the network of this latency with the best validation accuracy before training, over criteria and ratios."""
        plan, found = self.plan, []
        for kind, proportions in (("uniform", None), ("scanned", scanned)):
            target = Latency(share, tolerance=plan.tolerance, table=self.table, clock=self.clock)
            shape = prune(self.model, self.example, target=target, multiple=plan.multiple, proportions=proportions)
            ratios = {name: 1 - shape.widths[name][1] / width for name, width in widths.items()}
            for criterion in plan.criteria:
                cut = prune_channels(
                    self.model, self.example, ratio=ratios, importance=criterion, multiple=plan.multiple, batches=self.judged
                )
                reestimate_batchnorm(cut, self.judged)
                accuracy = evaluate(cut, self.chosen_by).accuracy
                found.append((accuracy, f"{kind}, {criterion}", cut))
                print(f"{share:.2f} of the latency, {kind}, {criterion}: validation {accuracy:.2%} before training", flush=True)
        return max(found, key=lambda entry: entry[0])[2]

    def _write(self, arm: str, cut: nn.Module) -> None:
        save(cut, self.cut_file(arm))

    def cut_file(self, arm: str) -> Path:
        """Return where the untrained network of an arm lies."""
        return self.folder / f"cut-{arm}.safetensors"

    def cut_small(self, criterion: Importance, seed: int) -> nn.Module:
        """Return the small network of a seed without half of its channels, before any training."""
        return prune_channels(
            self.network(Task("small", seed)), self.example, ratio=0.5, importance=criterion, seed=seed,
            multiple=self.plan.small_multiple, batches=self.judged,
        )  # fmt: skip

    def train(self, task: Task) -> None:
        """Train one network, or go on where it was interrupted, and write it."""
        if self.file(task).exists():
            return
        model, recipe, loader, trained_by = self._setting(task)
        state = self.folder / f"{task.name}.state"
        recipe = fitting_recipe(recipe, model, torch.device("cpu"))  # half of few channels may be too few for channels-last
        trained_by(model, loader, replace(recipe, seed=task.seed), checkpoint=state)
        save(model, self.file(task))
        state.unlink()
        print(f"{task.name}: validation {evaluate(model, self.chosen_by).accuracy:.2%}", flush=True)

    def _setting(self, task: Task) -> tuple[nn.Module, Recipe, Loader, Callable[..., Any]]:
        """Return the network to train, its recipe, its images, and the function that trains it."""
        plan, arm, seed = self.plan, task.arm, task.seed
        fresh = ResidentLoader(self.train_split, plan.batch_size, augmentation=plan.augmentation, seed=seed)
        small = replace(plan.augmentation, resolutions=())
        small_fresh = ResidentLoader(self.train_split, plan.batch_size, augmentation=small, seed=seed)
        seed_everything(seed)
        if arm == "small":
            return build(plan.small), plan.small_recipe, small_fresh, fit
        if arm == "small-scratch":
            model, recipe = scratch_control(self.cut_small("l1", seed), plan.small_recipe, plan.small_tuning, seed=seed)
            return model, recipe, small_fresh, fit
        if arm.startswith("small-"):
            criterion: Importance = arm.removeprefix("small-")  # type: ignore[assignment]
            return self.cut_small(criterion, seed), plan.small_tuning, small_fresh, fit
        if arm in ("scratch", "narrow"):
            shape = load(self.cut_file("half" if arm == "scratch" else arm))
            model, recipe = scratch_control(shape, plan.original, plan.tuning, seed=seed)
            return model, recipe, fresh, fit
        if arm == "half-hard":
            return load(self.cut_file("half")), plan.tuning, ViewLoader(self.views, plan.batch_size, seed=seed), fit
        views = ViewLoader(self.views, plan.batch_size, logits=self.answers(), seed=seed)
        return load(self.cut_file(arm)), plan.tuning, views, _distill


def _distill(model: nn.Module, loader: Loader, recipe: Recipe, *, checkpoint: Path) -> None:
    distill(model, None, loader, recipe, checkpoint=checkpoint)


def peer(model: nn.Module, example: Tensor, macs: int, tolerance: float) -> nn.Module:
    """Return what Torch-Pruning's defaults make of a model at a number of multiply-accumulates: nothing is rounded.

    Its ``BasePruner`` with ``GroupMagnitudeImportance()``, one ratio for all layers, found by bisection
    (https://github.com/VainF/Torch-Pruning).

    Raises:
        EvidenceError: no ratio comes as close as the tolerance, a share of the number.
    """
    low, high = 0.0, 1.0
    found: dict[int, nn.Module] = {}
    for _ in range(12):
        ratio = (low + high) / 2
        cut: Any = copy.deepcopy(model)
        torch_pruning.BasePruner(
            cut, example, importance=torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=ratio,
            ignored_layers=[cut.head],
        ).step()  # fmt: skip
        cut.config = config_of_widths(cut, model)
        count = count_macs(cut, example)
        found[count] = cut
        low, high = (ratio, high) if count > macs else (low, ratio)
    closest = min(found, key=lambda count: abs(count - macs))
    if abs(closest / macs - 1) > tolerance:
        raise EvidenceError(f"Torch-Pruning's default recipe does not come near {macs:,} MACs: the closest has {closest:,}.")
    return found[closest]
