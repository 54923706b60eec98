"""Are these the images that a deployed file takes? (lesson 07)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cookbook.errors import UsageError


def checked_images(images: Tensor | np.ndarray, file: str, dtype: np.dtype, shape: Sequence[int | str | None]) -> np.ndarray:
    """Return images as a contiguous array, after a comparison with what a file takes.

    Args:
        images: a batch, (B, …).
        file: its name, for the message.
        dtype: that the file takes.
        shape: that the file takes; a name or None stands for a size that is free, such as the batch.

    Raises:
        UsageError: these are no tensor and no array, their dtype or shape is another, or there are none.
    """
    if not isinstance(images, Tensor | np.ndarray):
        raise UsageError(f"The images are a {type(images).__name__}: pass a torch tensor or a NumPy array.")
    given = str(images.dtype).removeprefix("torch.")
    fits = images.ndim == len(shape) and all(
        not isinstance(size, int) or size == actual for size, actual in zip(shape, images.shape, strict=True)
    )
    if given != str(dtype) or not fits:
        raise UsageError(f"{file} takes {dtype} of shape {tuple(shape)}, not {given} of shape {tuple(images.shape)}.")
    if not len(images):
        raise UsageError(f"The batch for {file} is empty: pass at least one image.")
    return np.ascontiguousarray(images.detach().cpu().numpy() if isinstance(images, Tensor) else images)
