"""Peak memory of a function: the CUDA allocator's peak, or the growth of the resident set (lesson 00)."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from cookbook.environment import pick_device

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
SAMPLING_SECONDS = 1e-3


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Call `function` once and return how many bytes its peak lay above the start.

    On CUDA the peak comes from torch's allocator, to the byte; what cuDNN, other libraries and the
    context hold is not in it. Everywhere else it is the resident set of this process: on Linux the
    kernel's high-water mark, where it may be reset (proc(5), ``clear_refs``), else a sample every
    millisecond, which misses shorter peaks.

    The resident set knows pages, not tensors. It misses memory that was reserved but never
    touched, what was swapped out, and what a runtime had kept from an earlier call and uses again
    (ONNX Runtime's arena does so: measure its largest batch before others). It includes code that is
    loaded on a first call, so make a small call before. The C library's free memory is given back
    to the system first, where it has a call for that. Trust differences of some megabytes, not less.

    Args:
        function: what to run; its result is thrown away.
        device: where it computes.

    Raises:
        UsageError: the device does not exist here.
    """
    chosen = pick_device(str(device))
    gc.collect()
    if chosen.type == "cuda":
        torch.cuda.synchronize(chosen)
        torch.cuda.reset_peak_memory_stats(chosen)
        start = torch.cuda.memory_allocated(chosen)
        function()
        torch.cuda.synchronize(chosen)
        return torch.cuda.max_memory_allocated(chosen) - start
    _give_free_memory_back()
    if not _reset_high_water_mark():
        return _sampled_peak(function)
    start = _resident("VmHWM")
    function()
    return _resident("VmHWM") - start


def _give_free_memory_back() -> None:
    """Let glibc return freed pages; reused silently, they would make the next peak look smaller."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))


def _reset_high_water_mark() -> bool:
    """Set the high-water mark to the present resident set; False where the system has none or forbids it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _resident("VmHWM") - _resident("VmRSS") < 2**20  # a sandbox may accept the write and ignore it


def _resident(field: str) -> int:
    """Return a field of this process's status in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _sampled_peak(function: Callable[[], object]) -> int:
    process, done = psutil.Process(), threading.Event()
    start = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLING_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - start
