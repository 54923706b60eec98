"""What a model predicts, image by image: the raw material of every accuracy (lesson 00)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, Role
from cookbook.errors import DataError
from cookbook.models import eval_mode
from cookbook.training.ranks import Ranks, rows_of, shared_batches


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions on one split, kept per image so that two models can be compared in pairs.

    Attributes:
        role: the split that was evaluated.
        predictions: int64 (N,): the class with the largest logit.
        labels: int64 (N,).
        loss: mean cross-entropy, without label smoothing.
    """

    role: Role
    predictions: Tensor
    labels: Tensor
    loss: float

    @property
    def correct(self) -> Tensor:
        """Bool (N,): whether each prediction is right."""
        return self.predictions == self.labels

    @property
    def hits(self) -> int:
        """Number of right predictions."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of right predictions, 0 to 1."""
        return self.hits / len(self.labels)

    def __repr__(self) -> str:
        return f"Evaluation({self.role}: {self.hits} of {len(self.labels)} = {self.accuracy:.2%}, loss {self.loss:.4f})"


def evaluate(model: nn.Module, loader: Loader) -> Evaluation:
    """Predict every image of `loader` once, in float32, without gradients, in eval mode.

    The modes of all submodules are put back afterwards. The model and the batches must be on one
    device.

    Raises:
        DataError: the loader yields nothing.
    """
    predictions, labels_seen, losses = [], [], []
    with eval_mode(model), torch.inference_mode():
        for images, labels in loader.batches(0):
            logits = model(images).float()
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            predictions.append(logits.argmax(1))
            labels_seen.append(labels)
    if not labels_seen:
        raise DataError("The loader yields no images: there is nothing to evaluate.")
    all_labels = torch.cat(labels_seen).cpu()
    loss = torch.stack(losses).double().sum().item() / len(all_labels)
    return Evaluation(loader.role, torch.cat(predictions).cpu(), all_labels, loss)


def evaluate_across_ranks(model: nn.Module, loader: Loader) -> Evaluation:
    """Predict every image of `loader` once, each on one rank; return the whole on all ranks, in the loader's order.

    In a group of processes all ranks call this together, with the same model and the same loader. No image is
    repeated to fill up, so that the accuracy is exactly that of one process; the loss is summed in
    another order. Without a group this is `evaluate` (lesson 03).

    Raises:
        DataError: the loader yields nothing.
        RankError: a rank was given another loader.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    ranks = Ranks.current(device)
    if ranks is None:
        return evaluate(model, loader)
    ranks.require_same({"number of batches": len(loader), "role": loader.role})
    found, losses, sizes = [], [], []
    with eval_mode(model), torch.inference_mode():
        for images, labels, total in shared_batches(loader, ranks, 0):
            mine = rows_of(ranks.rank, ranks.world, total)
            logits = model(images).float()[:mine]
            losses.append(F.cross_entropy(logits, labels[:mine], reduction="sum"))
            found.append(torch.stack((logits.argmax(1), labels[:mine])))
            sizes.append(total)
    if not sizes:
        raise DataError("The loader yields no images: there is nothing to evaluate.")
    whole = torch.zeros(2, sum(sizes), dtype=torch.int64, device=device)
    whole[:, _places(ranks, sizes)] = torch.cat(found, dim=1).to(device)
    both = ranks.sum(whole).cpu()
    loss = ranks.sum(torch.stack(losses).sum().view(1).to(device)).double().item() / sum(sizes)
    return Evaluation(loader.role, both[0], both[1], loss)


def _places(ranks: Ranks, sizes: list[int]) -> Tensor:
    """Return where this rank's images stand among all, as int64 indices."""
    starts = [0, *itertools.accumulate(sizes)]
    parts = [torch.arange(start, start + size)[ranks.rank :: ranks.world] for start, size in zip(starts, sizes, strict=False)]
    return torch.cat(parts).to(ranks.device)
