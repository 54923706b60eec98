"""Checkpoints that all ranks write together and any number of ranks can read (lesson 03)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cookbook.errors import CheckpointError
from cookbook.files import atomic_path

FORMAT = "cookbook-sharded-1"
INDEX = "checkpoint.json"
FLAT = states.StateDictOptions(flatten_optimizer_state_dict=True)

T = TypeVar("T")


def save_sharded(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write model and optimizer, each rank its own share, into `folder`; every rank must call it.

    The shares are safetensors files in a new subfolder. ``checkpoint.json`` names the subfolder and is replaced
    last, so that a job killed at any moment leaves the previous checkpoint or the new one. Without a process
    group one process writes everything: that is how a model that no accelerator can hold gets its first
    checkpoint from a host with enough memory.

    Source: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html, whose safetensors storage is used
    because its own format has to be unpickled.

    Args:
        folder: on a file system that all ranks share.
        model: from `shard`, or an ordinary module.
        optimizer: its state is saved too.
        notes: anything else that the run needs to go on, as JSON types; `load_sharded` returns it.

    Raises:
        CheckpointError: on every rank, when a rank cannot write, the ranks see different folders, a note is no
            JSON, or the folder holds a checkpoint of another format.
    """
    folder = Path(folder).absolute()
    with _process_group():
        tensors, values = _split_state(model, optimizer)
        index: dict[str, Any] = {
            "format": FORMAT,
            "tensors": _described(tensors),
            "values": values,
            "notes": dict(notes or {}),
        }
        shares = _on_rank_zero(lambda: _prepare(folder, index))
        writer = HuggingFaceStorageWriter(str(folder / shares), save_distributed=True)
        try:
            save(tensors, storage_writer=writer)
        except CheckpointException as error:
            raise CheckpointError(
                f"{folder} cannot be written ({_first_cause(error)}): check the folder, its rights and the free space."
            ) from error
        _on_rank_zero(lambda: _commit(folder, {**index, "shares": shares}))


def load_sharded(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Fill model and optimizer in place from what `save_sharded` wrote, and return its notes.

    The number of ranks may differ from the one that wrote: each rank reads what it needs. In one process without
    a process group an ordinary module is filled, for evaluation or export. Nothing is unpickled.

    Args:
        folder: as given to `save_sharded`.
        model: of the same architecture, sharded or not.
        optimizer: over the model's parameters, with the same parameter groups as the saved one; without it only
            the weights are read.

    Raises:
        CheckpointError: on every rank, when there is no checkpoint, it is damaged, or it is of another model
            or another optimizer.
    """
    folder = Path(folder).absolute()
    with _process_group():
        tensors, values = _split_state(model, optimizer)
        reader, index = _agreed(lambda: _opened(folder, tensors, values))
        try:
            load(tensors, storage_reader=reader)
        except CheckpointException as error:
            raise CheckpointError(
                f"{folder} cannot be read ({_first_cause(error)}): restore it, or use an older one."
            ) from error
        state = {**tensors, **{name: _like(values[name], index["values"][name]) for name in values}}
        states.set_model_state_dict(model, _below("model.", state))
        if optimizer is not None:
            states.set_optimizer_state_dict(model, optimizer, _below("optimizer.", state), options=FLAT)
    return dict(index["notes"])


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Make a group of one where the program has none: distributed checkpointing needs a group."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _split_state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state's tensors, and its other values, such as learning rates, by unique names."""
    state: dict[str, Any] = {f"model.{name}": value for name, value in states.get_model_state_dict(model).items()}
    if optimizer is not None:
        flat: Mapping[str, Any] = states.get_optimizer_state_dict(model, optimizer, options=FLAT)
        state |= {f"optimizer.{name}": value for name, value in flat.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in tensors.items()}


def _prepare(folder: Path, index: Mapping[str, Any]) -> str:
    """Remove what killed runs left and return the name of the next subfolder."""
    current = _read_index(folder)["shares"] if (folder / INDEX).exists() else "shares-0"
    try:
        json.dumps(index, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The notes cannot be saved ({error}): use text, finite numbers, lists and dictionaries."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    _remove_shares(folder, except_for=current)
    return f"shares-{int(current.removeprefix('shares-')) + 1}"


def _commit(folder: Path, index: Mapping[str, Any]) -> None:
    """Make the new shares the checkpoint, after a look at whether they are all there."""
    _require_complete(folder, index, "let all ranks write to one folder on a file system that they share")
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
    _remove_shares(folder, except_for=index["shares"])


def _remove_shares(folder: Path, *, except_for: str) -> None:
    for path in folder.glob("shares-*"):
        if re.fullmatch(r"shares-\d+", path.name) and path.name != except_for:
            shutil.rmtree(path)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"There is no sharded checkpoint in {folder}: check the path, or save one first.")
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        known = index["format"] == FORMAT and re.fullmatch(r"shares-\d+", index["shares"]) is not None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is damaged ({type(error).__name__}): restore it, or use an older one."
        ) from error
    if not known:
        raise CheckpointError(f"{folder} holds no sharded checkpoint of this version of the cookbook: name another folder.")
    return dict(index)


def _opened(
    folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[HuggingFaceStorageReader, dict[str, Any]]:
    """Return reader and index of a checkpoint that is whole and fits the state to fill."""
    index = _read_index(folder)
    wanted, found = _described(tensors) | dict.fromkeys(values), index["tensors"] | dict.fromkeys(index["values"])
    kinds = {name.partition(".")[0] for name in wanted}
    found = {name: shape for name, shape in found.items() if name.partition(".")[0] in kinds}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name, "") != found.get(name, ""))
    if differing:
        kind, _, name = differing[0].partition(".")
        sides = [f"{title} {_phrase(side, differing[0])}" for title, side in (("here", wanted), ("in the file", found))]
        raise CheckpointError(
            f"{folder} is of another {kind} ({len(differing)} differences, the first in {name!r}: {' and '.join(sides)}): "
            f"load it into the same {kind}."
        )
    _require_complete(folder, index, "restore it, or use an older one")
    return HuggingFaceStorageReader(str(folder / index["shares"])), index


def _phrase(side: Mapping[str, Any], name: str) -> str:
    if name not in side:
        return "missing"
    return "present" if side[name] is None else f"{tuple(side[name][0])} of {side[name][1]}"


def _require_complete(folder: Path, index: Mapping[str, Any], advice: str) -> None:
    """Raise unless the shares cover every element of every tensor, by the headers of their files."""
    try:
        stored = HuggingFaceStorageReader(str(folder / index["shares"])).read_metadata().state_dict_metadata
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"A file in {folder / index['shares']} is damaged ({error}): {advice}.") from error
    for name, (shape, _) in index["tensors"].items():
        chunks = getattr(stored.get(name), "chunks", [])
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
            raise CheckpointError(f"{folder / index['shares']} lacks a part of {name!r}: {advice}.")


def _on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and hand its result, or its failure, to all."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        outcome = list(_attempt(action))
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise CheckpointError(outcome[1])
    return outcome[0]


def _agreed(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if one fails, all do, with the words of the first."""
    result, failure = _attempt(action)
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    first = next((text for text in failures if text is not None), None)
    if first is not None:
        raise CheckpointError(first)
    assert result is not None
    return result


def _attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return action(), None
    except CheckpointError as error:
        return None, str(error)
    except OSError as error:
        place = error.filename or "The folder"
        return None, f"{place} cannot be used ({error.strerror}): check the folder, its rights and the free space."


def _first_cause(error: CheckpointException) -> str:
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {cause}".rstrip(".")


def _like(current: Any, saved: Any) -> Any:
    """Return the saved value as the type that JSON lost."""
    return tuple(saved) if isinstance(current, tuple) else saved


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
