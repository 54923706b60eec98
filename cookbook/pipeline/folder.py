"""The folder of a compression: what is finished in it stays finished, whatever interrupts the rest (lesson 08)."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cookbook.errors import CheckpointError, CookbookError
from cookbook.files import atomic_path
from cookbook.models.storage import METADATA_KEY, describes_itself, load, save
from cookbook.models.widths import config_of_widths, layer_sizes, resize

IDENTITY = "compression.json"
SIZES, NOTE = "cookbook.sizes", "cookbook.note"  # in the header of a file of weights
OUTPUTS = ("model.onnx", "report.html")  # what would be overwritten in a folder of somebody else's


class Folder:
    """Files of one compression, each written atomically.

    Args:
        path: of the folder; it is made when it is missing.
        identity: plain JSON types that must be equal for the folder to be gone on with.

    Raises:
        CheckpointError: the folder belongs to another compression, or holds files that this one would overwrite.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{path} is a file: name a folder for the compression.")
        for leftover in self.path.glob("**/.*.partial"):
            leftover.unlink(missing_ok=True)  # a killed run's unfinished write
        known = self.read(IDENTITY)
        if known is None:
            foreign = [name for name in OUTPUTS if (self.path / name).exists()]
            if foreign:
                raise CheckpointError(f"{path} holds {foreign[0]} of something else: name a folder of its own.")
            self.write(IDENTITY, identity)
        else:
            wanted = json.loads(json.dumps(identity))
            differing = [name for name in wanted if known.get(name) != wanted[name]]
            if differing:
                raise CheckpointError(
                    f"{path} belongs to a compression with another {' and '.join(differing)}: name another folder, or delete "
                    "this one to start afresh."
                )

    def part(self, name: str) -> Path:
        """Return a sub-folder, which is made when it is missing."""
        part = self.path / name
        part.mkdir(parents=True, exist_ok=True)
        return part

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what `write` wrote; None: nothing yet.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{file} is damaged ({error}): delete its folder to start afresh.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} is damaged (no object): delete its folder to start afresh.")
        return values

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Write plain JSON types."""
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def decide(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what was decided before, else decide and keep it: a measurement would come out differently the next time."""
        known = self.read(name)
        if known is None:
            self.write(name, make())
            known = self.read(name)
        assert known is not None
        return known


def save_weights(model: nn.Module, original: nn.Module, path: Path, note: str = "") -> None:
    """Write the weights of a stage's model, with what rebuilds it in the header.

    That is the model's own configuration where it has one of the cookbook's families; for a model of any other class it
    is which of its layers are smaller than the original's.

    Args:
        model: with a configuration, or with the layers of `original`, some of them smaller.
        original: before the surgery.
        path: of the file.
        note: is kept in the header, for `read_note`.

    Raises:
        CheckpointError: the model has other tensors than the original, so that sizes alone do not describe it.
    """
    if describes_itself(model):
        save(model, path, header={NOTE: note})
        return
    before = layer_sizes(original)
    changed = {name: size for name, size in layer_sizes(model).items() if before.get(name) != size}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    if tensors.keys() != original.state_dict().keys():
        raise CheckpointError(
            f"{type(model).__name__} has other layers than {type(original).__name__}, so that it cannot be stored by its "
            "widths: let the stage change sizes only, or leave a model of the cookbook's families."
        )
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={SIZES: json.dumps(changed), NOTE: note})


def load_weights(original: nn.Module, path: Path) -> nn.Module:
    """Return the model of a file that `save_weights` wrote for this original, on the CPU, in eval mode.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if METADATA_KEY in header:
                return load(path)
            sizes = json.loads(header[SIZES])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        model = resize(copy.deepcopy(original), sizes)
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, CookbookError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{path} is damaged or of another model ({reason}): delete its folder to start afresh."
        ) from error
    config = config_of_widths(model, original) if sizes else getattr(original, "config", None)
    if config is not None:
        model.config = config
    return model.eval()


def read_note(path: Path) -> str:
    """Return the note that `save_weights` kept.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(NOTE, ""))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete its folder to start afresh.") from error
