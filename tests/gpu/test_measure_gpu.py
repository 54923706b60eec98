"""Measuring on CUDA: memory to the byte, clocks that wait for the device, provenance, and the batch that still fits."""

from __future__ import annotations

import pytest
import torch

from cookbook.accelerator import Workload
from cookbook.accelerator.stepper import resident_step, training_memory
from cookbook.environment import provenance
from cookbook.measure import count_parameters, interleave, peak_memory
from cookbook.models import PerceptronConfig, ResNetConfig, build
from cookbook.throughput import find_batch_size, is_out_of_memory

pytestmark = pytest.mark.gpu
MIB = 2**20


def test_peak_memory_is_that_of_a_known_allocation(cuda: torch.device) -> None:
    def allocate() -> None:
        first = torch.empty(64 * MIB, dtype=torch.uint8, device=cuda)
        second = torch.empty(32 * MIB, dtype=torch.uint8, device=cuda)
        del first
        del second

    held = torch.empty(16 * MIB, dtype=torch.uint8, device=cuda)  # before the start: it does not count
    assert peak_memory(allocate, cuda) == 96 * MIB
    assert held.numel() == 16 * MIB


def test_clocks_wait_for_the_device(cuda: torch.device) -> None:
    matrix = torch.randn(2048, 2048, device=cuda)
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def multiply() -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(20):
            matrix @ matrix
        end.record()
        events.append((start, end))

    timing = interleave({"multiply": multiply}, rounds=5, warmup=1, device=cuda, repeats=1)["multiply"]
    on_device = [start.elapsed_time(end) / 1e3 for start, end in events[-5:]]
    assert all(sample >= 0.99 * seconds for sample, seconds in zip(timing.samples, on_device, strict=True))


def test_a_training_holds_weights_momentum_and_gradients(cuda: torch.device) -> None:
    torch.ones(64, 64, device=cuda) @ torch.ones(64, 64, device=cuda)  # cuBLAS keeps a workspace from its first call on
    workload = Workload("wide", "wide", PerceptronConfig(hidden=(2048, 2048)), (1, 28, 28), 4)
    allocated, reserved = training_memory(lambda: resident_step(workload, "fp32", cuda), cuda)
    weights = 4 * count_parameters(build(workload.config))
    assert 3 * weights <= allocated <= reserved
    assert allocated < 7 * weights


def test_bf16_takes_less_memory_where_activations_rule(cuda: torch.device) -> None:
    workload = Workload("resnet", "resnet", ResNetConfig(depth=8, width=32), (1, 32, 32), 256)
    peaks = {
        name: training_memory(lambda name=name: resident_step(workload, name, cuda, channels_last=True), cuda)[0]
        for name in ("fp32", "bf16")
    }
    assert peaks["bf16"] < 0.8 * peaks["fp32"]


def test_provenance_names_the_gpu_and_its_software(cuda: torch.device) -> None:
    origin = provenance(cuda)
    assert torch.cuda.get_device_name(cuda) in origin.device
    assert origin.libraries["cuda" if torch.version.cuda else "rocm"]
    assert origin.libraries["cudnn"] == str(torch.backends.cudnn.version())


def test_the_batch_finder_stops_at_the_gpus_own_limit(cuda: torch.device) -> None:
    def step(batch: int) -> None:
        torch.empty(batch * image, dtype=torch.uint8, device=cuda)

    budget, image = 1024 * MIB, 8 * MIB
    torch.cuda.empty_cache()
    before, held = torch.cuda.memory_allocated(cuda), torch.cuda.memory_reserved(cuda)
    allowed = (held + budget) / torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed, cuda)
    try:
        found = find_batch_size(step, start=16, limit=1024, device=cuda, rounds=3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    fits = {trial.batch: trial.fits for trial in found.trials}
    assert fits[found.largest] and not fits[found.largest + 1]
    assert 0.9 * budget / image <= found.largest <= budget / image
    assert torch.cuda.memory_allocated(cuda) == before


def test_only_missing_memory_is_called_out_of_memory(cuda: torch.device) -> None:
    with pytest.raises(torch.OutOfMemoryError) as refused:
        torch.empty(2**50, dtype=torch.uint8, device=cuda)
    assert is_out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as unrelated:
        torch.ones(2, device=cuda) + torch.ones(2)
    assert not is_out_of_memory(unrelated.value)
