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
    compute matrix products in 16 bits through `torch.amp.autocast`, which keeps the loss and the
    statistics of BatchNorm in float32, and ``fp16`` scales the loss (Micikevicius et al., Mixed
    Precision Training, arXiv 1710.03740). ``tf32`` lets float32 matrix products on an NVIDIA GPU round
    their operands to 10 bits of mantissa.

    On a CPU both 16-bit policies compute what they compute on a GPU, and take many times as long as
    ``fp32`` unless the processor has instructions for the format (``avx512_bf16``, ``amx_bf16``).

    Attributes:
        name: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        device: the kind of device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UsageError: there is no such policy, or the device cannot follow it.
    """

    name: PrecisionName
    device: str

    def __post_init__(self) -> None:
        if self.name not in get_args(PrecisionName):
            raise UsageError(f"precision is {self.name!r}: use one of {', '.join(get_args(PrecisionName))}.")
        if self.name == "tf32" and self.device == "cpu":
            raise UsageError("precision 'tf32' needs an NVIDIA GPU: use 'fp32', 'bf16' or 'fp16' on a CPU.")

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
    """Clip the global gradient norm to `max_norm`, after undoing the loss scale; return the norm before.

    Source: Pascanu et al., arXiv 1211.5063; torch's notes on automatic mixed precision for the order.
    """
    scaler.unscale_(optimizer)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
