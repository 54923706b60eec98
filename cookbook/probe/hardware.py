"""Which GPUs the system shows, and through which driver, without any of torch (lesson 01)."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NVIDIA, AMD = "0x10de", "0x1002"  # PCI vendors
PCI_CLASSES = ("0x03", "0x12")  # displays, and accelerators without one
ANSWER_WITHIN = 5.0  # seconds; a GPU that fell off its bus can keep nvidia-smi waiting for ever
SMI_FIELDS = "name,driver_version,compute_cap,compute_mode,mig.mode.current"


@dataclass(frozen=True)
class NvidiaGpu:
    """One line of nvidia-smi.

    Attributes:
        name: the model.
        capability: compute capability, major and minor; None where the driver does not say.
        compute_mode: ``Default``, ``Exclusive_Process`` or ``Prohibited``.
        mig: the GPU is divided into instances.
    """

    name: str
    capability: tuple[int, int] | None = None
    compute_mode: str = "Default"
    mig: bool = False


def nvidia_facts(*, proc: Path = Path("/proc/driver/nvidia"), pci: Path = Path("/sys/bus/pci/devices")) -> dict[str, Any]:
    """Return the fields of `Probe` on NVIDIA's GPUs and driver.

    Args:
        proc: where a loaded driver describes itself.
        pci: where the kernel lists devices.
    """
    program = _nvidia_smi()
    version, gpus, error = _ask_nvidia_smi(program) if program else (None, (), "")
    loaded = proc / "version"
    if loaded.is_file() and (found := re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", loaded.read_text())):
        version = found.group()
    drivers = [driver for vendor, driver in _pci_gpus(pci) if vendor == NVIDIA]
    counted: int | None = len(drivers)
    if gpus:  # before the driver's list, which in some containers names GPUs that they were not given
        counted = len(gpus)
    elif (proc / "gpus").is_dir():
        counted = sum(1 for _ in (proc / "gpus").iterdir())
    elif wsl() or not pci.is_dir():
        counted = None
    return {
        "nvidia_driver": loaded.is_file() or bool(gpus),
        "driver_version": version,
        "nvidia_devices": counted,
        "nvidia_gpus": gpus,
        "nvidia_smi_error": error,
        "nouveau": "nouveau" in drivers,
        "cuda_library": platform.system() != "Linux" or _loadable("libcuda.so.1"),
    }


def _nvidia_smi() -> str | None:
    """Return NVIDIA's program; Windows puts it into every Linux that it hosts, beside the search path."""
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")


def _ask_nvidia_smi(program: str) -> tuple[str | None, tuple[NvidiaGpu, ...], str]:
    """Return the driver's version, its GPUs, and why there is no answer (https://docs.nvidia.com/deploy/nvidia-smi)."""
    answer, error = run([program, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"])
    if error:
        return None, (), error
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == 4]
    if not rows:
        return None, (), _one_line(answer) or "nvidia-smi listed no GPU."
    gpus = (NvidiaGpu(name, _capability(capability), mode, mig == "Enabled") for name, _, capability, mode, mig in rows)
    return rows[0][1], tuple(gpus), ""


def run(command: Sequence[str], *, timeout: float = ANSWER_WITHIN) -> tuple[str, str]:
    """Run a program that only reports; return what it printed, and why it failed (empty when it did not).

    Args:
        command: the program and its arguments.
        timeout: seconds that it may take.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return "", f"{name} did not answer within {timeout:g} seconds."
    except OSError as error:
        return "", f"{name} cannot be started: {error.strerror or error}."
    if done.returncode:
        return "", _one_line(done.stdout + " " + done.stderr) or f"{name} ended with status {done.returncode}."
    return done.stdout, ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _capability(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _pci_gpus(pci: Path) -> list[tuple[str, str]]:
    """Return vendor and kernel driver (empty for none) of each GPU on the bus."""
    return [
        ((device / "vendor").read_text().strip(), (device / "driver").resolve().name if (device / "driver").exists() else "")
        for device in sorted(pci.glob("*"))
        if (device / "class").is_file() and (device / "class").read_text().startswith(PCI_CLASSES)
    ]


def _loadable(library: str) -> bool:
    """Say whether the system finds a shared library; loading the driver's starts nothing on the GPU."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def amd_facts(*, kfd: Path = Path("/dev/kfd"), pci: Path = Path("/sys/bus/pci/devices")) -> dict[str, Any]:
    """Return the fields of `Probe` on AMD's GPUs.

    Args:
        kfd: the device file through which ROCm computes.
        pci: where the kernel lists devices.
    """
    return {
        "amd_devices": sum(vendor == AMD for vendor, _ in _pci_gpus(pci)),
        "amd_driver": kfd.exists(),
        "amd_access": os.access(kfd, os.R_OK | os.W_OK),
    }


def apple_facts() -> dict[str, Any]:
    """Return the fields of `Probe` on macOS: its version, and whether Python is translated from Intel's instructions."""
    if platform.system() != "Darwin":
        return {}
    translated, _ = run(["sysctl", "-n", "sysctl.proc_translated"])
    return {"macos": platform.mac_ver()[0], "rosetta": translated.strip() == "1"}


def wsl(release: Path = Path("/proc/sys/kernel/osrelease")) -> bool:
    """Say whether this Linux runs inside Windows."""
    return release.is_file() and "microsoft" in release.read_text().lower()
