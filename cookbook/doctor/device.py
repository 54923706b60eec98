"""Which device torch trains on, and when it is the CPU although there is a GPU, why (lesson 01)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cookbook.doctor import amd, apple, nvidia
from cookbook.doctor.finding import Finding, counted, fine, note, problem
from cookbook.probe import Probe


def judge(probe: Probe) -> Iterator[Finding]:
    """Yield the findings on the device: at least one with that subject, and those on the GPU in use."""
    asked = probe.settings.get("COOKBOOK_DEVICE", "").strip()
    reasons = [] if probe.accelerators else list(_why_no_gpu(probe))
    if asked == "cpu":  # nobody misses the GPU then
        reasons = [replace(reason, level="note") for reason in reasons]
    yield from reasons
    if asked and not _exists(asked, probe):
        yield problem(
            "device",
            f"COOKBOOK_DEVICE is {asked!r}, and torch can use no such device.",
            "Run 'unset COOKBOOK_DEVICE', or set it to 'cpu'.",
        )
    elif probe.accelerators:
        yield from _used(probe, asked)
    elif not reasons:
        build = f", torch built for CUDA {probe.cuda_build}" if probe.cuda_build else ""
        message = f"CPU: no GPU found{build}; every lesson runs, recorded results stand in for a GPU's."
        yield fine("device", message)


def _exists(asked: str, probe: Probe) -> bool:
    """Say whether torch can use the device that was asked for."""
    found = re.fullmatch(r"(cpu|cuda|mps)(?::(\d+))?", asked)
    if found is None or found[1] == "cpu":
        return found is not None
    kind = "mps" if probe.system == "Darwin" else "cuda"
    return found[1] == kind and int(found[2] or 0) < len(probe.accelerators)


def _has_apple_gpu(probe: Probe) -> bool:
    return probe.system == "Darwin" and (probe.machine == "arm64" or probe.rosetta)


def _used(probe: Probe, asked: str) -> Iterator[Finding]:
    names = counted(probe.accelerators)
    if asked == "cpu":
        yield note("device", f"COOKBOOK_DEVICE is 'cpu'; unused: {names}.", "Run 'unset COOKBOOK_DEVICE' to use it.")
        return
    faults = list(nvidia.without_code(probe))
    hidden = list(nvidia.hidden(probe)) if probe.cuda_build else []
    yield from [*faults, *hidden]
    if all(fault.level != "problem" for fault in faults):
        yield fine("device", names)
    yield from nvidia.in_use(probe)
    yield from amd.in_use(probe)


def _why_no_gpu(probe: Probe) -> Iterator[Finding]:
    """Yield why torch finds no GPU, nothing where there is none."""
    if probe.rocm_build and probe.amd_devices:
        yield from amd.why_unused(probe)
    elif nvidia.is_present(probe):
        yield from nvidia.why_unused(probe)
    elif probe.amd_devices:
        yield from amd.why_unused(probe)
    elif _has_apple_gpu(probe):
        yield from apple.why_unused(probe)
    elif probe.wsl and not probe.wsl_gpu:
        yield note(
            "device",
            "CPU: this Linux runs inside Windows (WSL), which passes no GPU on to it.",
            "Where Windows has a GPU, run 'wsl --update' and 'wsl --set-version' with 2 in Windows.",
        )


def summary(probe: Probe, findings: Sequence[Finding]) -> str:
    """Return one sentence: what this machine trains on, or why not on its GPU.

    Args:
        probe: the facts.
        findings: what `diagnose` made of them.
    """
    if probe.libraries.get("torch") is None:
        return "This machine cannot train yet: torch is not installed."
    if "torch" in probe.broken:
        return f"This machine cannot train yet: torch cannot be imported ({probe.broken['torch']})."
    about = [finding for finding in findings if finding.subject == "device"]
    worst = next((finding for finding in about if finding.level == "problem"), None)
    gpu = bool(probe.accelerators) or nvidia.is_present(probe) or probe.amd_devices > 0 or _has_apple_gpu(probe)
    if worst and gpu:
        return f"There is a GPU, but torch cannot use it: {worst.message}"
    if worst:
        return f"This machine cannot train yet: {worst.message}"
    if probe.accelerators and probe.settings.get("COOKBOOK_DEVICE", "").strip() != "cpu":
        return f"This machine trains on: {counted(probe.accelerators)}."
    reason = next((finding.message.removeprefix("CPU: ") for finding in about if finding.level == "note"), "no GPU was found.")
    return f"This machine trains on its CPU: {reason}"
