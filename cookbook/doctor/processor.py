"""Threads, load, shared memory and instruction sets: what decides the speed of a CPU and of loading (lesson 01)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cookbook.doctor.finding import Finding, fine, note, problem
from cookbook.probe import Probe

VNNI = {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"}
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
AMX = {"amx_int8", "amx_bf16"}
# A worker keeps two batches ready; four workers with 128 float32 images of 3 × 224 × 224 (77 MB a batch) need 616 MB
ENOUGH_SHARED_MEMORY = 2**30


def judge(probe: Probe) -> Iterator[Finding]:
    """Yield the findings on threads, on waiting, on memory for workers and on instruction sets."""
    yield _threads(probe)
    yield from _sharing(probe)
    yield from _shared_memory(probe)
    yield from _instruction_sets(probe)


def _usable(probe: Probe) -> int:
    """Return the processors that this process can really keep busy."""
    return probe.processors if probe.cpu_limit is None else min(probe.processors, max(1, math.ceil(probe.cpu_limit)))


def _threads(probe: Probe) -> Finding:
    usable = _usable(probe)
    limit = "" if probe.cpu_limit is None else f", limited to {probe.cpu_limit:g} by the container"
    facts = f"torch threads: {probe.threads}; processors: {probe.processors}{limit}"
    if probe.threads > usable:
        return problem("threads", f"{facts}: they wait for each other.", f"Run 'export OMP_NUM_THREADS={usable}'.")
    better = min(usable, probe.cores or usable)
    if probe.threads < better / 2:
        remedy = f"Run 'export OMP_NUM_THREADS={better}' to train faster."
        return note("threads", f"{facts}: most cores are idle.", remedy)
    return fine("threads", facts)


def _sharing(probe: Probe) -> Iterator[Finding]:
    """Yield what other programs on the cores do to this one, and idle threads that spin instead of sleeping.

    OpenMP's threads spin by default while they wait (https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fWAIT_005fPOLICY.html).
    """
    spins = probe.threads > 1 and probe.settings.get("OMP_WAIT_POLICY", "").lower() != "passive"
    load, usable = probe.load or 0.0, _usable(probe)
    if load >= 0.5 and load + probe.threads > usable + 0.5:
        yield note(
            "load",
            f"Over the last minute, programs wanted {load:.1f} processors; this one may use {usable}: timings suffer.",
            "Measure when 'top' shows an idle machine.",
        )
        if spins:
            yield note(
                "waiting",
                "Idle threads spin on processors that others want: two threads can be slower than one.",
                "Run 'export OMP_WAIT_POLICY=passive'.",
            )
    elif spins:
        yield note(
            "waiting",
            "Idle threads spin; with other programs on the cores that can make two threads slower than one.",
            "Run 'export OMP_WAIT_POLICY=passive' on a machine that you share.",
        )


def _shared_memory(probe: Probe) -> Iterator[Finding]:
    if probe.shared_memory is None:
        return
    free = f"{probe.shared_memory / 2**20:,.0f} MiB of shared memory are free"
    if probe.shared_memory < ENOUGH_SHARED_MEMORY:
        yield note(
            "workers",
            f"{free}: DataLoader workers hand batches over in it, and die of a bus error when it is full.",
            "Start the container with 'docker run --shm-size=2g', or load with workers=0 or a ResidentLoader.",
        )
    else:
        yield fine("workers", free)


def _instruction_sets(probe: Probe) -> Iterator[Finding]:
    if probe.instruction_sets is None:
        yield fine("instructions", "The processor's instruction sets cannot be read on this system.")
        return
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        if setting := probe.settings.get(name):
            yield note(
                "instructions",
                f"{name}={setting} holds torch back from the processor's newer instructions.",
                f"Run 'unset {name}'.",
            )
    present = set(probe.instruction_sets)
    if probe.machine.lower() in ("x86_64", "amd64") and "avx2" not in present:
        yield note("AVX2", "No AVX2: torch falls back to code for the oldest processors and trains several times slower.")
    if not present & VNNI:
        yield note(
            "int8",
            "No 8-bit dot product (VNNI): int8 gains little speed, and sums of U8 times S8 can saturate.",
            "Check an int8 model's accuracy on this machine.",
        )
    if not present & BF16:
        yield note("bf16", "No bfloat16 arithmetic: bf16 runs, but not faster than fp32 on this processor.")
    if present & VNNI and present & BF16:
        amx = "; AMX multiplies whole tiles" if present & AMX else ""
        yield fine("instructions", f"{', '.join(probe.instruction_sets)}: int8 and bf16 in hardware{amx}")
