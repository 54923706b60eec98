"""Which settings of a loader keep the model fed: workers, pinned memory, prefetching, resident tensors (lesson 01)."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cookbook.data import Augmentation, ResidentLoader, Split, TorchvisionLoader
from cookbook.environment import pick_device
from cookbook.errors import UsageError
from cookbook.evidence import Table
from cookbook.measure import Timing, interleave, speedup
from cookbook.measure.latency import FEWEST_ROUNDS

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps the batches on their way from a worker
SHARED_MEMORY_TEXTS = ("bus error", "shared memory", "no space left on device", "unable to mmap")
WORTHWHILE = 0.05  # a setting must be faster by more than this share to be preferred to a simpler one


@dataclass(frozen=True)
class LoaderSetting:
    """One way to load.

    Attributes:
        workers: processes that prepare batches; 0: the program itself.
        pin_memory: put batches into page-locked memory, from which a copy to a GPU can overlap with compute.
        prefetch: batches that each worker prepares ahead; None without workers.
        persistent: keep the workers from one epoch to the next.
        resident: no loading at all: the images lie on the device (`cookbook.data.ResidentLoader`).
    """

    workers: int = 0
    pin_memory: bool = False
    prefetch: int | None = None
    persistent: bool = False
    resident: bool = False

    @property
    def name(self) -> str:
        """The setting in words."""
        if self.resident:
            return "resident tensors"
        parts = ["1 worker" if self.workers == 1 else f"{self.workers} workers" if self.workers else "no worker"]
        parts += ["pinned"] * self.pin_memory
        parts += [f"{self.prefetch} ahead"] * (self.prefetch is not None)
        parts += ["persistent"] * self.persistent
        return ", ".join(parts)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `torch.utils.data.DataLoader`."""
        return {
            "num_workers": self.workers,
            "pin_memory": self.pin_memory,
            "prefetch_factor": self.prefetch,
            "persistent_workers": self.persistent,
        }


@dataclass(frozen=True, repr=False)
class LoaderTuning:
    """Samples per second of every setting; printed, it is a table with the recommendation.

    Attributes:
        timings: of one pass, by setting; all were timed in turns. The first is what the others are compared with.
        device: where the batches ended.
    """

    timings: dict[LoaderSetting, Timing]
    device: str

    @property
    def best(self) -> LoaderSetting:
        """The first DataLoader setting that none beats by more than 5 %; simpler settings come first."""
        candidates = [setting for setting in self.timings if not setting.resident]
        fastest = min(candidates, key=lambda setting: self.timings[setting].median)
        for setting in candidates:
            if speedup(self.timings[setting], self.timings[fastest]).verdict(WORTHWHILE) != "better":
                return setting
        return fastest

    @property
    def recommendation(self) -> str:
        """What to do, in words."""
        first, best = next(iter(self.timings)), self.best
        rate = f"{self.timings[best].throughput:,.0f} samples per second"
        if best == first:
            said = f"Keep the DataLoader with {first.name}: {rate}, and no other setting is more than 5 % faster."
        else:
            gain = speedup(self.timings[first], self.timings[best])
            said = f"Use a DataLoader with {best.name}: {rate}, {gain} the speed of {first.name}."
        resident = next((setting for setting in self.timings if setting.resident), None)
        if resident is not None:
            gain = speedup(self.timings[best], self.timings[resident])
            verb = "reach" if gain.verdict() == "better" else "bring no gain here with"
            said += f" Resident tensors {verb} {gain} its speed: take them while the images fit into memory."
        return said

    def table(self) -> Table:
        """Return one row a setting, compared with the first."""
        baseline = next(iter(self.timings.values()))
        rows = [
            (setting.name, f"{timing.throughput:,.0f}", "1" if timing is baseline else str(speedup(baseline, timing)))
            for setting, timing in self.timings.items()
        ]
        return Table(
            ("loader", "samples per second", "times the first"), rows, self.recommendation, f"Loading to {self.device}"
        )

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for JupyterLab."""
        return self.table()._repr_html_()


def tune_loader(
    data: Split | Dataset[Any],
    batch_size: int,
    *,
    augmentation: Augmentation | None = None,
    device: torch.device | str | None = None,
    workers: Sequence[int] = (0, 1, 2),
    pin_memory: Sequence[bool] | None = None,
    prefetch: Sequence[int] = (2,),
    persistent: Sequence[bool] = (True,),
    batches: int = 20,
    rounds: int = 5,
    context: str | None = None,
) -> LoaderTuning:
    """Time passes over the first batches under every combination of settings, in turns.

    Workers are started by ``forkserver`` where the system has it, and by ``spawn`` elsewhere: they descend from a
    process that never computed. A plain ``fork`` copies this program with the locks that torch's threads hold at that
    moment, and can hang; Python 3.14 no longer does it by default either. Both ways pickle the dataset, so its class
    must stand in a module and not in a notebook's cell. All workers have ended when this returns or raises.

    Args:
        data: a split, whose images go through torchvision's transforms one by one, or any dataset with a length
            whose samples can be collated into batches.
        batch_size: samples of a batch.
        augmentation: of a split.
        device: where the batches shall end; None: this machine's accelerator, else the CPU.
        workers: numbers of processes.
        pin_memory: None: both on a CUDA device, else off, because there is nothing to copy to.
        prefetch: batches that each worker prepares ahead.
        persistent: False starts the workers anew in every pass and times that, too.
        batches: of one pass; the incomplete last one is left out.
        rounds: passes of every setting, at least 3.
        context: ``fork``, ``forkserver`` or ``spawn``, for datasets that need another one.

    Raises:
        UsageError: a number is out of range, pinned memory without CUDA, too few samples, too little shared
            memory for the workers, or the dataset fails.
    """
    chosen = pick_device(None if device is None else str(device))
    settings = list(_settings(workers, _pins(pin_memory, chosen), prefetch, persistent))
    if batch_size < 1 or batches < 1 or rounds < FEWEST_ROUNDS:
        raise UsageError(
            f"{rounds} rounds of {batches} batches of {batch_size} cannot be compared: "
            f"use {FEWEST_ROUNDS} rounds or more of 1 batch or more."
        )
    if context is not None and context not in multiprocessing.get_all_start_methods():
        raise UsageError(
            f"context is {context!r}: use one of {', '.join(multiprocessing.get_all_start_methods())} on this system."
        )
    samples: Dataset[Any] = TorchvisionLoader(data, 1, augmentation=augmentation).dataset() if isinstance(data, Split) else data
    length = len(samples)  # type: ignore[arg-type]
    used = min(batches, length // batch_size) * batch_size
    if not used:
        raise UsageError(f"{length} samples do not fill a batch of {batch_size}: use a smaller batch.")
    part = Subset(samples, range(used))
    before = set(multiprocessing.active_children())
    passes: dict[str, Callable[[], None]] = {}
    try:
        if max(setting.workers for setting in settings):
            _require_shared_memory(part, batch_size, max(setting.workers * (setting.prefetch or 0) for setting in settings))
        for setting in settings:
            passes[setting.name] = functools.partial(_drain, _loader(part, batch_size, setting, context), chosen)
        if isinstance(data, Split):
            resident = ResidentLoader(data, batch_size, augmentation=augmentation, device=chosen)
            settings.append(LoaderSetting(resident=True))
            passes[settings[-1].name] = lambda: _drain(itertools.islice(resident.batches(0), used // batch_size), chosen)
        timings = interleave(passes, batch=used, rounds=rounds, warmup=1, repeats=1, device=chosen)
    except UsageError as error:
        _explain_workers(error)
        raise
    finally:
        passes.clear()
        gc.collect()  # ends the workers of every loader
        for process in set(multiprocessing.active_children()) - before:  # a failed pass keeps its loader in the traceback
            process.terminate()
            process.join()
    return LoaderTuning({setting: timings[setting.name] for setting in settings}, chosen.type)


def _pins(asked: Sequence[bool] | None, device: torch.device) -> Sequence[bool]:
    if asked is None:
        return (False, True) if device.type == "cuda" else (False,)
    if True in asked and device.type != "cuda":
        raise UsageError(f"Pinned memory serves copies to a CUDA device, and this is {device.type}: use pin_memory=(False,).")
    return asked


def _settings(
    workers: Sequence[int], pins: Sequence[bool], prefetch: Sequence[int], persistent: Sequence[bool]
) -> Iterable[LoaderSetting]:
    """Yield the combinations, fewer workers and simpler settings first."""
    if not (workers and pins and prefetch and persistent) or min(workers) < 0 or min(prefetch) < 1:
        raise UsageError("There is nothing to compare: give each setting a value, workers of 0 or more, prefetch of 1 or more.")
    for count, pin in itertools.product(sorted(set(workers)), sorted(set(pins))):
        if not count:
            yield LoaderSetting(0, pin)
            continue
        for ahead, keep in itertools.product(sorted(set(prefetch)), sorted(set(persistent))):
            yield LoaderSetting(count, pin, ahead, keep)


def _loader(samples: Dataset[Any], batch_size: int, setting: LoaderSetting, context: str | None) -> DataLoader[Any]:
    methods = multiprocessing.get_all_start_methods()
    method = context or ("forkserver" if "forkserver" in methods else "spawn")
    starter = multiprocessing.get_context(method) if setting.workers else None
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["cookbook.data"])  # imports torch once for all workers
    return DataLoader(
        samples, batch_size, drop_last=True, multiprocessing_context=starter,
        generator=torch.Generator(),  # else each pass draws from the program's random numbers
        **setting.arguments,
    )  # fmt: skip


def _drain(loader: Iterable[Any], device: torch.device) -> None:
    """Take every batch, and put it on the device as a training would."""
    for batch in loader:
        if device.type != "cpu":
            for tensor in _tensors(batch):
                tensor.to(device, non_blocking=True)


def _tensors(batch: object) -> Iterable[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, list | tuple | dict):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(value)


def _require_shared_memory(samples: Dataset[Any], batch_size: int, batches_ahead: int) -> None:
    """Refuse workers whose batches would not fit into /dev/shm, which ends them by a bus error."""
    if not SHARED_MEMORY.is_dir():
        return
    first = next(iter(DataLoader(samples, batch_size, generator=torch.Generator())))
    needed = batches_ahead * sum(tensor.nbytes for tensor in _tensors(first))
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise UsageError(
            f"The workers would keep {math.ceil(needed / 1e6)} MB of batches in {SHARED_MEMORY}, which has {free // 10**6} MB: "
            "enlarge it (in a container with --shm-size), or use fewer workers or smaller batches."
        )


def _explain_workers(error: UsageError) -> None:
    """Turn what kills or hinders a worker into advice; other failures are left as they are."""
    text = f"{error} {error.__cause__}".lower()
    if any(sign in text for sign in SHARED_MEMORY_TEXTS):
        raise UsageError(
            f"A worker ran out of shared memory ({SHARED_MEMORY}): enlarge it (in a container with --shm-size), "
            "or use fewer workers or smaller batches."
        ) from error
    if "pickle" in text or "can't get attribute" in text:
        raise UsageError(
            "The workers cannot receive the dataset: define its class and its transforms in a module, "
            "or pass context='fork' where no thread computed before."
        ) from error
    if "dataloader worker" in text:  # its own message follows at the end of a traceback
        reason = str(error.__cause__).strip().splitlines()[-1].rstrip(".")
        raise UsageError(f"A worker failed ({reason}): read the samples of the dataset one by one first.") from error
