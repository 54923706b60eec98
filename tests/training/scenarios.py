"""What two ranks do together in test_shared_run.py, each function on both; the test knows the same in one process."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from helpers import RICH_RECIPE, small_loader, small_model, small_split
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cookbook.data import Loader, ResidentLoader
from cookbook.distillation import Feature, distill
from cookbook.training import Objective, Parallel, Recipe, evaluate, evaluate_across_ranks, fit

PLAIN = Recipe(epochs=4, learning_rate=0.05)
MIXED = Recipe(epochs=2, learning_rate=0.05, accumulate=2, clip_norm=0.5, ema_decay=0.8, label_smoothing=0.1)


def _smooth_model(seed: int = 0) -> nn.Module:
    """Return a network without BatchNorm and dropout, for which one process and several compute the same."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 2))


def _train(
    model: nn.Module, recipe: Recipe, loader: Loader | None = None, *, objective: Objective | None = None, **settings: Any
) -> dict[str, Any]:
    """Call `fit`; return the gradients of the first step, the final weights and the losses."""
    first: dict[str, Tensor] = {}

    def look(optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                first.setdefault(name, parameter.grad.clone())

    handle = register_optimizer_step_pre_hook(look)
    try:
        history = fit(model, loader or small_loader(), recipe, objective=objective, progress=False, **settings)
    finally:
        handle.remove()
    return {"gradients": first, "weights": dict(model.state_dict()), "losses": [epoch.train_loss for epoch in history]}


def plain(rank: int, folder: Path) -> Any:
    return _train(_smooth_model(seed=rank), PLAIN)  # all begin with rank 0's weights


def mixed(rank: int, folder: Path) -> Any:
    return _train(_smooth_model(), MIXED)


def uneven(rank: int, folder: Path) -> Any:
    return _train(_smooth_model(), PLAIN, small_loader(batch_size=7))


def last_batch_too_small(rank: int, folder: Path) -> Any:
    return _train(_smooth_model(), PLAIN, ResidentLoader(small_split(49), 16, shuffle=False))


def wrapped_loader(rank: int, folder: Path) -> Any:
    """A loader that cannot be sharded itself is dealt out after it was read."""
    return _train(_smooth_model(), PLAIN, _Foreign(small_loader(batch_size=7)))


class _Foreign:
    def __init__(self, inner: ResidentLoader) -> None:
        self.inner, self.role, self.describe, self.batches = inner, inner.role, inner.describe, inner.batches

    def __len__(self) -> int:
        return len(self.inner)


def own_data(rank: int, folder: Path) -> Any:
    """Rank 0 has two batches of 10, rank 1 one of 20; then rank 1 has nothing left."""
    split = small_split(40)
    images = replace(split, images=split.images[20 * rank :][:20], labels=split.labels[20 * rank :][:20])
    loader = ResidentLoader(images, 10 * (rank + 1), shuffle=False)
    return _train(_smooth_model(), Recipe(epochs=1, learning_rate=0.05), loader, parallel=Parallel(data="own"))


def with_batchnorm(rank: int, folder: Path) -> Any:
    """Each rank's own statistics would give another validation loss."""
    model, validation = small_model(), ResidentLoader(small_split(13, "validation", seed=8), 5)
    told: list[float | None] = []
    result = _train(model, PLAIN, validation=validation, on_epoch=lambda record: told.append(record.validation_loss))
    return {**result, "validation": told, "judged": evaluate(model, validation).loss}


def half(rank: int, folder: Path) -> Any:
    return [_train(_smooth_model(), replace(MIXED, precision=name)) for name in ("bf16", "fp16")]


def compiled(rank: int, folder: Path) -> Any:
    """With a backend that generates no code."""
    compile_ = torch.compile
    torch.compile = lambda model: compile_(model, backend="aot_eager")  # type: ignore[assignment]
    try:
        return _train(_smooth_model(), replace(MIXED, compile=True))
    finally:
        torch.compile = compile_


def options(rank: int, folder: Path) -> Any:
    """Small buckets, a static graph, and the search for unused parameters."""
    static, searching = Parallel(bucket_mb=1e-4, static_graph=True), Parallel(unused_parameters=True)
    return [_train(_smooth_model(), PLAIN, parallel=static), _train(_smooth_model(), MIXED, parallel=searching)]


def compressed(rank: int, folder: Path) -> Any:
    return [
        _train(_smooth_model(), PLAIN, parallel=Parallel(compression=name, powersgd_after=2))
        for name in ("fp16", "bf16", "powersgd")
    ]


def travels(rank: int, folder: Path) -> Any:
    """Count how often gradients travel: once a step, however many batches it accumulates."""
    times, hook = [0], default_hooks.fp16_compress_hook

    @functools.wraps(hook)
    def counting(group: Any, bucket: Any) -> Any:
        times[0] += 1
        return hook(group, bucket)

    default_hooks.fp16_compress_hook = counting
    try:
        for accumulate in (1, 4):
            _train(_smooth_model(), replace(PLAIN, epochs=1, accumulate=accumulate), parallel=Parallel(compression="fp16"))
            times.append(0)
            times[0], times[-1] = 0, times[0]
    finally:
        default_hooks.fp16_compress_hook = hook
    return times[1:]


def evaluation(rank: int, folder: Path) -> Any:
    found = []
    for loader in (ResidentLoader(small_split(13, "validation"), 5), _Foreign(ResidentLoader(small_split(11, "test"), 5))):
        result = evaluate_across_ranks(_smooth_model(), loader)
        found.append((result.predictions, result.labels, result.loss, result.role))
    return found


def _stopping(rank: int, state: Path, at: int, number: int) -> str:
    """Train until rank 1 is signalled in the middle of step `at`."""
    calls = [0]

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == at * RICH_RECIPE.accumulate and rank == 1:
            os.kill(os.getpid(), number)
        return F.cross_entropy(model(images), labels, label_smoothing=RICH_RECIPE.label_smoothing)

    try:
        fit(small_model(), small_loader(), RICH_RECIPE, objective=objective, checkpoint=state, progress=False)
    except (KeyboardInterrupt, SystemExit) as error:
        return f"{type(error).__name__} in call {calls[0]}"
    return "not stopped"


def interrupted(rank: int, folder: Path) -> Any:
    stopped = [_stopping(rank, folder / f"{number}.state", 4, number) for number in (signal.SIGTERM, signal.SIGINT)]
    ends = [_train(small_model(seed=9), RICH_RECIPE, checkpoint=folder / f"{number}.state")["weights"] for number in (15, 2)]
    undisturbed = _train(small_model(), RICH_RECIPE)["weights"]
    return {"stopped": stopped, "ends": ends, "undisturbed": undisturbed}


def signal_in_validation(rank: int, folder: Path) -> Any:
    class Signalling(ResidentLoader):
        def shard(self, rank: int, world: int) -> Any:
            if rank == 1:
                signal.raise_signal(signal.SIGTERM)
            return super().shard(rank, world)

    validation = Signalling(small_split(16, "validation", seed=8), 8)
    state = folder / "validation.state"
    try:
        fit(small_model(), small_loader(), RICH_RECIPE, validation=validation, checkpoint=state, progress=False)
    except SystemExit:
        return torch.load(state, weights_only=True)["at"]["epoch"]
    return -1


def from_one(rank: int, folder: Path) -> Any:
    """Go on with what one process left after its first epoch, prepared by the test."""
    return _train(_smooth_model(seed=5), MIXED, checkpoint=folder / "one.state")


def for_one(rank: int, folder: Path) -> Any:
    """Stop after the first epoch, for one process to go on."""

    def stop(record: object) -> None:
        raise ConnectionAbortedError("planted")

    return _train(_smooth_model(), MIXED, checkpoint=folder / "two.state", on_epoch=stop)


def distilled(rank: int, folder: Path) -> Any:
    return _distilled()


def _distilled() -> dict[str, Tensor]:
    """Teach with a hint, whose regressor is trained in the group, too, in batches of 7."""
    student, teacher = _smooth_model(), _smooth_model(seed=3)
    hint = Feature(student="1", teacher="1", loss="hint", weight=0.5)
    distill(student, teacher, small_loader(batch_size=7), replace(PLAIN, epochs=2), features=(hint,), progress=False)
    return dict(student.state_dict())


def _complaint(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no complaint"


def refused(rank: int, folder: Path) -> Any:
    """What goes wrong ends in a sentence on both ranks, and nobody waits."""
    other = _smooth_model() if rank == 0 else nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    unused = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    unused.register_parameter("idle", nn.Parameter(torch.zeros(1)))
    state = folder / "another.state"
    _train(small_model(), replace(PLAIN, epochs=1), checkpoint=state)

    def poisoned(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels) * (float("nan") if rank == 1 else 1.0)

    return [
        _complaint(lambda: fit(_smooth_model(), small_loader(), replace(PLAIN, seed=rank), progress=False)),
        _complaint(lambda: fit(other, small_loader(), PLAIN, progress=False)),
        _complaint(lambda: fit(small_model(), small_loader(), PLAIN, parallel=Parallel(sync_batchnorm=True))),
        _complaint(lambda: fit(_smooth_model(), small_loader(), PLAIN, checkpoint=state, progress=False)),
        _complaint(lambda: fit(_smooth_model(), small_loader(), PLAIN, objective=poisoned, progress=False)),
        _complaint(lambda: fit(unused, small_loader(), PLAIN, progress=False)),
        _complaint(lambda: fit(_smooth_model(), small_loader(), MIXED, parallel=Parallel(static_graph=True))),
        _complaint(lambda: fit(_smooth_model(), small_loader(small_split(seed=rank)), PLAIN, checkpoint=folder / "x")),
    ]
