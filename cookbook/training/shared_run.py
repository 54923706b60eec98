"""One training under way in several processes that end with the same weights (lesson 03)."""

from __future__ import annotations

import contextlib
import functools
import io
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.data.loaders import Batch
from cookbook.environment import derive_seed
from cookbook.errors import UsageError
from cookbook.training.checkpoint import InterruptRequest, load_state, random_state, restore_random_state, save_state
from cookbook.training.parallel import Parallel, SynchronizedBatchNorm, wrap
from cookbook.training.ranks import Ranks, digest, rows_of, shared_batches
from cookbook.training.recipe import Recipe
from cookbook.training.run import Objective, Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Agreement(InterruptRequest):
    """Says whether a signal arrived at any rank, as all ranks agreed after the same step."""


class SharedRun(Run):
    """A `Run` in a group of processes: its steps are those of one process on the whole batch.

    DistributedDataParallel averages the ranks' gradients. So that the result is the gradient of the mean loss
    over all images of a batch, however unequally they are dealt out, each rank's mean loss counts by its
    share: images here × ranks / images in all.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Loader,
        recipe: Recipe,
        objective: Objective | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.parallel = parallel or Parallel()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        ranks = Ranks.current(device)
        if ranks is None:
            raise UsageError("There is no group of processes: form one with cookbook.distributed.launch, or use Run.")
        self.ranks, self.first = ranks, ranks.first
        if self.parallel.static_graph and recipe.accumulate > 1:
            raise UsageError(
                "static_graph fails in torch when gradients do not travel in every batch: leave it or accumulate out."
            )
        ranks.require_same(self._facts(model, train, recipe))
        self.synchronized = SynchronizedBatchNorm(model) if self.parallel.sync_batchnorm else None
        super().__init__(model, train, recipe, objective)
        if self.parallel.data == "own":
            self.batches_per_epoch = ranks.largest(len(train))
            self.steps_per_epoch = -(-self.batches_per_epoch // recipe.accumulate)
        self.weighted, self.objective = self.objective, self._weigh
        self.share: float | Tensor = 1.0  # of the batch under way, times the ranks
        self.last = True  # whether it is the last of its step
        self.request, self.agreement = InterruptRequest(), Agreement()
        self.flags: dict[int | None, Tensor] = {
            number: torch.tensor([float(number == one) for one in SIGNALS], device=device) for number in (None, *SIGNALS)
        }
        self.unread_flags: list[Tensor] = []
        if not ranks.first:  # random layers draw other numbers on every rank
            torch.manual_seed(derive_seed(recipe.seed, ranks.rank))

    def _facts(self, model: nn.Module, train: Loader, recipe: Recipe) -> dict[str, Any]:
        """Return what must be equal on all ranks, as far as it costs nothing to compare."""
        return {
            "model": {name: list(value.shape) for name, value in model.state_dict().items()},
            "recipe": asdict(recipe),
            "Parallel": asdict(self.parallel),
            "number of batches": len(train) if self.parallel.data == "shared" else 0,
        }

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run; with shared data it is that of a single process."""
        found = {**self._facts(self.model, self.train, self.recipe), "data": self.train.describe()}
        if self.parallel.data == "own":
            everyone = self.ranks.gather(torch.tensor(digest(found["data"])))
            found["data"] = {"of every rank": [int(one) for one in everyone]}
        self.ranks.require_same({"data": found["data"]})
        return {name: found[name] for name in ("model", "recipe", "data")}

    def wrapped(self) -> nn.Module:
        """Return the model inside DistributedDataParallel."""
        self.ddp = wrap(self.model, self.parallel)
        return self.ddp

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's images of the epoch under way, noting before each what they count for."""
        ranks, at, size = self.ranks, self.at, self.recipe.accumulate
        first = at.step * size
        if self.parallel.data == "own":
            return self._own_batches(first)
        return self._noting(
            (images, labels, rows_of(ranks.rank, ranks.world, total) * ranks.world / total)
            for images, labels, total in shared_batches(self.train, ranks, at.epoch, first)
        )

    def _own_batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches of this rank's own loader; when it is through, its last one again, which counts for nothing."""

        def counted() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            number = min(first, len(self.train) - 1)
            batches, batch = self.train.batches(self.at.epoch, number), None
            while True:
                if batch is None or number < len(self.train):
                    batch = next(batches, None)
                    if batch is None:
                        return
                images, labels = batch
                mine = len(labels) if max(number, first) < len(self.train) else 0
                count = torch.tensor(float(mine), device=self.device)
                total = self.ranks.sum(count.clone())
                yield images, labels, count * self.ranks.world / total
                number += 1

        return self._noting(counted())

    def _noting(self, batches: Iterator[tuple[Tensor, Tensor, float | Tensor]]) -> Iterator[Batch]:
        """Note the share of each batch, and whether gradients shall travel after it, when it is asked for."""
        size = self.recipe.accumulate
        for number, (images, labels, share) in enumerate(batches, self.at.step * size + 1):
            self.share, self.last = share, number % size == 0 or number == self.batches_per_epoch
            yield images, labels

    def _weigh(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of this rank's images by their share; gradients travel in the last backward pass of a step."""
        try:
            with contextlib.nullcontext() if self.last else self.ddp.no_sync():
                loss = self.weighted(model, images, labels)
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            raise UsageError(
                "Some parameters took no part in the last loss: freeze them, or pass Parallel(unused_parameters=True)."
            ) from error
        return loss if isinstance(self.share, float) and self.share == 1.0 else loss * self.share

    def _accumulate_gradients(self, batches: Iterator[Batch]) -> Tensor:
        """Run the batches of one step; return the mean loss over all ranks' images."""
        own = super()._accumulate_gradients(batches)
        told = self.ranks.sum(torch.cat((own.float().view(1) / self.ranks.world, self.flags[self.request.signal])))
        self.unread_flags.append(told[1:])
        if self.device.type == "cpu":
            self._read_flags()
        return told[0]

    def _read_flags(self) -> None:
        """Take note of the signals that any rank has reported; all ranks read at the same steps."""
        if not self.unread_flags:
            return
        told = torch.stack(self.unread_flags).sum(0).tolist()
        self.unread_flags.clear()
        for number, times in zip(SIGNALS, told, strict=True):
            if times:
                self.agreement.signal = number

    def check_losses(self, ahead: int = 0) -> None:
        """Read losses and signals that are waiting on the device; raises as `Run.check_losses` does."""
        super().check_losses(ahead)
        self._read_flags()

    def obey(self, request: InterruptRequest) -> InterruptRequest:
        """Return what says whether any rank was interrupted."""
        self.request = request
        return self.agreement

    def settle_statistics(self) -> None:
        """Give all ranks rank 0's BatchNorm statistics."""
        self.ranks.share_buffers(self.evaluated_model)

    def save(self, path: Path | None) -> None:
        """Let rank 0 write the state, with every rank's random numbers, while the others wait."""
        self.check_losses()
        self.unread_flags.append(self.ranks.sum(self.flags[self.request.signal].clone()))
        self._read_flags()
        if path is None:
            return
        drawn: list[dict[str, Tensor]] = [{} for _ in range(self.ranks.world)]
        for name, mine in random_state().items():
            for state, value in zip(drawn, self.ranks.gather(mine), strict=True):
                state[name] = value

        def write() -> None:
            save_state(path, {**self.state(), "ranks": drawn})

        self.settle()
        self.ranks.let_first(write)

    def resume(self, path: Path) -> None:
        """Go back to the state that rank 0 reads; ranks that the saved run did not have draw new random numbers.

        Raises:
            CheckpointError: on rank 0: the file is damaged, or belongs to another training. The other ranks
                raise a RankError with the same message.
        """
        identity, here = self.identity, self.ranks.rank
        content = self.ranks.let_first(
            lambda: None if load_state(path, identity, self.device) is None else path.read_bytes()
        )  # fmt: skip
        if not content:
            return
        state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        drawn = state.get("ranks", [state["random"]])
        self.restore(state)
        if here < len(drawn):
            restore_random_state(drawn[here])
        else:
            torch.manual_seed(derive_seed(self.recipe.seed, here, self.at.epoch, self.at.step))

    def leave_result_in_model(self) -> None:
        """Leave the same weights and statistics on all ranks, and the model's own BatchNorm layers."""
        super().leave_result_in_model()
        if self.synchronized is not None:
            self.synchronized.undo()
        self.ranks.share_buffers(self.model)
