"""How much each layer minds losing channels, and ratios by layer that follow from it (lesson 04)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.pruning.allocation import rounded
from cookbook.pruning.channels import prune_channels
from cookbook.pruning.groups import duplicate, freeze, require_group
from cookbook.pruning.importance import Importance
from cookbook.pruning.recovery import reestimate_batchnorm
from cookbook.pruning.torch_pruning_site import Surgery
from cookbook.training import evaluate

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Sensitivity:
    """Accuracy on validation when one group of channels alone is pruned, and nothing is trained afterwards.

    Attributes:
        baseline: accuracy of the unpruned model, 0 to 1.
        accuracies: by layer, and then by the share of its channels that were asked to leave. A ratio at which
            nothing left is not there.
    """

    baseline: float
    accuracies: Mapping[str, Mapping[float, float]]

    def drop(self, layer: str) -> float:
        """Return the mean loss of accuracy over the ratios of a layer, in points; a gain counts as zero.

        Raises:
            UsageError: the layer was not scanned.
        """
        if not self.accuracies.get(layer):
            raise UsageError(f"{layer} was not scanned: use one of {', '.join(self.accuracies)}.")
        losses = [100 * max(0.0, self.baseline - accuracy) for accuracy in self.accuracies[layer].values()]
        return sum(losses) / len(losses)

    def ranked(self) -> list[str]:
        """Return the layers from the least to the most sensitive."""
        return sorted(self.accuracies, key=self.drop)

    def __str__(self) -> str:
        ratios = sorted({ratio for found in self.accuracies.values() for ratio in found})
        length = max(map(len, self.accuracies))
        lines = [f"unpruned {self.baseline:.2%}", f"{'layer':<{length}}" + "".join(f"  {ratio:>6.0%}" for ratio in ratios)]
        for layer in self.ranked():
            found = self.accuracies[layer]
            cells = [f"  {found[ratio]:>6.2%}" if ratio in found else f"  {'—':>6}" for ratio in ratios]
            lines.append(f"{layer:<{length}}" + "".join(cells))
        return "\n".join(lines)


def scan_sensitivity(
    model: nn.Module,
    example: Tensor,
    validation: Loader,
    *,
    ratios: Sequence[float] = RATIOS,
    layers: Sequence[str] | None = None,
    importance: Importance = "l1",
    multiple: int = 8,
    statistics: Loader | None = None,
    **settings: Any,
) -> Sensitivity:
    """Prune one group of channels at a time, at several ratios, and evaluate on validation (Li et al., arXiv 1608.08710).

    Args:
        model: trained; it is left as it is.
        example: images (B, C, H, W) on the model's device.
        validation: images to choose by; the test split is refused.
        ratios: shares of a group's channels, between 0 and 1.
        layers: names, one for each group; None: all groups that can be pruned.
        importance: criterion, as in `prune_channels`.
        multiple: what is left of a group is a multiple of this.
        statistics: training images from which BatchNorm is estimated anew after each surgery; None: it is not.
        settings: further arguments of `prune_channels`.

    Raises:
        UsageError: no ratio, one out of range, another split than validation, no layer that could lose channels; or as
            `prune_channels`.
    """
    require_role(validation.role, ("validation",), "choose what to prune")
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UsageError(f"The ratios are {tuple(ratios)}: give one or more between 0 and 1.")
    copied = duplicate(model, example)
    groups = freeze(Surgery(copied, example[:2]).groups, (), copied)
    names = [group.name for group in groups if not group.frozen] if layers is None else list(layers)
    accuracies: dict[str, dict[float, float]] = {}
    with progress_bar("scanning layers", len(names) * len(ratios)) as advance:
        for name in names:
            group, found = require_group(groups, name, copied), {}
            for ratio in sorted(set(ratios)):
                advance(name)
                if rounded(group.width * (1 - ratio), group, multiple) == group.width:
                    continue
                pruned = prune_channels(
                    model, example, ratio={name: ratio}, importance=importance, multiple=multiple, **settings
                )
                if statistics is not None:
                    reestimate_batchnorm(pruned, statistics)
                found[ratio] = evaluate(pruned, validation).accuracy
            if found:
                accuracies[name] = found
    if not accuracies:
        raise UsageError(f"No layer can lose channels in multiples of {multiple} at these ratios: lower the multiple.")
    return Sensitivity(evaluate(model, validation).accuracy, accuracies)


def allocate_ratios(
    sensitivity: Sensitivity, ratio: float, widths: Mapping[str, int], *, most: float = 0.9
) -> dict[str, float]:
    """Return a ratio for each scanned layer: the less its loss costs, the more leaves, and `ratio` leaves of all channels.

    The share of a layer is proportional to the largest drop plus one point, minus its own drop; it is scaled so that
    the channels of all layers together are pruned by `ratio`, and held at `most`. The proportions alone serve `prune`, which
    scales them itself.

    Args:
        sensitivity: from `scan_sensitivity`.
        ratio: of all channels of the scanned layers, between 0 and 1.
        widths: channels by layer, from `prunable_layers`.
        most: largest ratio of a layer, at least `ratio` and below 1.

    Raises:
        UsageError: a value is out of range, or a scanned layer has no width.
    """
    if not 0 < ratio <= most < 1:
        raise UsageError(f"ratio is {ratio} and most {most}: use 0 < ratio ≤ most < 1.")
    missing = [name for name in sensitivity.accuracies if name not in widths]
    if missing:
        raise UsageError(f"{missing[0]} has no width: pass what prunable_layers returned for the scanned model.")
    drops = {name: sensitivity.drop(name) for name in sensitivity.accuracies}
    weights = {name: max(drops.values()) + 1 - drop for name, drop in drops.items()}
    wanted = ratio * sum(widths[name] for name in drops)
    held: set[str] = set()
    while True:
        free = [name for name in drops if name not in held]
        rest = wanted - most * sum(widths[name] for name in held)
        scale = rest / sum(weights[name] * widths[name] for name in free) if free else 0.0
        over = {name for name in free if scale * weights[name] > most}
        if not over:
            return {name: most if name in held else scale * weights[name] for name in drops}
        held |= over
