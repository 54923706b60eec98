"""Parameters and multiply-accumulates of a model (lesson 00)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cookbook.errors import UsageError
from cookbook.models import eval_mode


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights and biases; what two layers share is counted once, buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one image: one for each multiplication of two activations or weights.

    Counts the matrix products and convolutions that torch executes
    (https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py counts two operations
    for each): convolutions of any kind with their padding, linear layers, and both products of an
    attention. Biases, normalization, activations and pooling are not counted. Zeros in a weight
    count like any other number.

    The forward pass runs in eval mode without gradients; modes, gradients and the statistics of
    BatchNorm are left as they were.

    Args:
        model: maps a batch of images to anything.
        example: images (B, C, H, W) on the model's device; the first one is used.

    Raises:
        UsageError: the example is empty, the model cannot process it, or it has recurrent layers
            (LSTM, GRU, RNN), which torch executes as one operation that hides its products.
    """
    if example.ndim == 0 or not len(example):
        raise UsageError(f"An example of shape {tuple(example.shape)} holds no image: pass a batch of one or more.")
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} has recurrent layers, whose operations cannot be counted: count them by hand."
        )
    counter = FlopCounterMode(display=False)
    with eval_mode(model), torch.no_grad(), _attention_as_matrix_products():
        try:
            with counter:
                model(example[:1])
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(
                f"{type(model).__name__} cannot process an image of shape {tuple(example.shape[1:])} ({reason}): "
                "pass an example of the shape, dtype and device that it was built for."
            ) from error
    return counter.get_total_flops() // 2


@contextlib.contextmanager
def _attention_as_matrix_products() -> Iterator[None]:
    """Keep torch from its fused attention kernels, some of which the counter does not know."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
