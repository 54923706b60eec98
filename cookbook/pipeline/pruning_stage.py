"""Pruning as a stage: how far follows from the budget and from what integers will bring (lesson 08)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from torch import Tensor, nn

from cookbook.errors import CookbookError, UsageError
from cookbook.measure import count_parameters
from cookbook.pipeline.stage import Outcome, Work
from cookbook.pruning import (
    Importance,
    Latency,
    LayerTable,
    OrtClock,
    Parameters,
    Pruned,
    Target,
    fine_tune,
    prunable_layers,
    prune,
)
from cookbook.pruning import reestimate_batchnorm as reestimate
from cookbook.pruning.recovery import BatchNorm
from cookbook.pruning.targets import Value
from cookbook.training import Recipe

AIM, TOLERANCE = 0.95, 0.05  # a little below the bound, so that what is reached within the tolerance keeps it
RELAXED = 1.3  # factor on a share that no widths reach, until some do


class UndecidedError(CookbookError):
    """A latency could not be told on this machine now; neither another share nor another argument would help."""


@dataclass(frozen=True)
class _Decisive:
    """A target whose failure to measure is told apart from a share that is out of reach."""

    target: Target

    @property
    def share(self) -> float:
        return self.target.share

    @property
    def tolerance(self) -> float:
        return self.target.tolerance

    @property
    def needs_weights(self) -> bool:
        return self.target.needs_weights

    def predictor(self, model: nn.Module, example: Tensor) -> Value:
        return self.target.predictor(model, example)

    def confirmer(self, model: nn.Module, example: Tensor) -> Value | None:
        confirm = self.target.confirmer(model, example)
        if confirm is None:
            return None

        def decisive(candidate: nn.Module) -> float:
            try:
                return confirm(candidate)
            except UsageError as error:
                raise UndecidedError(
                    "The latency that a pruned network would have cannot be told while other work disturbs this machine: close "
                    "what else computes here and call again, which goes on at this point, or prune to counted operations, such "
                    "as Prune(MACs(0.5)) or --macs 0.5."
                ) from error

        return decisive


@dataclass(frozen=True)
class Prune:
    """Removes channels until the budget's latency and bytes are in reach; what integers will bring is counted in.

    Attributes:
        target: such as ``MACs(0.3)``, in place of what follows from the budget. Counted targets give the same widths
            on every machine, a measured latency may not.
        importance: of a channel; see `cookbook.pruning.channel_scores`.
        multiples: widths are multiples of the first number; of the next where that reaches no target.
        exclude: layers that keep their channels.
        recipe: of a fine-tuning on hard labels after the surgery; None: the pipeline's where no distillation
            follows, and none where one does.

    Raises:
        UsageError: a multiple is below 1, or there is none.
    """

    target: Target | None = None
    importance: Importance = "l1"
    multiples: tuple[int, ...] = (16, 8)
    exclude: tuple[str, ...] = ()
    recipe: Recipe | None = None
    name: str = "prune"

    def __post_init__(self) -> None:
        if not self.multiples or min(self.multiples) < 1:
            raise UsageError(f"multiples is {self.multiples}: give one or more whole numbers of at least 1, such as (16, 8).")

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the stage."""
        return {
            "stage": self.name, "target": repr(self.target), "importance": self.importance, "multiples": list(self.multiples),
            "exclude": list(self.exclude), "recipe": None if self.recipe is None else asdict(self.recipe),
        }  # fmt: skip

    def epochs(self, recipe: Recipe, later: tuple[str, ...]) -> int:
        """Return the epochs of the fine-tuning."""
        own = self._recipe(recipe, later)
        return 0 if own is None else own.epochs

    def apply(self, model: nn.Module, work: Work) -> Outcome:
        """Return the pruned model, its BatchNorm statistics estimated again.

        Raises:
            UsageError: the model cannot be pruned safely.
            UndecidedError: a latency cannot be told on this machine now.
        """
        pruned, note = work.kept("pruned", lambda: self._cut(model, work))
        recipe = self._recipe(work.recipe, work.later)
        if recipe is None:
            return Outcome(pruned, work.scheme, note=note)
        pruned.to(work.device)
        started = time.perf_counter()
        fine_tune(pruned, work.training(), work.fitting(recipe, pruned), checkpoint=work.state, progress=work.progress)
        here = time.perf_counter() - started
        return Outcome(pruned.cpu(), work.scheme, None, note, work.spent(), here)

    def _recipe(self, recipe: Recipe, later: tuple[str, ...]) -> Recipe | None:
        return self.recipe if self.recipe is not None or "distill" in later else recipe

    def _cut(self, model: nn.Module, work: Work) -> tuple[nn.Module, str]:
        """Return the pruned model, and what a reader should know of it."""
        example, notes = work.example, list[str]()
        prunable_layers(model, example, exclude=self.exclude)  # says now, and not as a share out of reach, what is wrong
        cut = model
        for template, share in self._targets(work):
            left = (
                share * count_parameters(work.original) / count_parameters(cut) if isinstance(template, Parameters) else share
            )
            name = type(template).__name__
            reached = self._reach(cut, work, template, left) if left < 1 else None
            if reached is not None:
                cut = reached.model
                notes.append(f"{name}: {reached.reached:.3f} of the unpruned model's is left, {left:.3f} was aimed at.")
            elif left < 1:
                notes.append(f"{name}: no widths in multiples of {self.multiples[-1]} come below the unpruned model's.")
        if cut is not model and any(isinstance(module, BatchNorm) and module.track_running_stats for module in cut.modules()):
            reestimate(cut, work.calibration(work.batch_size))
        remain = f"{count_parameters(cut):,} of {count_parameters(work.original):,} parameters remain."
        return cut, " ".join([*notes, remain])

    def _targets(self, work: Work) -> list[tuple[Latency | Parameters | Target, float]]:
        """Return what to aim at, and the share of each that may remain."""
        if self.target is not None:
            return [(self.target, self.target.share)]
        if self.name in work.earlier:
            raise UsageError("The budget says how far to prune once: give a second pruning a target, such as MACs(0.5).")
        gain, budget = work.gain(), work.budget
        found: list[tuple[Latency | Parameters | Target, float]] = []
        if budget.latency is not None:
            found.append(
                (Latency(0.5, TOLERANCE, clock=OrtClock(rounds=60), table=LayerTable()), budget.latency * gain.latency)
            )
        if budget.bytes is not None:
            found.append((Parameters(0.5, TOLERANCE), budget.bytes * gain.bytes))
        return [(template, AIM * share) for template, share in found]

    def _reach(self, model: nn.Module, work: Work, template: Latency | Parameters | Target, share: float) -> Pruned | None:
        """Prune to the share, or where it follows from the budget to the next larger one that some widths reach; None: to none.

        Raises:
            UsageError: the target was asked for, and no widths reach it.
        """
        while share < 1:
            for multiple in self.multiples:
                target = template if template is self.target else replace(template, share=share)  # type: ignore[type-var]
                try:
                    return prune(
                        model, work.example, target=_Decisive(target), importance=self.importance, multiple=multiple,
                        exclude=self.exclude, batches=work.calibration(), seed=work.recipe.seed,
                    )  # fmt: skip
                except UndecidedError:
                    raise
                except UsageError:  # out of reach with this multiple
                    if template is self.target and multiple == self.multiples[-1]:
                        raise
            share *= RELAXED
        return None
