import gc
import time

import numpy as np
import psutil
import pytest
import torch

from cookbook.errors import UsageError
from cookbook.measure import memory, peak_memory

MB = 10**6


def touch(megabytes: int) -> np.ndarray:
    return np.ones(megabytes * MB, np.uint8)


def hold() -> None:
    """Hold 64 MB for as long as samples need to see them."""
    buffer = touch(64)
    time.sleep(0.1)
    del buffer


def test_a_buffer_that_is_freed_inside_is_seen():
    touch(1).sum()
    assert 62 * MB < peak_memory(lambda: touch(64).sum()) < 80 * MB


def test_memory_that_is_held_before_is_not_counted():
    held = touch(96)
    assert peak_memory(lambda: touch(16).sum()) < 30 * MB
    assert held.all()


def test_garbage_that_is_freed_inside_does_not_hide_what_is_allocated():
    cycle = [touch(64)]
    cycle.append(cycle)
    del cycle

    def function():
        gc.collect()
        return touch(32).sum()

    gc.disable()
    try:
        assert 30 * MB < peak_memory(function) < 48 * MB
    finally:
        gc.enable()


def test_an_earlier_peak_does_not_count():
    peak_memory(lambda: touch(128).sum())
    assert peak_memory(lambda: touch(8).sum()) < 24 * MB


def test_many_tensors_that_the_c_library_keeps_are_counted_in_a_second_run_too():
    def forward():
        tensors = [torch.ones(100_000) for _ in range(100)]  # 0.4 MB each: served from the heap
        return sum(float(tensor[0]) for tensor in tensors)

    forward()
    assert all(35 * MB < peak_memory(forward) < 60 * MB for _ in range(3))


def test_where_the_kernel_resets_its_mark_no_samples_are_taken(monkeypatch):
    touch(128).sum()
    try:
        memory.CLEAR_REFS.write_text("5")
    except OSError as error:
        pytest.skip(f"the kernel's mark cannot be reset here: {error}")
    if int(memory.STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024 > psutil.Process().memory_info().rss + 64 * MB:
        pytest.skip("the kernel accepts the reset of its mark and ignores it")
    touch(128).sum()
    monkeypatch.setattr(memory, "_sampled_peak", lambda function: pytest.fail("samples were taken"))
    assert 62 * MB < peak_memory(lambda: touch(64).sum()) < 80 * MB


def test_without_a_high_water_mark_samples_are_taken(monkeypatch):
    monkeypatch.setattr(memory, "CLEAR_REFS", memory.Path("/nonexistent/clear_refs"))
    assert 62 * MB < peak_memory(hold) < 80 * MB


def test_a_high_water_mark_that_does_not_move_is_not_trusted(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("VmHWM:\t  900000 kB\nVmRSS:\t  300000 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "clear_refs")
    assert 62 * MB < peak_memory(hold) < 80 * MB


def test_a_failing_function_fails(monkeypatch):
    for clear_refs in (memory.CLEAR_REFS, memory.Path("/nonexistent/clear_refs")):
        monkeypatch.setattr(memory, "CLEAR_REFS", clear_refs)
        with pytest.raises(ZeroDivisionError):
            peak_memory(lambda: 1 / 0)


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="'cuda:99'"):
        peak_memory(lambda: None, "cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_allocator_counts_to_the_byte():
    held = torch.ones(2**20, device="cuda")
    assert peak_memory(lambda: torch.ones(2**24, device="cuda"), "cuda") == 4 * 2**24
    assert held.numel() == 2**20
