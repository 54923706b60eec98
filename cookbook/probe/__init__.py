"""Raw facts about a machine and an installation, gathered without judging them (lesson 01).

Nothing here needs torch to be importable: a broken installation is one of the facts.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cookbook.probe import hardware, limits, software
from cookbook.probe.hardware import NvidiaGpu
from cookbook.probe.limits import cpu_limit
from cookbook.probe.privacy import redacted
from cookbook.probe.software import LIBRARIES, Installation


@dataclass(frozen=True)
class Probe:
    """Raw facts about the machine and the installation; the defaults are a healthy machine without a GPU.

    Attributes:
        python: version.
        system: ``Linux``, ``Darwin`` or ``Windows``.
        machine: ``x86_64``, ``arm64``, ….
        processor: model name.
        wsl: this Linux runs inside Windows.
        wsl_gpu: Windows passes its GPU on to it.
        macos: version of macOS, empty elsewhere.
        rosetta: Python is built for Intel and translated for Apple's processor.
        settings: environment variables that bear on torch, those that are set, by name.
        libraries: version by distribution; None for one that is not installed.
        broken: why an installed library cannot be imported, by distribution.
        torch_installations: every torch on the search path, in its order.
        torch_version: of the torch that was imported, with its build; empty when none was.
        torch_folder: where that torch lies.
        cuda_build: CUDA version that torch was built for; None for another build.
        rocm_build: ROCm version that torch was built for.
        architectures: GPU code that torch holds: ``sm_90`` is compiled, ``compute_90`` is PTX.
        mps_build: torch was built with support for Apple's GPUs.
        accelerators: names of the devices that torch can use.
        capabilities: their compute capabilities, major and minor.
        accelerator_error: what torch said when it looked for devices, empty if nothing.
        tf32_products: float32 matrix products on a GPU may be computed in TF32.
        tf32_convolutions: float32 convolutions may.
        nvidia_driver: NVIDIA's driver is loaded.
        driver_version: its version; None where nobody says.
        nvidia_devices: NVIDIA GPUs that the driver or the PCI bus shows; None where they cannot be counted.
        nvidia_gpus: what nvidia-smi says of each.
        nvidia_smi_error: why nvidia-smi does not, empty where it does or is not installed.
        nouveau: an NVIDIA GPU is held by the free driver, which knows no CUDA.
        cuda_library: the driver's library libcuda can be loaded.
        amd_devices: AMD GPUs on the PCI bus, those inside a processor included.
        amd_driver: AMD's kernel driver offers computing.
        amd_access: this user may use it.
        threads: that torch uses for one operation.
        processors: logical processors that this process may run on.
        cores: physical cores of the machine; None where they cannot be counted.
        cpu_limit: processors that a container's quota allows; None without one.
        load: programs that wanted a processor, averaged over the minute before; None where nobody counts them.
        shared_memory: free bytes of the memory that processes share; None where it has no folder.
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
    wsl: bool = False
    wsl_gpu: bool = False
    macos: str = ""
    rosetta: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    libraries: dict[str, str | None] = field(default_factory=lambda: {"torch": "2.15.0"})
    broken: dict[str, str] = field(default_factory=dict)
    torch_installations: tuple[Installation, ...] = ()
    torch_version: str = ""
    torch_folder: str = ""
    cuda_build: str | None = None
    rocm_build: str | None = None
    architectures: tuple[str, ...] = ()
    mps_build: bool = False
    accelerators: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    accelerator_error: str = ""
    tf32_products: bool = False
    tf32_convolutions: bool = True
    nvidia_driver: bool = False
    driver_version: str | None = None
    nvidia_devices: int | None = 0
    nvidia_gpus: tuple[NvidiaGpu, ...] = ()
    nvidia_smi_error: str = ""
    nouveau: bool = False
    cuda_library: bool = True
    amd_devices: int = 0
    amd_driver: bool = False
    amd_access: bool = False
    threads: int = 4
    processors: int = 4
    cores: int | None = 4
    cpu_limit: float | None = None
    load: float | None = 0.0
    shared_memory: int | None = 8 * 2**30
    instruction_sets: tuple[str, ...] | None = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
    data_error: str = ""
    cache_folder: str = ""
    cache_error: str = ""
    profile: str = "quick"
    profile_error: str = ""

    @classmethod
    def collect(cls) -> Probe:
        """Look at this machine. It takes some seconds: every library is imported, and the data is verified."""
        load = limits.load()  # before the imports below add to it
        libraries = software.library_facts(LIBRARIES)
        torch_facts: dict[str, Any] = {}
        if libraries["libraries"].get("torch") is not None and "torch" not in libraries["broken"]:
            try:
                torch_facts = software.torch_facts()
            except AttributeError as error:  # half an installation, or a folder that is called torch
                libraries["broken"]["torch"] = str(error)
        return cls(
            python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
            system=platform.system(),
            machine=platform.machine(),
            wsl=hardware.wsl(),
            wsl_gpu=Path("/dev/dxg").exists(),
            settings=limits.settings(),
            processors=limits.processors(),
            cores=limits.cores(),
            cpu_limit=cpu_limit(),
            load=load,
            shared_memory=limits.shared_memory(),
            data_error=software.data_error(libraries["libraries"], libraries["broken"]),
            **libraries,
            **hardware.nvidia_facts(),
            **hardware.amd_facts(),
            **hardware.apple_facts(),
            **software.cache_facts(),
            **torch_facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; home folders and the user's name are taken out of the paths."""
        return redacted(asdict(self))


__all__ = ["LIBRARIES", "Installation", "NvidiaGpu", "Probe", "cpu_limit", "redacted"]
