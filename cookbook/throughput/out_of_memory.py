"""Which exceptions mean that memory ran out (lesson 01)."""

from __future__ import annotations

import torch

OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "HIP out of memory",
    "MPS backend out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` means that memory ran out, and nothing else.

    These are `torch.OutOfMemoryError`, `MemoryError`, and a RuntimeError with the text of a CPU allocator, of
    CUDA, HIP or MPS, or the status ALLOC_FAILED of cuDNN, cuBLAS or cuSOLVER. ``CUDNN_STATUS_NOT_SUPPORTED`` is
    none of them: it also stands for unsupported layers and layouts.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
