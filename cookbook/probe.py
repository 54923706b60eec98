"""Raw facts about a machine and an installation, gathered without judging them (lesson 01).

Nothing here needs torch to be importable: a broken installation is one of the facts.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from cookbook.errors import CookbookError
from cookbook.files import cache_directory

NVIDIA_PCI_VENDOR = "0x10de"
PCI_DISPLAY_CLASS = "0x03"
LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "safetensors": "safetensors", "onnx": "onnx",
    "onnxscript": "onnxscript", "onnxruntime": "onnxruntime", "torch-pruning": "torch_pruning",
    "matplotlib": "matplotlib", "psutil": "psutil", "rich": "rich", "typer": "typer",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Raw facts about the machine and the installation; the defaults are a healthy machine without a GPU.

    Attributes:
        python: version.
        system: ``Linux``, ``Darwin`` or ``Windows``.
        machine: ``x86_64``, ``arm64``, ….
        processor: model name.
        libraries: version by distribution; None for one that is not installed.
        broken: why an installed library cannot be imported, by distribution.
        cuda_build: CUDA version that torch was built for; None for another build.
        rocm_build: ROCm version that torch was built for.
        accelerators: names of the devices that torch can use.
        accelerator_error: what torch said when it looked for devices, empty if nothing.
        nvidia_driver: a driver is loaded.
        nvidia_devices: NVIDIA GPUs that the driver or the PCI bus shows; None where they cannot be counted.
        cuda_visible_devices: the variable CUDA_VISIBLE_DEVICES.
        device_setting: the variable COOKBOOK_DEVICE.
        threads: that torch uses for one operation.
        processors: logical processors that this process may run on.
        cores: physical cores of the machine; None where they cannot be counted.
        cpu_limit: processors that a container's quota allows; None without one.
        omp_wait_policy: the variable OMP_WAIT_POLICY.
        instruction_sets: as `cookbook.environment.instruction_sets` names them; None where they cannot be read.
        data_error: why the dataset cannot be read; empty when it was read and its checksums are right.
        cache_folder: where files go that can be made again.
        cache_error: why they cannot go there, empty when they can.
        profile: ``quick`` or ``full``.
        profile_error: why the profile cannot be read.
    """

    python: tuple[int, int, int] = (3, 12, 0)
    system: str = "Linux"
    machine: str = "x86_64"
    processor: str = ""
    libraries: dict[str, str | None] = field(default_factory=lambda: {"torch": "2.15.0"})
    broken: dict[str, str] = field(default_factory=dict)
    cuda_build: str | None = None
    rocm_build: str | None = None
    accelerators: tuple[str, ...] = ()
    accelerator_error: str = ""
    nvidia_driver: bool = False
    nvidia_devices: int | None = 0
    cuda_visible_devices: str | None = None
    device_setting: str | None = None
    threads: int = 4
    processors: int = 4
    cores: int | None = 4
    cpu_limit: float | None = None
    omp_wait_policy: str | None = None
    instruction_sets: tuple[str, ...] | None = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
    data_error: str = ""
    cache_folder: str = ""
    cache_error: str = ""
    profile: str = "quick"
    profile_error: str = ""

    @classmethod
    def collect(cls) -> Probe:
        """Look at this machine. It takes some seconds: every library is imported, and the data is verified."""
        installed = {name: _version(name) for name in LIBRARIES}
        broken = {
            name: error
            for name, module in LIBRARIES.items()
            if installed[name] is not None and (error := _import_error(module))
        }
        cache_folder, cache_error = _cache()
        return cls(
            python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
            system=platform.system(),
            machine=platform.machine(),
            libraries=installed,
            broken=broken,
            nvidia_driver=Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
            nvidia_devices=_nvidia_devices(),
            cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            device_setting=os.environ.get("COOKBOOK_DEVICE"),
            processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            cores=psutil.cpu_count(logical=False),
            cpu_limit=cpu_limit(),
            omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
            data_error=_data_error(installed, broken),
            cache_folder=cache_folder,
            cache_error=cache_error,
            **(_torch_facts() if installed["torch"] and "torch" not in broken else {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str:
    """Return why `module` cannot be imported, empty when it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return " ".join(str(error).split())
    return ""


def _torch_facts() -> dict[str, Any]:
    """Return what only torch knows; whatever it warns of while it looks for devices becomes a fact."""
    import torch

    from cookbook.environment import current_profile, instruction_sets, processor_name

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cuda = tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
    facts = {
        "processor": processor_name(),
        "cuda_build": torch.version.cuda,
        "rocm_build": torch.version.hip,
        "accelerators": cuda or (("Apple GPU (mps)",) if torch.backends.mps.is_available() else ()),
        "accelerator_error": " ".join(" ".join(str(warning.message) for warning in said).split()),
        "threads": torch.get_num_threads(),
        "instruction_sets": instruction_sets() if Path("/proc/cpuinfo").exists() else None,
    }
    try:
        return {**facts, "profile": current_profile()}
    except CookbookError as error:
        return {**facts, "profile_error": str(error)}


def _data_error(installed: Mapping[str, str | None], broken: Mapping[str, str]) -> str:
    """Read the dataset, which verifies its checksums; return what went wrong, empty when nothing did."""
    if any(installed[name] is None or name in broken for name in ("torch", "torchvision")):
        return "The dataset cannot be read without torch and torchvision."
    from cookbook.data import load_fashion_mnist

    try:
        load_fashion_mnist()
    except CookbookError as error:
        return str(error)
    except OSError as error:
        return f"The dataset cannot be unpacked into the cache: {error.strerror or error}."
    return ""


def _cache() -> tuple[str, str]:
    """Return the cache folder, and why nothing can be written there."""
    try:
        folder = cache_directory()
        with tempfile.TemporaryFile(dir=folder):
            return str(folder), ""
    except OSError as error:
        return str(error.filename or "The cache folder"), str(error.strerror or error)


def _nvidia_devices() -> int | None:
    """Count NVIDIA GPUs without a library: by the driver's list, else on the PCI bus."""
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return sum(1 for _ in listed.iterdir())
    if shutil.which("nvidia-smi") is not None:  # Windows and its Linux subsystem show neither list nor bus
        return None
    return sum(
        (device / "vendor").read_text().strip() == NVIDIA_PCI_VENDOR
        and (device / "class").read_text().startswith(PCI_DISPLAY_CLASS)
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the processors that a container's quota allows, from the files of cgroup version 2 or 1."""
    version_two, version_one = root / "cpu.max", root / "cpu" / "cpu.cfs_quota_us"
    if version_two.is_file():
        quota, period = version_two.read_text().split()
    elif version_one.is_file():
        quota, period = version_one.read_text().strip(), version_one.with_name("cpu.cfs_period_us").read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
