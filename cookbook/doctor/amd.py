"""Why torch does not use an AMD GPU (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.doctor.finding import Finding, note, problem, reinstall
from cookbook.doctor.nvidia import visible
from cookbook.probe import Probe

# What each hides is told apart in https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html
HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"


def why_unused(probe: Probe) -> Iterator[Finding]:
    """Yield every reason for which torch finds none of the AMD GPUs.

    A torch for ROCm shows that the GPU was to be used; beside any other build, the GPU can be the small one inside
    the processor, which ROCm does not support, so that is a note.
    """
    if probe.rocm_build is None:
        built = f"CUDA {probe.cuda_build}" if probe.cuda_build else "the CPU only"
        yield note(
            "device",
            f"The GPU is AMD's, and this torch was built for {built}, not for ROCm.",
            f"If ROCm supports this GPU, install ROCm's driver and run {reinstall()}.",
        )
        return
    causes = [*_access(probe), *_hidden(probe), *_overridden(probe)]
    said = f" torch says: {probe.accelerator_error}" if probe.accelerator_error else ""
    yield from causes or [
        problem(
            "device",
            f"The AMD GPU is there, but torch, built for ROCm {probe.rocm_build}, finds no device.{said}",
            "Run 'rocminfo': when the GPU is not in its list, ROCm does not support it.",
        )
    ]


def _access(probe: Probe) -> Iterator[Finding]:
    """Yield a device file that is missing or closed."""
    if not probe.amd_driver:
        yield problem(
            "device",
            "There is an AMD GPU, but no driver that computes on it: /dev/kfd is missing.",
            "Run 'sudo modprobe amdgpu'; a container needs 'docker run --device=/dev/kfd --device=/dev/dri'.",
        )
    elif not probe.amd_access:
        yield problem(
            "device",
            "You may not open /dev/kfd, the AMD GPU's device: you are not in its group, 'render' or 'video'.",
            "Run 'sudo usermod -a -G render,video $USER' and log in again; a container needs '--group-add' for them.",
        )


def _hidden(probe: Probe) -> Iterator[Finding]:
    for name in HIDING:
        setting = probe.settings.get(name)
        if setting is not None and not setting.startswith("GPU-") and not visible(setting, probe.amd_devices):
            yield problem("device", f"{name}={setting!r} hides every GPU.", f"Run 'unset {name}', unless you want the CPU.")


def _overridden(probe: Probe) -> Iterator[Finding]:
    if setting := probe.settings.get(OVERRIDE):
        message = f"{OVERRIDE}={setting} makes ROCm take the GPU for another one, which torch then does not find."
        yield problem("device", message, f"Run 'unset {OVERRIDE}'.")


def in_use(probe: Probe) -> Iterator[Finding]:
    """Yield what bears on an AMD GPU that torch does use."""
    if probe.rocm_build and (setting := probe.settings.get(OVERRIDE)):
        yield note(
            "ROCm",
            f"{OVERRIDE}={setting} runs code that was compiled for another GPU: it can fail or compute nonsense.",
            f"Run 'unset {OVERRIDE}'; keep it only for a GPU that ROCm leaves out.",
        )
