"""Which layers quantization hurts: each one quantized alone (lesson 05)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.quantization.alone import Noise, only, outputs_of, quantizers_of_layers
from cookbook.quantization.batchnorm import fold_batch_norm
from cookbook.quantization.fallback import fewest_in_float
from cookbook.quantization.observers import Method
from cookbook.quantization.prepare import prepare, set_observers
from cookbook.quantization.ptq import quantize_on
from cookbook.quantization.report import Quantized
from cookbook.quantization.rounding import CHUNK, first_images
from cookbook.quantization.scheme import Scheme
from cookbook.training import evaluate

RANKING_IMAGES = 256  # whose logits rank the layers


@dataclass(frozen=True)
class LayerSensitivity:
    """What happens when one layer alone is quantized: its weights, its input and its output.

    Attributes:
        name: of the layer, as in ``model.named_modules()``.
        sqnr_db: signal-to-quantization-noise ratio of the layer's output, behind what is fused into it, in decibels:
            10 · log10(sum of squares of the float output / sum of squares of the difference). More is better.
        logits_sqnr_db: the same of the model's output.
        accuracy: on validation, 0 to 1; None: there was no validation.
    """

    name: str
    sqnr_db: float
    logits_sqnr_db: float
    accuracy: float | None = None


@dataclass(frozen=True)
class SensitivityReport:
    """Every layer's sensitivity, in the order in which the layers run.

    Attributes:
        scheme: what each layer was quantized to.
        layers: one record a layer.
        float_accuracy: of the model on validation, 0 to 1; None: there was no validation.
    """

    scheme: Scheme
    layers: tuple[LayerSensitivity, ...]
    float_accuracy: float | None = None

    def ranked(self) -> list[str]:
        """Return the names of the layers, the most sensitive first.

        By accuracy where it is known, and among equals, or without it, by the signal-to-noise ratio of the logits.
        """

        def key(layer: LayerSensitivity) -> tuple[float, float]:
            return (1.0 if layer.accuracy is None else layer.accuracy), layer.logits_sqnr_db

        return [layer.name for layer in sorted(self.layers, key=key)]

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"One layer alone in {self.scheme}:", f"{'layer':<{width}}  SQNR, dB  of the logits  accuracy lost, points"]
        for layer in self.layers:
            lost = "—"
            if layer.accuracy is not None and self.float_accuracy is not None:
                lost = f"{100 * (self.float_accuracy - layer.accuracy):+.2f}"
            lines.append(f"{layer.name:<{width}}  {layer.sqnr_db:8.1f}  {layer.logits_sqnr_db:13.1f}  {lost:>21}")
        return "\n".join(lines)


def sensitivity(
    model: nn.Module,
    calibration: Loader,
    *,
    scheme: Scheme | None = None,
    images: int = 256,
    validation: Loader | None = None,
    progress: bool | None = None,
) -> SensitivityReport:
    """Quantize each layer alone, simulated in floats, and report what it costs; the model is not changed.

    Activations take the range from minimum to maximum over the calibration images.

    Args:
        model: as for `quantize`.
        calibration: its role must be ``train``.
        scheme: what a layer is quantized to; None: `Scheme()`. Layers that it excludes are not tried.
        images: of the calibration loader that are used; each layer costs a pass over them.
        validation: to count right predictions on, a pass for each layer; its role must be ``validation`` or ``train``.
        progress: show a bar; None decides by terminal, JupyterLab and CI.

    Raises:
        UsageError: a split has the wrong role, the loader is empty, or the scheme leaves nothing to quantize.
        DeploymentError: the model cannot be captured.
    """
    require_role(calibration.role, ("train",), "calibrate")
    if validation is not None:
        require_role(validation.role, ("train", "validation"), "rank layers")
    return sensitivity_on(
        model, first_images(calibration, images), scheme=scheme or Scheme(), validation=validation, progress=progress
    )


def sensitivity_on(
    model: nn.Module, batch: Tensor, *, scheme: Scheme, validation: Loader | None = None, progress: bool | None = None
) -> SensitivityReport:
    """Do what `sensitivity` does on images that are at hand as one tensor.

    Args:
        batch: float32 (N, C, H, W), from the training split, which nothing here can check.
    """
    prepared = prepare(model, batch[:2], scheme, qat=True)
    fold_batch_norm(prepared)
    set_observers(prepared, observe=True, quantize=False)
    with torch.no_grad():
        prepared(batch)  # in one piece: the moving average of one batch is its range
    set_observers(prepared, observe=False)
    layers = quantizers_of_layers(prepared)
    if not layers:
        raise UsageError("There is no layer to quantize alone: pass a model with convolutions or linear layers.")
    float_accuracy = None if validation is None else evaluate(prepared, validation).accuracy
    noises = {name: Noise() for name in layers}
    accuracies: dict[str, float | None] = dict.fromkeys(layers)
    chunks = batch.split(CHUNK)
    with progress_bar("layers alone", len(layers) * (len(chunks) + (validation is not None)), show=progress) as advance:
        for part in chunks:
            expected = outputs_of(prepared, part, [layer.output for layer in layers.values()])
            for name, layer in layers.items():
                with only(prepared, layer.quantizers):
                    found = outputs_of(prepared, part, [layer.output])
                noises[name].add(expected[layer.output], found[layer.output], expected[None], found[None])
                advance(name)
        if validation is not None:
            for name, layer in layers.items():
                with only(prepared, layer.quantizers):
                    accuracies[name] = evaluate(prepared, validation).accuracy
                advance(name)
    return SensitivityReport(
        scheme,
        tuple(
            LayerSensitivity(name, noise.decibels(noise.own), noise.decibels(noise.logits), accuracies[name])
            for name, noise in noises.items()
        ),
        float_accuracy,
    )


def most_layers_within(
    model: nn.Module, images: Tensor, validation: Loader, *, max_drop: float, scheme: Scheme, method: Method = "min-max"
) -> Quantized:
    """Quantize as many layers as `max_drop` allows; `quantize(…, max_drop=…)` calls this.

    Layers are ranked by the noise that each alone makes in the logits of calibration images; how many of the noisiest stay in
    float is decided by the accuracy on validation, as `fewest_in_float` says.

    Args:
        model: as in `quantize`.
        images: float32 (N, C, H, W), from the training split.
        validation: its role must be ``validation`` or ``train``.
        max_drop: accuracy that may be lost on it, in points; 0 or more.
        scheme: what is wanted.
        method: as in `quantize`.

    Raises:
        UsageError: a drop that is no number of points, the test split, or even one quantized layer loses more.
        DeploymentError: the model cannot be captured.
    """
    require_role(validation.role, ("train", "validation"), "decide what stays in float")
    ranked = sensitivity_on(model, images[:RANKING_IMAGES], scheme=scheme).ranked()
    built: dict[Scheme, Quantized] = {}

    def build(own: Scheme) -> nn.Module:
        built[own] = quantize_on(model, images, method=method, scheme=own)
        return built[own].module

    found = fewest_in_float(max_drop, build, model, validation, scheme=scheme, ranked=ranked)
    left = found.scheme.exclude[len(scheme.exclude) :]
    note = (
        f"{len(left)} of {len(ranked)} layers stay in floats to lose at most {max_drop:g} points on validation"
        f"{': ' + ', '.join(left) if left else ''}; {found.drop:.2f} points are lost."
    )
    best = built[found.scheme]
    return replace(best, report=replace(best.report, notes=(*best.report.notes, note)))
