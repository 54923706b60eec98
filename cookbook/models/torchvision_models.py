"""Any image classifier of torchvision by its name, freshly initialized (lesson 00)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn

from cookbook.errors import UsageError
from cookbook.models.sizes import require_sizes
from cookbook.models.widths import resize

# "pretrained" is the older spelling of "weights", which torchvision still accepts and would download
DECIDED_HERE = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "progress", "num_classes", "aux_logits")
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class TorchvisionConfig:
    """An image classifier from `torchvision.models`, without trained weights.

    Attributes:
        name: as in ``torchvision.models.list_models(module=torchvision.models)``.
        classes: length of the output.
        in_channels: other than 3 gives the first convolution new weights for that many channels.
        arguments: further keyword arguments of the model's builder, such as
            ``{"image_size": 32}`` for ``vit_b_16``; kept as a sorted tuple of pairs of plain values.
        widths: sizes of the layers of a pruned model, by names as `layer_sizes` has them; kept as a sorted
            tuple of pairs.

    Raises:
        UsageError: the name is no classifier of torchvision, an argument cannot be stored or is
            decided by the other attributes, or the widths are no pairs of a name and a number.
    """

    name: str
    classes: int = 1000
    in_channels: int = 3
    arguments: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    widths: Mapping[str, int] | tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.name).lower())
        _require_classifier(self.name)
        require_sizes(classes=self.classes, in_channels=self.in_channels)
        try:
            arguments = {str(key): _plain(value) for key, value in dict(self.arguments).items()}
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"arguments is {self.arguments!r}: use a dictionary of numbers, words and lists ({error})."
            ) from error
        for word in DECIDED_HERE:
            if word in arguments:
                raise UsageError(
                    f"arguments sets {word!r}, which the cookbook decides: leave it out of {self.name}'s arguments."
                )
        object.__setattr__(self, "arguments", tuple(sorted(arguments.items())))
        try:
            widths = {str(key): _plain(value) for key, value in dict(self.widths).items()}
        except (TypeError, ValueError) as error:
            raise UsageError(f"widths is {self.widths!r}: use a dictionary of sizes by their names ({error}).") from error
        object.__setattr__(self, "widths", tuple(sorted(widths.items())))


def build_torchvision(config: TorchvisionConfig) -> nn.Module:
    """Return the freshly initialized model; nothing is downloaded, and its forward returns one tensor of logits.

    The model's attribute `config` rebuilds it. A first convolution for other than 3 channels has
    torch's default initialization; layers with widths of their own start as `resize` leaves them.

    Raises:
        UsageError: the builder refuses the arguments, or a width does not fit the model.
    """
    arguments = dict(config.arguments)
    if config.name in WITH_AUXILIARY_HEADS:
        arguments = {"init_weights": True, **arguments, "aux_logits": False}
    try:
        model: nn.Module = torchvision.models.get_model(config.name, weights=None, num_classes=config.classes, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise UsageError(f"torchvision cannot build {config.name} with the arguments {arguments}: {error}.") from error
    if config.in_channels != 3:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.in_channels = config.in_channels
        first.weight = nn.Parameter(first.weight.new_empty((first.out_channels, config.in_channels, *first.kernel_size)))
        first.reset_parameters()
    resize(model, dict(config.widths))
    model.config = config  # type: ignore[assignment]
    return model


def _require_classifier(name: str) -> None:
    """Refuse a name that is none of torchvision's image classifiers, naming the closest ones."""
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if name in classifiers:
        return
    close = difflib.get_close_matches(name, classifiers, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "use a name from torchvision.models.list_models()."
    raise UsageError(f"{name!r} is not an image classifier of torchvision {torchvision.__version__}: {advice}")


def _plain(value: Any) -> Any:
    """Return what JSON can hold, with tuples for lists, so that equal configurations compare equal."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written to a file")
