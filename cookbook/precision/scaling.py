"""What became of each scaled step, learned without waiting for the device (lesson 02)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepOutcome(NamedTuple):
    """What became of one optimizer step.

    Attributes:
        taken: False when a gradient was infinite or NaN and the weights stayed as they were.
        scale: of the loss from then on.
    """

    taken: bool
    scale: float


class LossScaling:
    """Takes optimizer steps through torch's GradScaler, and reports each one later.

    Whether fp16 gradients overflowed is known on the device. Who asks at once, by ``get_scale()``, makes
    the host wait for the whole step and leaves the device idle afterwards. Here the answer of a step is
    copied to the host while the next forward and backward pass are already queued, and is read just
    before the next optimizer step: early enough for a schedule that must not count skipped steps, and
    late enough to keep the device busy. That holds for optimizers with ``fused=True``; for others
    GradScaler itself reads the answer in every step, to decide whether to call the optimizer.

    Args:
        scaler: enabled.
        optimizer: the only one that this scaler steps.
        device: of the parameters.
    """

    def __init__(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.scaler, self.optimizer = scaler, optimizer
        self._one = torch.ones((), device=device)
        self._asynchronous = device.type == "cuda"
        self._overflow: Tensor | None = None
        self._answer: Tensor | None = None
        if self._asynchronous:
            self._arrived = torch.cuda.Event()
            self._landing = torch.empty(2, pin_memory=True)
        optimizer.register_step_post_hook(self._after_update)

    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Note that the optimizer ran; a fused one holds the flag by which its kernel decided."""
        self._overflow = getattr(optimizer, "found_inf", torch.zeros_like(self._one))

    def step(self) -> None:
        """Undo the scale, update the weights unless a gradient overflowed, and adapt the scale."""
        self._overflow = None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scale = self.scaler.scale(self._one)  # on the device, where get_scale() would wait
        overflow = torch.ones_like(self._one) if self._overflow is None else self._overflow
        answer = torch.stack((overflow, scale))
        if self._asynchronous:
            answer = self._landing.copy_(answer, non_blocking=True)
            self._arrived.record()
        self._answer = answer

    def settle(self) -> StepOutcome | None:
        """Return what became of the last step, or None when it was told already."""
        if self._answer is None:
            return None
        if self._asynchronous:
            self._arrived.synchronize()
        overflow, scale = self._answer.tolist()
        self._answer = None
        return StepOutcome(overflow == 0, scale)
