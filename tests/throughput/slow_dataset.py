"""Datasets for workers, which must find them in a module."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Numbers(Dataset[dict[str, Tensor]]):
    """Samples as dictionaries; one of them can fail."""

    def __init__(self, length: int, fails_at: int = -1, error: str = "") -> None:
        self.length, self.fails_at, self.error = length, fails_at, error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == self.fails_at:
            raise RuntimeError(self.error)
        return {"number": torch.tensor(index), "process": torch.tensor(os.getpid())}
