"""Models on disk: one safetensors file with the weights and, in its header, the configuration (lesson 00)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cookbook.errors import CheckpointError, CookbookError
from cookbook.files import atomic_path
from cookbook.models.registry import build, config_from_json, config_to_json, is_config

METADATA_KEY = "cookbook.config"


def describes_itself(model: nn.Module) -> bool:
    """Return whether `save` could write the model: its `config` belongs to a family of the cookbook and rebuilds its shapes."""
    config = getattr(model, "config", None)
    return is_config(config) and not _difference(model.state_dict(), _rebuild(config))


def save(model: nn.Module, path: str | os.PathLike[str], *, header: Mapping[str, str] | None = None) -> Path:
    """Write the weights, and the configuration that rebuilds the architecture, atomically.

    Args:
        model: one of the cookbook's families; its `config` goes into the file's header.
        header: what the file's header shall hold beside it.

    Raises:
        CheckpointError: the model carries no configuration or one of other shapes, which could not be
            loaded again, or the file cannot be written.
        UsageError: its configuration belongs to no family of the cookbook.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise CheckpointError(
            f"{type(model).__name__} carries no configuration to rebuild it from: save its state_dict with safetensors instead."
        )
    metadata = {**(header or {}), METADATA_KEY: config_to_json(config)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    difference = _difference(tensors, _rebuild(config))
    if difference:
        raise CheckpointError(
            f"{type(model).__name__} is not what its configuration describes ({difference}): set model.config to its sizes."
        )
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}): check the folder, its rights and the free space."
        ) from error
    return Path(path)


def load(path: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote, on the CPU and in eval mode.

    Args:
        path: the file.
        into: fill this model instead of building one. Names, shapes and dtypes of its tensors must
            be the file's; what no tensor shows, such as a stride, is the caller's business.

    Raises:
        CheckpointError: the file is missing, truncated, without a configuration, or its tensors
            are not exactly those of the architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}: train the model first, or check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): restore it or train it again."
        ) from error
    if into is None:
        if METADATA_KEY not in metadata:
            raise CheckpointError(f"{path} has no model configuration in its header: pass the model to fill as 'into'.")
        try:
            model = _rebuild(config_from_json(metadata[METADATA_KEY]))
        except CookbookError as error:
            raise CheckpointError(f"{path} describes a model that this version cannot build: {error}") from error
    else:
        model = into
    difference = _difference(tensors, model)
    if difference:
        raise CheckpointError(
            f"{path} does not hold a {type(model).__name__} like this one ({difference}): load the file of this architecture."
        )
    model.load_state_dict(tensors)
    return model.eval()


def _rebuild(config: Any) -> nn.Module:
    """Build a model to compare with, without advancing the generator that the caller may have seeded."""
    with torch.random.fork_rng(devices=[]):
        return build(config)


def _difference(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """Say how names, shapes or dtypes differ from the model's, before a single weight is touched; empty: not at all."""
    expected = model.state_dict()
    extra, missing = sorted(tensors.keys() - expected.keys()), sorted(expected.keys() - tensors.keys())
    sides = (("extra", extra), ("missing", missing))
    counted = [f"{len(names)} {word} tensors, the first {names[0]}" for word, names in sides if names]
    if counted:
        return " and ".join(counted)
    for name, value in expected.items():
        found = tensors[name]
        if (value.shape, value.dtype) != (found.shape, found.dtype):
            return f"{name} is {tuple(found.shape)} of {found.dtype}, expected {tuple(value.shape)} of {value.dtype}"
    return ""
