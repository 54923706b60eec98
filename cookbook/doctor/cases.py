"""Everything that the doctor knows, as constructed machines: one case a cause, and machines that are well (lesson 01).

The tests go through these tables; lesson 01 counts the cases whose cause is named, for claim gpu-01.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cookbook.doctor import diagnose
from cookbook.doctor.finding import Level
from cookbook.probe import Installation, NvidiaGpu, Probe

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
H100 = "NVIDIA H100 80GB HBM3"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch NVML library version: 580.95"

CPU = Probe(cache_folder="~/.cache/optimization-cookbook", settings={"OMP_WAIT_POLICY": "passive"})
GPU = replace(
    CPU, nvidia_driver=True, driver_version="595.45.04", nvidia_devices=1, nvidia_gpus=(NvidiaGpu(H100, (9, 0)),),
    torch_version="2.15.0+cu132", cuda_build="13.2", architectures=ARCHITECTURES, accelerators=(H100,), capabilities=((9, 0),),
)  # fmt: skip
LOST = replace(GPU, accelerators=(), capabilities=())
UNREADABLE = replace(LOST, nvidia_gpus=(), nvidia_smi_error="Unable to determine the device handle for GPU0: GPU is lost.")
ROCM = replace(
    CPU, rocm_build="7.1", amd_devices=1, amd_driver=True, amd_access=True, accelerators=("AMD Instinct MI300X",),
    capabilities=((9, 4),), architectures=("gfx942", "gfx1100"),
)  # fmt: skip
UNFOUND = replace(ROCM, accelerators=(), capabilities=())
MAC = replace(
    CPU, system="Darwin", machine="arm64", macos="15.5", mps_build=True, accelerators=("Apple GPU (mps)",),
    shared_memory=None, instruction_sets=None,
)  # fmt: skip
MAC_CPU = replace(MAC, accelerators=())
WSL = replace(GPU, wsl=True, wsl_gpu=True, driver_version="595.79")


@dataclass(frozen=True)
class Case:
    """One cause on one constructed machine.

    Attributes:
        name: the cause in a few words.
        probe: the facts that it leaves behind.
        level: how bad it is.
        subject: of the finding that names it.
        words: all occur in that finding's message.
        remedy: occurs in its remedy.
    """

    name: str
    probe: Probe
    level: Level
    subject: str
    words: tuple[str, ...]
    remedy: str

    def diagnosed(self) -> bool:
        """Say whether the doctor names this cause and its remedy, and no problem besides."""
        findings = diagnose(self.probe)
        named = [
            finding
            for finding in findings
            if (finding.level, finding.subject) == (self.level, self.subject)
            and all(word in finding.message for word in self.words)
            and self.remedy in finding.remedy
        ]
        misleading = [finding for finding in findings if finding.level == "problem" and finding not in named]
        return len(named) == 1 and not misleading


def with_settings(machine: Probe, **settings: str) -> Probe:
    """Return `machine` with environment variables set."""
    return replace(machine, settings={**machine.settings, **settings})


def healthy_machines() -> dict[str, Probe]:
    """Return machines of which the doctor has nothing to say but that they are well, by name."""
    return {
        "CPU only": CPU,
        "CPU only, torch built for CUDA": replace(CPU, cuda_build="13.2", architectures=ARCHITECTURES),
        "H100": GPU,
        "H100, driver of the same major version": replace(GPU, driver_version="580.65.06"),
        "H100, older driver with the package for forward compatibility": replace(GPU, driver_version="570.26"),
        "eight H100": replace(
            GPU, nvidia_devices=8, nvidia_gpus=GPU.nvidia_gpus * 8, accelerators=(H100,) * 8, capabilities=((9, 0),) * 8
        ),
        "RTX 4090 in Windows": replace(
            GPU, system="Windows", machine="AMD64", driver_version="596.36", accelerators=("RTX 4090",),
            capabilities=((8, 9),), shared_memory=None, instruction_sets=None, load=None,
        ),
        "RTX 4090 in WSL": replace(WSL, accelerators=("RTX 4090",), capabilities=((8, 9),)),
        "Mac with MPS": MAC,
        "Mac with an Intel processor": replace(MAC_CPU, machine="x86_64", mps_build=False),
        "ROCm": ROCM,
        "container with a quota that its threads keep": replace(CPU, processors=64, cores=32, cpu_limit=3.5),
    }  # fmt: skip


def constructed_cases() -> list[Case]:
    """Return one case a cause, in the order of a repair."""
    return [
        *(Case(*row) for row in _installation()),
        *(Case(row[0], row[1], "problem", "device", *row[2:]) for row in _unused_gpu()),
        *(Case(*row) for row in _other_device_findings()),
        *(Case(*row) for row in _processor()),
    ]


def _libraries(**versions: str | None) -> dict[str, str | None]:
    return {"torch": "2.15.0", **versions}


def _twice(first: str, second: str, user_site: bool = False) -> Probe:
    installations = (Installation("2.12.0", first, user_site), Installation("2.15.0", second))
    return replace(CPU, torch_installations=installations)


def _installation() -> list[tuple[Any, ...]]:
    other_index = {"torchvision": "operator torchvision::nms does not exist"}
    return [
        ("old Python", replace(CPU, python=(3, 10, 9)), "problem", "Python", ("3.10.9", "too old"), "make clean test"),
        ("library missing", replace(CPU, libraries=_libraries(onnx=None)),
         "problem", "libraries", ("installed: onnx",), "pip install"),
        ("torch missing", replace(CPU, libraries=_libraries(torch=None)),
         "problem", "libraries", ("installed: torch",), "pip install"),
        ("torch broken", replace(CPU, broken={"torch": "libcudnn.so.9: no such file"}),
         "problem", "torch", ("libcudnn",), "reinstall"),
        ("wheels of two indexes", replace(CPU, libraries=_libraries(torchvision="0.29.2"), broken=other_index),
         "problem", "torchvision", ("torchvision::nms",), "one command"),
        ("old torch", replace(CPU, libraries={"torch": "2.9.1"}), "problem", "torch", ("2.9.1", "too old"), "--upgrade torch"),
        ("another torch first on the path", replace(CPU, torch_version="2.12.0+cpu", torch_folder="~/src/pytorch"),
         "problem", "torch", ("2.12.0+cpu in ~/src/pytorch", "2.15.0 is installed"), "unset PYTHONPATH"),
        ("user folder hides the environment", _twice("~/.local", "env", True),
         "problem", "torch", ("user folder hides",), "PYTHONNOUSERSITE=1"),
        ("torch over torch", _twice("env", "env"), "problem", "torch", ("over each other", "2.12.0"), "uninstall -y torch"),
        ("two environments on the path", _twice("env", "system"),
         "note", "torch", ("2 times", "first is used"), "fresh environment"),
        ("data missing", replace(CPU, data_error="x.gz is missing: restore it."), "problem", "data", ("x.gz is missing",), ""),
        ("cache closed", replace(CPU, cache_error="Permission denied"),
         "problem", "cache", ("Permission denied",), "COOKBOOK_CACHE"),
        ("profile misspelled", replace(CPU, profile_error="COOKBOOK_PROFILE is 'fast'"), "problem", "profile", ("'fast'",), ""),
    ]  # fmt: skip


def _unused_gpu() -> list[tuple[Any, ...]]:
    old = replace(LOST, nvidia_gpus=(NvidiaGpu("GTX 1080", (6, 1)),))
    new = replace(GPU, accelerators=("RTX 5090",), capabilities=((12, 0),))
    return [
        ("wheel without CUDA", replace(LOST, cuda_build=None), ("NVIDIA's", "for the CPU only"), "--torch-backend=auto"),
        ("wheel for ROCm", replace(LOST, cuda_build=None, rocm_build="7.1"), ("for ROCm 7.1",), "--torch-backend=auto"),
        ("no driver", replace(LOST, nvidia_driver=False), ("no driver",), "docker run --gpus all"),
        ("no driver in Windows", replace(UNREADABLE, nvidia_driver=False, nvidia_devices=None, system="Windows"),
         ("no driver",), "nvidia.com"),
        ("nouveau", replace(LOST, nvidia_driver=False, nouveau=True), ("nouveau",), "ubuntu-drivers install"),
        ("driver and library of two versions", replace(UNREADABLE, nvidia_smi_error=MISMATCH),
         ("different versions", "595.45.04"), "sudo reboot"),
        ("error 803", replace(LOST, accelerator_error="system has unsupported display driver / cuda driver combination (803)"),
         ("different versions",), "sudo reboot"),
        ("container without the driver's library", replace(LOST, cuda_library=False),
         ("libcuda.so.1",), "docker run --gpus all"),
        ("driver too old for CUDA 13", replace(LOST, driver_version="570.26"),
         ("570.26 is too old", "CUDA 13.2", "580"), "backend=cu126"),
        ("driver too old for CUDA 12", replace(LOST, cuda_build="12.6", architectures=("sm_90",), driver_version="470.82.01"),
         ("470.82.01 is too old", "CUDA 12.6", "525"), "525 or newer"),
        ("driver too old in Windows's Linux", replace(LOST, wsl=True, driver_version="572.61"),
         ("572.61 is too old",), "in Windows"),
        ("GPU does not answer", UNREADABLE, ("does not answer", "GPU is lost"), "dmesg"),
        ("Windows passes no NVIDIA GPU on", replace(UNREADABLE, nvidia_driver=False, nvidia_devices=None, wsl=True),
         ("Windows",), "wsl --update"),
        ("hidden by an empty setting", with_settings(LOST, CUDA_VISIBLE_DEVICES=""),
         ("hides every GPU",), "unset CUDA_VISIBLE_DEVICES"),
        ("hidden by -1", with_settings(LOST, CUDA_VISIBLE_DEVICES="-1"),
         ("'-1' hides every GPU",), "unset CUDA_VISIBLE_DEVICES"),
        ("hidden by a number too large", with_settings(LOST, CUDA_VISIBLE_DEVICES="1"),
         ("'1' hides every", "has GPU 0"), "unset CUDA"),
        ("hidden by a scheduler", with_settings(LOST, CUDA_VISIBLE_DEVICES="NoDevFiles"), ("NoDevFiles",), "unset CUDA"),
        ("named GPU is gone", with_settings(LOST, CUDA_VISIBLE_DEVICES="GPU-0a1b"), ("GPU-0a1b",), "nvidia-smi -L"),
        ("mode prohibited", replace(LOST, nvidia_gpus=(NvidiaGpu(H100, (9, 0), "Prohibited"),)),
         ("'Prohibited'",), "nvidia-smi -c DEFAULT"),
        ("taken by another process", replace(LOST, nvidia_gpus=(NvidiaGpu(H100, (9, 0), "Exclusive_Process"),)),
         ("one process",), "nvidia-smi"),
        ("divided, no instance", replace(LOST, nvidia_gpus=(NvidiaGpu(H100, (9, 0), mig=True),)), ("MIG",), "nvidia-smi -L"),
        ("no reason in sight", replace(LOST, accelerator_error="CUDA unknown error"),
         ("finds no device", "unknown error"), "nvidia-modprobe"),
        ("GPU too old for the wheel", replace(GPU, accelerators=("GTX 1080",), capabilities=((6, 1),)),
         ("GTX 1080", "6.1", "no code"), "cu126"),
        ("GPU too old for the wheel, unused", old, ("GTX 1080", "6.1", "no code"), "cu126"),
        ("GPU too new for the wheel", replace(new, cuda_build="12.6", architectures=("sm_80", "sm_90")),
         ("RTX 5090", "12.0", "no code"), "cu130"),
        ("GPU too old for every wheel", replace(GPU, accelerators=("Tesla K80",), capabilities=((3, 7),)),
         ("3.7",), "Use the CPU"),
        ("PTX newer than the driver", replace(GPU, architectures=("compute_80",), driver_version="580.65.06"),
         ("PTX",), "595.45.04 or newer"),
        ("device that does not exist", with_settings(CPU, COOKBOOK_DEVICE="cuda"), ("'cuda'",), "unset COOKBOOK_DEVICE"),
        ("device number too large", with_settings(GPU, COOKBOOK_DEVICE="cuda:1"), ("'cuda:1'",), "unset COOKBOOK_DEVICE"),
        ("device misspelled", with_settings(GPU, COOKBOOK_DEVICE="gpu"), ("'gpu'",), "unset COOKBOOK_DEVICE"),
        ("ROCm without its driver", replace(UNFOUND, amd_driver=False, amd_access=False),
         ("/dev/kfd is missing",), "modprobe amdgpu"),
        ("not in the group render", replace(UNFOUND, amd_access=False), ("/dev/kfd", "group"), "usermod -a -G render,video"),
        ("hidden from HIP", with_settings(UNFOUND, HIP_VISIBLE_DEVICES="-1"), ("HIP_VISIBLE_DEVICES",), "unset HIP_VISIBLE"),
        ("hidden from ROCr", with_settings(UNFOUND, ROCR_VISIBLE_DEVICES="1"), ("ROCR_VISIBLE_DEVICES",), "unset ROCR_VISIBLE"),
        ("taken for another AMD GPU", with_settings(UNFOUND, HSA_OVERRIDE_GFX_VERSION="9.0.0"),
         ("9.0.0",), "unset HSA_OVERRIDE"),
        ("not in ROCm's list", UNFOUND, ("ROCm 7.1, finds no device",), "rocminfo"),
        ("Python under Rosetta", replace(MAC_CPU, machine="x86_64", rosetta=True, mps_build=False),
         ("Rosetta",), "brew install python"),
        ("torch without MPS", replace(MAC_CPU, mps_build=False),
         ("without support for Apple's GPU",), "--force-reinstall torch"),
        ("macOS too old", replace(MAC_CPU, macos="13.6.7"), ("macOS 13.6.7 is too old", "14"), "softwareupdate"),
    ]  # fmt: skip


def _other_device_findings() -> list[tuple[Any, ...]]:
    return [
        ("some GPUs hidden", with_settings(replace(GPU, nvidia_devices=2), CUDA_VISIBLE_DEVICES="0"),
         "note", "device", ("1 of 2",), "unset CUDA"),
        ("list ends at a number too large", with_settings(replace(GPU, nvidia_devices=2), CUDA_VISIBLE_DEVICES="0,7,1"),
         "note", "device", ("0,7,1 shows 1 of 2",), "unset CUDA"),
        ("CPU asked for", with_settings(GPU, COOKBOOK_DEVICE="cpu"),
         "note", "device", ("'cpu'", f"unused: {H100}"), "unset COOKBOOK_DEVICE"),
        ("CPU asked for beside a GPU that is hidden", with_settings(LOST, COOKBOOK_DEVICE="cpu", CUDA_VISIBLE_DEVICES=""),
         "note", "device", ("hides every GPU",), "unset CUDA_VISIBLE_DEVICES"),
        ("second GPU without code",
         replace(GPU, accelerators=(H100, "GT 1030"), capabilities=((9, 0), (6, 1)), nvidia_devices=2),
         "note", "device", ("GT 1030", "no code"), "cu126"),
        ("AMD GPU, wheel for CUDA", replace(CPU, amd_devices=1, amd_driver=True, amd_access=True, cuda_build="13.2"),
         "note", "device", ("AMD's", "CUDA 13.2"), "ROCm"),
        ("AMD GPU, wheel for the CPU", replace(CPU, amd_devices=1), "note", "device", ("AMD's", "the CPU only"), "ROCm"),
        ("AMD GPU taken for another", with_settings(ROCM, HSA_OVERRIDE_GFX_VERSION="10.3.0"),
         "note", "ROCm", ("10.3.0",), "unset HSA"),
        ("Mac without a GPU", MAC_CPU, "note", "device", ("virtual machines",), "system_profiler"),
        ("Windows passes no GPU on", replace(CPU, wsl=True, nvidia_devices=None), "note", "device", ("WSL",), "wsl --update"),
        ("one process at a time", replace(GPU, nvidia_gpus=(NvidiaGpu(H100, (9, 0), "Exclusive_Process"),)),
         "note", "sharing", ("one process",), "nvidia-smi -c DEFAULT"),
        ("one instance of a GPU", replace(GPU, nvidia_gpus=(NvidiaGpu(H100, (9, 0), mig=True),)),
         "note", "sharing", ("MIG",), ""),
        ("TF32 overruled", with_settings(GPU, NVIDIA_TF32_OVERRIDE="1"),
         "problem", "TF32", ("NVIDIA_TF32_OVERRIDE=1",), "unset NVIDIA_TF32"),
        ("TF32 on", replace(GPU, tf32_products=True), "note", "TF32", ("on for float32",), "'highest'"),
        ("TF32 on from the start", with_settings(replace(GPU, tf32_products=True), TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1"),
         "note", "TF32", ("on for float32",), "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    ]  # fmt: skip


def _processor() -> list[tuple[Any, ...]]:
    spinning, busy = replace(CPU, settings={}), replace(CPU, load=3.0)
    docker = replace(CPU, shared_memory=64 * 2**20)
    return [
        ("more threads than processors", replace(CPU, threads=8),
         "problem", "threads", ("wait for each other",), "OMP_NUM_THREADS=4"),
        ("more threads than the quota", replace(CPU, processors=64, threads=32, cpu_limit=2.0),
         "problem", "threads", ("limited to 2",), "OMP_NUM_THREADS=2"),
        ("idle cores", replace(CPU, threads=2, processors=16, cores=8), "note", "threads", ("idle",), "OMP_NUM_THREADS=8"),
        ("busy machine", busy, "note", "load", ("3.0 processors",), "top"),
        ("spinning on a busy machine", replace(busy, settings={}),
         "note", "waiting", ("others want",), "export OMP_WAIT_POLICY=passive"),
        ("spinning", spinning, "note", "waiting", ("spin",), "export OMP_WAIT_POLICY=passive"),
        ("spinning on purpose", with_settings(spinning, OMP_WAIT_POLICY="ACTIVE"),
         "note", "waiting", ("spin",), "OMP_WAIT_POLICY=passive"),
        ("little shared memory", docker, "note", "workers", ("64 MiB", "bus error"), "--shm-size=2g"),
        ("no VNNI", replace(CPU, instruction_sets=("avx2", "avx512_bf16")), "note", "int8", ("VNNI",), "accuracy"),
        ("no BF16", replace(CPU, instruction_sets=("avx2", "avx_vnni")), "note", "bf16", ("bfloat16",), ""),
        ("no AVX2", replace(CPU, instruction_sets=()), "note", "AVX2", ("oldest processors",), ""),
        ("torch held back", with_settings(CPU, ATEN_CPU_CAPABILITY="default"),
         "note", "instructions", ("ATEN_CPU_CAPABILITY=default",), "unset ATEN"),
        ("oneDNN held back", with_settings(CPU, ONEDNN_MAX_CPU_ISA="AVX2"), "note", "instructions", ("AVX2",), "unset ONEDNN"),
    ]  # fmt: skip
