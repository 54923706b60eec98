"""The doctor: what this machine can do, what keeps it from doing more, and the remedy (lesson 01).

`Probe.collect` gathers facts and judges nothing; `diagnose` judges and touches nothing, so that
each cause can be tested on a machine that does not have it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cookbook.probe import Probe

Level = Literal["ok", "note", "problem"]

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)


@dataclass(frozen=True)
class Finding:
    """One sentence on one subject, with what to do about it.

    Attributes:
        level: ``ok``; ``note``, worth knowing; ``problem``, in the way of a correct or fast run.
        subject: one word or two.
        message: what was found.
        remedy: what to do; empty where nothing is needed.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""


def diagnose(probe: Probe | None = None) -> list[Finding]:
    """Judge the facts of `probe`, or of this machine; the order is that of a repair."""
    probe = probe or Probe.collect()
    findings = [_python(probe), *_libraries(probe)]
    if probe.libraries.get("torch") and "torch" not in probe.broken:
        findings += [_accelerator(probe), *_threads(probe), *_instruction_sets(probe)]
    return [*findings, _data(probe), _cache_finding(probe), _profile(probe)]


def _python(probe: Probe) -> Finding:
    version = ".".join(map(str, probe.python))
    if probe.python[:2] < OLDEST_PYTHON:
        return Finding("problem", "Python", f"{version} is too old.", "Install Python 3.11 or newer and run 'make' again.")
    return Finding("ok", "Python", f"{version} on {probe.system}, {probe.processor or probe.machine}")


def _libraries(probe: Probe) -> list[Finding]:
    findings = []
    missing = [name for name, version in probe.libraries.items() if version is None]
    if missing:
        findings.append(
            Finding("problem", "libraries", f"Not installed: {', '.join(missing)}.", "Run 'pip install -e .' in the checkout.")
        )
    for name, reason in probe.broken.items():
        remedy = f"Reinstall {name} in the version that requirements.lock names."
        if "torchvision::nms" in reason:
            remedy = "torch and torchvision come from different indexes: install both from the same one, in one command."
        findings.append(
            Finding("problem", name, f"{probe.libraries[name]} is installed but cannot be imported: {reason}", remedy)
        )
    torch = probe.libraries.get("torch")
    if torch is not None and _numbers(torch) < OLDEST_TORCH:
        findings.append(
            Finding(
                "problem", "torch", f"{torch} is too old.", "Install torch 2.11 or newer with the torchvision that fits it."
            )
        )
    if not findings:
        versions = ", ".join(f"{name} {version}" for name, version in probe.libraries.items())
        findings.append(Finding("ok", "libraries", versions))
    return findings


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor of a version such as ``2.15.0+cu130``."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _accelerator(probe: Probe) -> Finding:
    """Say which device torch uses, and when it is the CPU although there is a GPU, why."""
    hidden = probe.cuda_visible_devices is not None and probe.cuda_visible_devices.split(",")[0].strip() in ("", "-1")
    if probe.accelerators:
        devices = ", ".join(probe.accelerators)
        if probe.device_setting == "cpu":
            return Finding(
                "note", "device", f"COOKBOOK_DEVICE is 'cpu'; unused: {devices}.", "Unset COOKBOOK_DEVICE to use it."
            )
        if probe.cuda_visible_devices is not None and len(probe.accelerators) < (probe.nvidia_devices or 0):
            return Finding(
                "note", "device", f"{devices}; CUDA_VISIBLE_DEVICES={probe.cuda_visible_devices} hides "
                f"some of {probe.nvidia_devices} GPUs.",
                "Unset CUDA_VISIBLE_DEVICES to see them all.",
            )  # fmt: skip
        return Finding("ok", "device", devices)
    present = probe.nvidia_driver if probe.nvidia_devices is None else probe.nvidia_devices > 0
    if not present:
        if probe.device_setting not in (None, "", "cpu"):
            return Finding(
                "problem", "device", f"COOKBOOK_DEVICE is {probe.device_setting!r}, and there is no such device.",
                "Unset COOKBOOK_DEVICE, or set it to 'cpu'.",
            )  # fmt: skip
        build = f", torch built for CUDA {probe.cuda_build}" if probe.cuda_build else ""
        return Finding("ok", "device", f"CPU: no GPU found{build}; every lesson runs, recorded results stand in for a GPU's.")
    if not probe.nvidia_driver:
        return Finding(
            "problem", "device", "There is an NVIDIA GPU, but no driver for it.",
            "Install NVIDIA's driver; in a container, start it with the GPU passed on (docker run --gpus all).",
        )  # fmt: skip
    if probe.cuda_build is None:
        kind = f"for ROCm {probe.rocm_build}" if probe.rocm_build else "for the CPU only"
        return Finding(
            "problem", "device", f"There is an NVIDIA GPU, but this torch was built {kind}.",
            "Install a CUDA build of torch and torchvision, both in one command (see pytorch.org, 'Get started').",
        )  # fmt: skip
    if hidden:
        return Finding(
            "problem", "device", f"CUDA_VISIBLE_DEVICES={probe.cuda_visible_devices!r} hides every GPU.",
            "Unset CUDA_VISIBLE_DEVICES, unless you want the CPU.",
        )  # fmt: skip
    said = f" (torch says: {probe.accelerator_error})" if probe.accelerator_error else ""
    return Finding(
        "problem", "device", f"GPU and driver are there, but torch, built for CUDA {probe.cuda_build}, finds no device{said}.",
        "Compare 'nvidia-smi' with that CUDA version: update the driver, or install a torch for an older CUDA.",
    )  # fmt: skip


def _threads(probe: Probe) -> list[Finding]:
    """Compare threads with the processors that this process may really use."""
    usable = probe.processors if probe.cpu_limit is None else min(probe.processors, max(1, math.ceil(probe.cpu_limit)))
    limit = "" if probe.cpu_limit is None else f", limited to {probe.cpu_limit:g} by the container"
    facts = f"torch threads: {probe.threads}; processors: {probe.processors}{limit}"
    findings = [Finding("ok", "threads", facts)]
    if probe.threads > usable:
        findings = [Finding("problem", "threads", f"{facts}: they wait for each other.", f"Set OMP_NUM_THREADS={usable}.")]
    elif probe.threads < min(usable, probe.cores or usable) / 2:
        better = min(usable, probe.cores or usable)
        findings = [
            Finding("note", "threads", f"{facts}: most cores are idle.", f"Set OMP_NUM_THREADS={better} to train faster.")
        ]
    policy = (probe.omp_wait_policy or "").lower()
    if policy != "passive" and probe.threads > 1:
        findings.append(
            Finding(
                "note",
                "waiting",
                "Idle threads spin; with other programs on the cores that can make two threads slower than one.",
                "Set OMP_WAIT_POLICY=passive on a machine that you share.",
            )
        )
    return findings


def _instruction_sets(probe: Probe) -> list[Finding]:
    if probe.instruction_sets is None:
        return [Finding("note", "instructions", "The processor's instruction sets cannot be read here.")]
    present = set(probe.instruction_sets)
    findings = []
    if not present & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"}:
        findings.append(
            Finding(
                "note",
                "int8",
                "No 8-bit dot product (VNNI): int8 gains little speed, and sums of U8 times S8 can saturate.",
                "Check an int8 model's accuracy on this machine.",
            )
        )
    if not present & {"avx512_bf16", "amx_bf16", "bf16"}:
        findings.append(
            Finding("note", "bf16", "No bfloat16 arithmetic: bf16 runs, but not faster than fp32 on this processor.")
        )
    return findings or [Finding("ok", "instructions", ", ".join(probe.instruction_sets))]


def _data(probe: Probe) -> Finding:
    if probe.data_error:
        return Finding("problem", "data", probe.data_error)
    return Finding("ok", "data", "Fashion-MNIST is there and its checksums are right.")


def _cache_finding(probe: Probe) -> Finding:
    if probe.cache_error:
        remedy = "Set COOKBOOK_CACHE to a folder that you may write to."
        return Finding("problem", "cache", f"{probe.cache_folder} cannot be written to: {probe.cache_error}", remedy)
    return Finding("ok", "cache", probe.cache_folder)


def _profile(probe: Probe) -> Finding:
    if probe.profile_error:
        return Finding("problem", "profile", probe.profile_error)
    meaning = "evidence; it takes hours" if probe.profile == "full" else "shows how things work; not evidence"
    return Finding("ok", "profile", f"{probe.profile} ({meaning})")


__all__ = ["Finding", "Level", "Probe", "diagnose"]
