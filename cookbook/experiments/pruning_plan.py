"""The plan of the long pruning experiment, fixed before the first result is seen (lesson 04)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from cookbook.data import Augmentation
from cookbook.errors import EvidenceError
from cookbook.experiments.command import FixedPlan
from cookbook.models import ResNetConfig
from cookbook.precision import PrecisionName
from cookbook.pruning import Importance, fine_tuning_recipe
from cookbook.training import Recipe

CRITERIA: tuple[Importance, ...] = ("l1", "l2", "gamma", "taylor", "fpgm", "random")
SMALL = ResNetConfig(depth=8, width=16)
SMALL_RECIPE = Recipe(epochs=10, learning_rate=0.2, channels_last=True)


@dataclass(frozen=True, kw_only=True)
class Plan(FixedPlan):
    """Everything that decides the outcome, fixed before the first result is seen.

    Attributes:
        images: training images.
        original: recipe of the unpruned model; the fine-tuning is a share of it.
        augmentation: of the trainings from scratch.
        share: of the original epochs that fine-tuning gets.
        rate: of the original learning rate that fine-tuning begins with.
        views: fixed augmented copies of every image that fine-tuning sees.
        seeds: of the fine-tunings.
        control_seeds: those of the baseline's controls that train from scratch.
        latencies: shares of the unpruned latency, by name of the arm.
        tolerance: of these shares.
        multiple: widths are multiples of it.
        criteria: tried by validation accuracy before any training.
        judged: images for criteria, statistics and the scan, each.
        tested: test images.
        equal_macs: how far the peer's multiply-accumulates may be off ours, as a share: one ratio for all layers moves in
            steps of a channel of the narrowest, which are up to 7 % here, and the nearest is within half of one.
        widths: of the narrower uniform networks, of which the one of equal latency is trained.
        small: architecture on which criteria are judged after training too.
        small_recipe: of it.
        small_multiple: as `multiple`, for the small architecture.
        batch_size: images per step.
    """

    images: int = 55_000
    original: Recipe
    augmentation: Augmentation
    share: float = 0.2
    rate: float = 0.25
    views: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    control_seeds: tuple[int, ...] = (0,)
    latencies: dict[str, float] = field(default_factory=lambda: {"half": 1 / 2, "third": 1 / 3})
    tolerance: float = 0.05
    multiple: int = 8
    criteria: tuple[Importance, ...] = CRITERIA
    judged: int = 2_000
    tested: int = 10_000
    equal_macs: float = 0.035
    widths: tuple[int, ...] = tuple(range(16, 32))
    small: ResNetConfig = SMALL
    small_recipe: Recipe = SMALL_RECIPE
    small_multiple: int = 8
    batch_size: int = 128

    @property
    def tuning(self) -> Recipe:
        """Recipe of the fine-tuning of the baseline."""
        return fine_tuning_recipe(self.original, share=self.share, rate=self.rate)

    @property
    def small_tuning(self) -> Recipe:
        """Recipe of the fine-tuning of the small networks."""
        return fine_tuning_recipe(self.small_recipe, share=self.share, rate=self.rate)


def plan_of(record: Path, *, rehearse: bool = False, precision: PrecisionName = "fp32") -> Plan:
    """Return the plan for a baseline by the record beside its checkpoint; for a rehearsal, a miniature.

    Args:
        record: JSON that `cookbook train` wrote.
        rehearse: return the miniature.
        precision: of the experiment's own trainings; the unpruned model was trained as its record says.

    Raises:
        EvidenceError: the record cannot be read.
    """
    try:
        fields = json.loads(record.read_text())
        original = replace(Recipe(**fields["recipe"]), precision=precision)
        steps = tuple((int(epoch), int(pixels)) for epoch, pixels in fields["augmentation"].pop("resolutions"))
        augmentation = Augmentation(**fields["augmentation"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{record} is not the record of a training ({error}): train with 'cookbook train'.") from error
    if rehearse:
        return Plan(
            images=200, original=replace(original, epochs=1, ema_decay=None, channels_last=False), augmentation=augmentation,
            views=1, latencies={"half": 0.5}, tolerance=0.6, criteria=("l1", "random"), judged=100, tested=200, widths=(16, 24),
            small=ResNetConfig(depth=8, width=8, stem_stride=2), small_multiple=4,
            small_recipe=Recipe(epochs=1, learning_rate=0.05, precision=precision),
            batch_size=20, equal_macs=0.1,
        )  # fmt: skip
    plan = Plan(original=original, augmentation=augmentation, small_recipe=replace(SMALL_RECIPE, precision=precision))
    longer = (original.epochs + plan.tuning.epochs) / original.epochs  # smaller images for the same share of the epochs
    resolutions = tuple((round(epoch * longer), pixels) for epoch, pixels in steps)
    return replace(plan, augmentation=replace(augmentation, resolutions=resolutions))
