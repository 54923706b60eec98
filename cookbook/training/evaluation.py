"""What a model predicts, image by image: the raw material of every accuracy (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, Role
from cookbook.errors import DataError
from cookbook.models import eval_mode


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
