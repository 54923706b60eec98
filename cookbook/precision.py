"""Precision policies: which numbers the forward pass, the backward pass and the weights use (lesson 02)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cookbook.errors import UsageError

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """What a name such as ``"bf16"`` means for a training step.

    Weights, gradients and optimizer state stay in float32 under every policy; ``bf16`` and ``fp16``
    compute matrix products in 16 bits through `torch.amp.autocast`, and ``fp16`` scales the loss
    (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740). ``tf32`` lets float32 matrix
    products on an NVIDIA GPU round their operands to 10 bits of mantissa.

    Attributes:
        name: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        device: the kind of device: ``cpu``, ``cuda`` or ``mps``.
    """

    name: PrecisionName
    device: str

    def __post_init__(self) -> None:
        if self.name not in get_args(PrecisionName):
            raise UsageError(f"precision is {self.name!r}: use one of {', '.join(get_args(PrecisionName))}.")
        if self.name in ("tf32", "fp16") and self.device == "cpu":
            raise UsageError(f"precision {self.name!r} needs a GPU: use 'fp32' or 'bf16' on a CPU.")

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The 16-bit dtype of the matrix products, or None when they stay in float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    @contextlib.contextmanager
    def matmul_mode(self) -> Iterator[None]:
        """Allow or forbid TF32 inside the block, and restore what was set before."""
        if self.device != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context for forward pass and loss; it does nothing in fp32 and tf32."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.amp.autocast(self.device, dtype=self.autocast_dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler; it passes everything through except under fp16."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer
) -> Tensor:
    """Clip the global gradient norm to `max_norm`, after undoing the loss scale; return the norm before."""
    scaler.unscale_(optimizer)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
