"""What is installed and what torch says of itself; a library that cannot be imported is a fact too (lesson 01)."""

from __future__ import annotations

import importlib
import site
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cookbook.errors import CookbookError
from cookbook.files import cache_directory

LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "safetensors": "safetensors", "onnx": "onnx",
    "onnxscript": "onnxscript", "onnxruntime": "onnxruntime", "torch-pruning": "torch_pruning",
    "matplotlib": "matplotlib", "psutil": "psutil", "rich": "rich", "typer": "typer",
}  # fmt: skip


@dataclass(frozen=True)
class Installation:
    """One installed torch.

    Attributes:
        version: what its metadata says.
        folder: where it lies.
        user_site: that is the user's own folder, which Python searches before an environment's.
    """

    version: str
    folder: str
    user_site: bool = False


def library_facts(libraries: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of `Probe` on installed libraries; it imports each of them.

    Args:
        libraries: module by distribution.
    """
    installed = {name: installed_version(name) for name in libraries}
    broken = {
        name: error
        for name, module in libraries.items()
        if installed[name] is not None and (error := import_error(module))
    }  # fmt: skip
    return {"libraries": installed, "broken": broken, "torch_installations": installations("torch", sys.path)}


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def import_error(module: str) -> str:
    """Return why `module` cannot be imported, empty when it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def installations(distribution: str, path: Sequence[str]) -> tuple[Installation, ...]:
    """Return every installation of `distribution` on `path`, in the order in which Python would find them."""
    users = Path(site.getusersitepackages()).resolve()
    found: dict[Installation, None] = {}  # an ordered set: one folder can be on the path twice
    for entry in metadata.distributions(name=distribution, path=list(path)):
        folder = Path(str(entry.locate_file(""))).resolve()
        found[Installation(entry.version, str(folder), folder == users)] = None
    return tuple(found)


def torch_facts() -> dict[str, Any]:
    """Return the fields of `Probe` that only torch knows; whatever it warns of while it looks for devices becomes a fact."""
    import torch

    names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    refusal = ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
        try:
            capabilities = tuple(torch.cuda.get_device_capability(device) for device in devices)
            names = tuple(torch.cuda.get_device_name(device) for device in devices)
        except RuntimeError as error:  # a GPU that is there and does not let this process in
            refusal = str(error)
    mps = torch.backends.mps
    return {
        "torch_version": str(torch.__version__),
        "torch_folder": str(Path(str(torch.__file__)).resolve().parents[1]),
        "cuda_build": torch.version.cuda,
        "rocm_build": torch.version.hip,
        "architectures": tuple(torch.cuda.get_arch_list()),
        "mps_build": mps.is_built(),
        "accelerators": names or (("Apple GPU (mps)",) if mps.is_available() else ()),
        "capabilities": capabilities,
        "accelerator_error": " ".join(" ".join([*(str(warning.message) for warning in said), refusal]).split()),
        "tf32_products": _uses_tf32(torch.backends.cuda.matmul),
        "tf32_convolutions": _uses_tf32(getattr(torch.backends.cudnn, "conv", None)),
        "threads": torch.get_num_threads(),
        **_house_facts(),
    }


def _uses_tf32(backend: Any) -> bool:
    """Read torch's newer setting: the older one raises when both were used, and a torch that is too old has only that."""
    return getattr(backend, "fp32_precision", "") == "tf32"


def _house_facts() -> dict[str, Any]:
    """Return what the cookbook's own ground floor knows; it refuses to be imported beside a torch that is too old."""
    try:
        from cookbook.environment import current_profile, instruction_sets, processor_name
    except CookbookError as error:
        return {"profile_error": str(error)}
    facts = {
        "processor": processor_name(),
        "instruction_sets": instruction_sets() if Path("/proc/cpuinfo").exists() else None,
    }
    try:
        return {**facts, "profile": current_profile()}
    except CookbookError as error:
        return {**facts, "profile_error": str(error)}


def data_error(installed: Mapping[str, str | None], broken: Mapping[str, str]) -> str:
    """Read the dataset, which verifies its checksums; return what went wrong, empty when nothing did."""
    if any(installed.get(name) is None or name in broken for name in ("torch", "torchvision")):
        return "The dataset cannot be read without torch and torchvision."
    try:
        from cookbook.data import load_fashion_mnist

        load_fashion_mnist()
    except CookbookError as error:
        return str(error)
    except OSError as error:
        return f"The dataset cannot be unpacked into the cache: {error.strerror or error}."
    return ""


def cache_facts() -> dict[str, Any]:
    """Return the fields of `Probe` on the cache folder, and why nothing can be written there."""
    try:
        folder = cache_directory()
        with tempfile.TemporaryFile(dir=folder):
            return {"cache_folder": str(folder), "cache_error": ""}
    except OSError as error:
        return {"cache_folder": str(error.filename or "The cache folder"), "cache_error": str(error.strerror or error)}
