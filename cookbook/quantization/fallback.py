"""How many layers can be quantized within a drop of accuracy (lesson 05)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.quantization.scheme import Scheme
from cookbook.training import evaluate


@dataclass(frozen=True)
class Fallback:
    """The most layers that can be quantized within a drop.

    Attributes:
        scheme: the one that was asked for, with the layers that stay in float among its exclusions.
        module: the quantized model of that scheme.
        drop: accuracy lost on validation, in points.
        tried: numbers of layers in float, with the drop that each had, in the order in which they were tried.
    """

    scheme: Scheme
    module: nn.Module
    drop: float
    tried: tuple[tuple[int, float], ...]


def fewest_in_float(
    max_drop: float,
    build: Callable[[Scheme], nn.Module],
    model: nn.Module,
    validation: Loader,
    *,
    scheme: Scheme,
    ranked: Sequence[str],
) -> Fallback:
    """Return the quantized model with the fewest layers in float whose accuracy on validation is within `max_drop`.

    Layers go back to float in the order of their sensitivity; how many of them is found by bisection, which takes the drop
    to fall with every layer. That is the accuracy-aware fallback of the Neural Network Compression Framework, with
    bisection for its steps (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/quantizing-with-accuracy-control.html).

    Args:
        max_drop: accuracy that may be lost, in points; 0 or more.
        build: quantizes the model by a scheme.
        model: in float.
        validation: its role must be ``validation`` or ``train``.
        scheme: what is wanted.
        ranked: names of layers, the most sensitive first, as `SensitivityReport.ranked` returns them.

    Raises:
        UsageError: a negative or non-finite drop, the test split, or even one quantized layer loses more.
    """
    require_role(validation.role, ("train", "validation"), "decide what stays in float")
    if not 0 <= max_drop < float("inf"):
        raise UsageError(f"max_drop is {max_drop}: use a number of points of 0 or more, such as 0.5.")
    reference = evaluate(model, validation).accuracy
    tried: dict[int, Fallback] = {}

    def attempt(count: int) -> bool:
        """Build with the `count` most sensitive layers in float, and say whether that is good enough."""
        own = replace(scheme, exclude=(*scheme.exclude, *ranked[:count]))
        module = build(own)
        drop = 100 * (reference - evaluate(module, validation).accuracy)
        tried[count] = Fallback(own, module, drop, ())
        return drop <= max_drop + 1e-9  # the subtraction of two shares is not exact

    enough = 0
    if not attempt(0):
        low, enough = 0, len(ranked)  # `low` layers in float are too few; `enough` are enough, or unknown at the end
        while enough - low > 1:
            middle = (low + enough) // 2
            if attempt(middle):
                enough = middle
            else:
                low = middle
    if enough == len(ranked):
        least = min(tried.values(), key=lambda found: found.drop)
        raise UsageError(
            f"No scheme of these layers stays within {max_drop:g} points (the best lost {least.drop:.2f}): "
            "allow a larger drop, use more bits, or train with quantize_aware_training."
        )
    return replace(tried[enough], tried=tuple((count, found.drop) for count, found in tried.items()))
