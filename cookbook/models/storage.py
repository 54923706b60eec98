"""Models on disk: one safetensors file with the weights and, in its header, the configuration (lesson 00)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cookbook.errors import CheckpointError, CookbookError
from cookbook.files import atomic_path
from cookbook.models.registry import build, config_from_json, config_to_json

METADATA_KEY = "cookbook.config"


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights, and the configuration that rebuilds the architecture, atomically.

    Args:
        model: one of the cookbook's families; its `config` goes into the file's header.

    Raises:
        CheckpointError: the model carries no configuration.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise CheckpointError(
            f"{type(model).__name__} carries no configuration to rebuild it from: save its state_dict with safetensors instead."
        )
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: config_to_json(config)})
    return Path(path)


def load(path: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote, on the CPU and in eval mode.

    Args:
        path: the file.
        into: fill this model instead of building one; its architecture must be the file's.

    Raises:
        CheckpointError: the file is missing, truncated, without a configuration, or its tensors
            are not exactly those of the architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: train the model first, or check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}): restore it or train it again.") from error
    if into is None:
        if METADATA_KEY not in metadata:
            raise CheckpointError(f"{path} has no model configuration in its header: pass the model to fill as 'into'.")
        try:
            model = build(config_from_json(metadata[METADATA_KEY]))
        except CookbookError as error:
            raise CheckpointError(f"{path} describes a model that this version cannot build: {error}") from error
    else:
        model = into
    _require_same_tensors(path, tensors, model)
    model.load_state_dict(tensors)
    return model.eval()


def _require_same_tensors(path: Path, tensors: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Compare names, shapes and dtypes before a single weight is touched."""
    expected = model.state_dict()
    extra, missing = sorted(tensors.keys() - expected.keys()), sorted(expected.keys() - tensors.keys())
    if extra or missing:
        found = [f"{len(names)} {word} (first: {names[0]})" for word, names in (("extra", extra), ("missing", missing)) if names]
        raise CheckpointError(f"{path} is not a {type(model).__name__} like this one: {' and '.join(found)} tensors.")
    for name, value in expected.items():
        if (value.shape, value.dtype) != (tensors[name].shape, tensors[name].dtype):
            raise CheckpointError(
                f"{path} holds another architecture: {name} is {tuple(tensors[name].shape)} of {tensors[name].dtype}, "
                f"expected {tuple(value.shape)} of {value.dtype}."
            )
