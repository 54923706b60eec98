"""Why torch does not use an Apple GPU (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.doctor.compatibility import numbers
from cookbook.doctor.finding import Finding, note, problem
from cookbook.probe import Probe

OLDEST_MACOS = (14,)  # for torch 2.11 and newer: https://developer.apple.com/metal/pytorch


def why_unused(probe: Probe) -> Iterator[Finding]:
    """Yield every reason for which torch does not find the GPU of a Mac with Apple's processor."""
    if probe.rosetta:
        yield problem(
            "device",
            "This Python was built for Intel and runs translated (Rosetta), without access to Apple's GPU.",
            "Install Python for arm64, for example with 'brew install python', and run 'make clean test' with it.",
        )
        return
    if not probe.mps_build:
        yield problem(
            "device",
            "This torch was built without support for Apple's GPU (MPS).",
            "Run 'python -m pip install --force-reinstall torch torchvision'.",
        )
    if probe.macos and numbers(probe.macos) < OLDEST_MACOS:
        yield problem(
            "device",
            f"macOS {probe.macos} is too old: torch needs macOS {OLDEST_MACOS[0]} to use Apple's GPU (MPS).",
            "Run 'softwareupdate --list' and install a newer macOS.",
        )
    elif probe.mps_build:
        yield note(
            "device",
            "torch supports Apple's GPU (MPS) and finds none, as in most virtual machines.",
            "Run 'system_profiler SPDisplaysDataType': a usable GPU is listed with Metal.",
        )
