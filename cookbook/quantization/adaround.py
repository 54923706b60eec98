"""AdaRound: which weights to round up and which down, learned layer by layer from a few images (lesson 05)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.progress import progress_bar
from cookbook.quantization.layers import Layer, fold_batchnorm, trace_layers, weighted
from cookbook.quantization.rounding import CHUNK, Ranges, first_images, on_grid, weight_scale
from cookbook.quantization.scheme import Scheme

# of Nagel et al., arXiv 2004.10568, sections 3 and 5: the stretched sigmoid, and the weight and shape of the regularizer
STRETCH = (-0.1, 1.1)
REGULARIZER = 0.01
WARM_UP = 0.2
BETA = (20.0, 2.0)
SAME = 1e-3  # of a grid step: closer to the end of the grid than this is the end


@dataclass(frozen=True)
class LayerRounding:
    """What AdaRound did to one layer.

    Attributes:
        name: path of the layer.
        nearest_error: mean squared error of the layer's output with weights rounded to nearest, behind its ReLU where
            there is one, on the calibration images.
        error: the same with the learned rounding; never larger, because the nearest rounding is kept otherwise.
        moved: share of weights that are not rounded to nearest.
    """

    name: str
    nearest_error: float
    error: float
    moved: float


def adaround(
    model: nn.Module,
    calibration: Loader,
    *,
    scheme: Scheme,
    ranges: Ranges = "mse",
    images: int = 512,
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[nn.Module, list[LayerRounding]]:
    """Return a copy whose weights lie on the scheme's grid, rounded so that each layer's output keeps closest.

    Every weight becomes one of its two neighbours on the grid. Which one is a number between 0 and 1 that gradient
    descent drives to an end: it reconstructs the float model's output of the layer from the input that the layers
    already rounded give it (Nagel et al., arXiv 2004.10568). Scales stay fixed, and the largest weight of a channel
    stays on the end of the grid: an observer of minimum and maximum finds the scale that was trained on, and
    ``quantize(copy, …, scheme=scheme)`` represents these weights exactly.

    Args:
        model: not changed. The copy is in eval mode, with BatchNorm folded.
        calibration: its role must be ``train``; labels are not used.
        scheme: of the weights; layers that it excludes stay in float.
        ranges: as in `weight_scale`.
        images: of the loader's first epoch that are used at most; a layer's inputs and outputs for all are held in memory.
        steps: of Adam, for each layer.
        batch_size: images in a step.
        learning_rate: of Adam, for the rounding variables.
        seed: of the order of the images.
        progress: show a bar; None decides by terminal, JupyterLab and CI.

    Returns:
        The copy, and a record for each layer, in the order in which they run.

    Raises:
        UsageError: the split has another role, or an argument is out of range.
        DeploymentError: the model cannot be captured.
    """
    require_role(calibration.role, ("train",), "calibrate")
    for name, value in {"steps": steps, "batch_size": batch_size}.items():
        if value < 1:
            raise UsageError(f"{name} is {value}: use 1 or more.")
    if learning_rate <= 0:
        raise UsageError(f"learning_rate is {learning_rate}: use a positive number.")
    batch = first_images(calibration, images)
    target = fold_batchnorm(model, batch[:2])
    rounded = copy.deepcopy(target)
    layers = trace_layers(rounded, batch[:2])
    top = scheme.weight_range[1]
    generator = torch.Generator().manual_seed(seed)
    records = []
    chosen = [layer for layer in layers if not scheme.excludes(layer.name)]
    with progress_bar("rounding", len(chosen) * steps, show=progress) as advance:
        for layer in chosen:
            module = weighted(rounded, layer.name)
            scale = weight_scale(module.weight, scheme, ranges=ranges)
            nearest = on_grid(module.weight.detach(), scale, top)
            problem = _Problem(module, layer.relu, _seen(rounded, layer, batch)[0], _seen(target, layer, batch)[1])
            learned = nearest
            if bool((nearest != module.weight).any()):
                rounding = _Rounding(module.weight.detach(), scale, top)
                optimizer = torch.optim.Adam([rounding.variable], lr=learning_rate)
                for step in range(steps):
                    index = torch.randint(len(batch), (min(batch_size, len(batch)),), generator=generator)
                    optimizer.zero_grad()
                    (problem.error(rounding.soft(), index) + rounding.regularizer(step / steps)).backward()
                    optimizer.step()
                    advance(layer.name)
                learned = rounding.hard()
            errors = {"nearest": problem.whole_error(nearest), "learned": problem.whole_error(learned)}
            if errors["learned"] > errors["nearest"]:
                learned, errors["learned"] = nearest, errors["nearest"]
            with torch.no_grad():
                module.weight.copy_(learned)
            moved = float((learned != nearest).double().mean())
            records.append(LayerRounding(layer.name, errors["nearest"], errors["learned"], moved))
    return rounded, records


class _Rounding:
    """The learned choice between the two neighbours of each weight.

    Args:
        weight: float (channels, …).
        scale: as `weight_scale` returns it.
        top: the largest integer of the grid.
    """

    def __init__(self, weight: Tensor, scale: Tensor, top: int) -> None:
        self.scale, self.top = scale, top
        steps = weight / scale
        self.floor = torch.floor(steps)
        # the ends of the grid stay, so that the range that an observer sees, and with it the scale, stays
        self.fixed = steps.abs() >= self.top - SAME
        self.end = steps.sign() * self.top
        low, high = STRETCH
        share = (steps - self.floor).clamp(1e-4, 1 - 1e-4)
        self.variable = torch.logit((share - low) / (high - low)).requires_grad_()

    def share(self) -> Tensor:
        """Return the rectified sigmoid, 0 to 1: how far each weight is rounded up."""
        low, high = STRETCH
        return (torch.sigmoid(self.variable) * (high - low) + low).clamp(0, 1)

    def soft(self) -> Tensor:
        """Return the weights on their way to the grid."""
        return self._at(self.share())

    def hard(self) -> Tensor:
        """Return the weights on the grid, without gradients."""
        return self._at((self.share() >= 0.5).to(self.scale.dtype)).detach()

    def regularizer(self, done: float) -> Tensor:
        """Return what pushes every share to 0 or 1, weaker at first.

        Args:
            done: share of the steps that are over.
        """
        if done < WARM_UP:
            return self.variable.new_zeros(())
        start, end = BETA
        beta = end + (start - end) * (1 - (done - WARM_UP) / (1 - WARM_UP))
        return REGULARIZER * (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def _at(self, share: Tensor) -> Tensor:
        return torch.where(self.fixed, self.end, self.floor + share) * self.scale


class _Problem:
    """One layer to reconstruct: its inputs in the rounded model, and what the float model makes of the same images."""

    def __init__(self, module: nn.Module, relu: bool, inputs: Tensor, outputs: Tensor) -> None:
        self.module, self.relu, self.inputs = module, relu, inputs
        self.outputs = F.relu(outputs) if relu else outputs

    def error(self, weight: Tensor, index: Tensor | slice) -> Tensor:
        """Return the squared error of the output, summed over channels and averaged over images and places."""
        found = torch.func.functional_call(self.module, {"weight": weight}, (self.inputs[index],))
        difference = (F.relu(found) if self.relu else found) - self.outputs[index]
        channels = 1 if difference.ndim > 2 else -1
        return difference.square().sum(channels).mean()

    def whole_error(self, weight: Tensor) -> float:
        """Return the mean squared error over all images."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self.inputs), CHUNK):
                part = slice(start, start + CHUNK)
                total += float(self.error(weight, part)) * len(self.inputs[part])
        return total / len(self.inputs) / self.outputs.shape[1 if self.outputs.ndim > 2 else -1]


def _seen(model: nn.Module, layer: Layer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what goes into a layer and what comes out of it, for all images."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0])
        outputs.append(output)

    hook = weighted(model, layer.name).register_forward_hook(note)
    try:
        with torch.no_grad():
            for part in images.split(CHUNK):
                model(part)
    finally:
        hook.remove()
    return torch.cat(inputs), torch.cat(outputs)
