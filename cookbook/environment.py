"""The ground under every run: profile, device, seeds and the provenance stamp (lesson 01)."""

from __future__ import annotations

import functools
import os
import platform
import random
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch

from cookbook.errors import UsageError

Profile = Literal["quick", "full"]
T = TypeVar("T")

OLDEST_TORCH = (2, 11)
STAMPED_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")
INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16",
)  # fmt: skip


def require_supported_torch() -> None:
    """Refuse a torch that is older than `OLDEST_TORCH`, the bound in pyproject.toml; called on import.

    An installer enforces the bound, but a checkout on the path or an environment that changed later
    evades it, and then fails at the first missing function. Pre-releases of the bound are accepted.

    Raises:
        UsageError: the installed torch is too old.
    """
    found = tuple(int(part) for part in str(torch.__version__).split(".")[:2])
    if found < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise UsageError(f"torch {torch.__version__} is too old: install {wanted} or newer, or run 'make clean test'.")


require_supported_torch()


def current_profile() -> Profile:
    """Return the profile that ``COOKBOOK_PROFILE`` asks for: ``quick`` (the default) or ``full``.

    ``quick`` runs the whole course in minutes and is never evidence; ``full`` is the evidence.

    Raises:
        UsageError: the variable holds another word.
    """
    word = os.environ.get("COOKBOOK_PROFILE", "quick").strip().lower() or "quick"
    if word not in get_args(Profile):
        raise UsageError(f"COOKBOOK_PROFILE is {word!r}: set it to 'quick' or to 'full'.")
    return "full" if word == "full" else "quick"


def by_profile(*, quick: T, full: T) -> T:
    """Return the value for the current profile: one visible place where the two differ."""
    return full if current_profile() == "full" else quick


def pick_device(preference: str | None = None) -> torch.device:
    """Return the device to run on: an accelerator when one works, else the CPU.

    Args:
        preference: a torch device string such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``. When it is
            missing, the environment variable ``COOKBOOK_DEVICE`` decides, and after it the first
            of CUDA (which includes ROCm builds), MPS and CPU that is available.

    Raises:
        UsageError: the device that was asked for does not exist here.
    """
    asked = preference or os.environ.get("COOKBOOK_DEVICE")
    if not asked:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"{asked!r} is not a device: use 'cpu', 'cuda', 'cuda:N' or 'mps'.") from error
    missing = {
        "cuda": not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }.get(device.type, device.type != "cpu")
    if missing:
        raise UsageError(f"The device {asked!r} is not available here: run 'cookbook doctor' to see why, or use 'cpu'.")
    return device


def seed_everything(seed: int, *, deterministic: bool = True) -> None:
    """Seed Python, NumPy and torch, so that two runs on one machine give identical results.

    Args:
        seed: any integer from 0 to 2**32 - 1.
        deterministic: also ask cuDNN and cuBLAS for deterministic kernels (no effect on a CPU).

    The promise holds for one machine and one number of threads: sums are taken in another order
    with another number of threads (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"The seed {seed} is out of range: use an integer from 0 to 4294967295.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def derive_seed(*path: int) -> int:
    """Return a 63-bit seed for a position such as (seed, epoch, step), independent of its neighbours'.

    NumPy's ``SeedSequence`` guarantees that its output never changes between versions.
    """
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to tell whether two numbers may be compared."""

    profile: str
    device: str
    processor: str
    instruction_sets: tuple[str, ...]
    threads: int
    python: str
    libraries: dict[str, str]  # on a CUDA device also the versions of cuda, cudnn and driver
    commit: str | None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {**asdict(self), "instruction_sets": list(self.instruction_sets)}


def provenance(device: torch.device | str | None = None) -> Provenance:
    """Describe the machine, the libraries and the commit of this run."""
    device = torch.device(device) if device is not None else pick_device()
    return Provenance(
        profile=current_profile(),
        device=describe_device(device),
        processor=processor_name(),
        instruction_sets=instruction_sets(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        libraries={name: metadata.version(name) for name in STAMPED_LIBRARIES} | _cuda_versions(device),
        commit=_commit(),
    )


def stamp(device: torch.device | str | None = None) -> None:
    """Print versions, device and profile: the first output of every lesson."""
    record = provenance(device)
    print(f"profile {record.profile} | {record.device} | {record.threads} threads | Python {record.python}")
    print(" | ".join(f"{name} {version}" for name, version in record.libraries.items()))
    if record.profile == "quick":
        print("Quick profile: the numbers below show how things work; they are not evidence.")


def describe_device(device: torch.device) -> str:
    """Return ``cpu``, or the accelerator's type with its model name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def _cuda_versions(device: torch.device) -> dict[str, str]:
    """Return what a GPU's speed depends on besides the Python packages: CUDA, cuDNN and driver, as far as known."""
    if device.type != "cuda":
        return {}
    versions = {
        "cuda": torch.version.cuda, "rocm": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(), "driver": _nvidia_driver(),
    }  # fmt: skip
    return {name: str(version) for name, version in versions.items() if version}


@functools.cache
def _nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver as its own tool gives it; None where there is no such tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)


@functools.cache
def processor_name() -> str:
    """Return the processor's model name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Return those of `INSTRUCTION_SETS` that this processor reports (empty where none can be read)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            return tuple(name for name in INSTRUCTION_SETS if name in present)
    return ()


@functools.cache
def _commit() -> str | None:
    """Return the checkout's commit, marked when tracked files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
