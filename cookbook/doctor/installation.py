"""Python, the libraries, several torches in each other's way, data, cache and profile (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.doctor.compatibility import numbers
from cookbook.doctor.finding import Finding, fine, note, problem
from cookbook.probe import Probe

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)


def judge(probe: Probe) -> Iterator[Finding]:
    """Yield the findings on Python and on the libraries."""
    version = ".".join(map(str, probe.python))
    if probe.python[:2] < OLDEST_PYTHON:
        yield problem("Python", f"{version} is too old.", "Install Python 3.11 or newer and run 'make clean test'.")
    else:
        yield fine("Python", f"{version} on {probe.system}, {probe.processor or probe.machine}")
    faults = [*_missing(probe), *_broken(probe), *_torch_version(probe), *_several(probe)]
    yield from faults
    if all(fault.level != "problem" for fault in faults):
        yield fine("libraries", ", ".join(f"{name} {version}" for name, version in probe.libraries.items()))


def _missing(probe: Probe) -> Iterator[Finding]:
    missing = [name for name, version in probe.libraries.items() if version is None]
    if missing:
        remedy = "Run 'python -m pip install -e .' in the checkout."
        yield problem("libraries", f"Not installed: {', '.join(missing)}.", remedy)


def _broken(probe: Probe) -> Iterator[Finding]:
    for name, reason in probe.broken.items():
        remedy = f"Run 'python -m pip install --force-reinstall {name}' with the version that requirements.lock names."
        if "torchvision::nms" in reason:
            remedy = (
                "torch and torchvision come from different indexes: install both from the same one, in one command: "
                "'python -m pip install --force-reinstall torch torchvision'."
            )
        yield problem(name, f"{probe.libraries[name]} is installed but cannot be imported: {reason}", remedy)


def _torch_version(probe: Probe) -> Iterator[Finding]:
    """Yield a torch that is too old, or that is another one than the installed."""
    installed = probe.libraries.get("torch")
    if installed is None:
        return
    found = probe.torch_version or installed
    if numbers(found)[:2] < OLDEST_TORCH:
        remedy = "Run 'python -m pip install --upgrade torch torchvision'."
        yield problem("torch", f"{found} is too old; the cookbook needs 2.11 or newer.", remedy)
    if found.split("+")[0] != installed.split("+")[0]:
        yield problem(
            "torch",
            f"'import torch' finds {found} in {probe.torch_folder}, although {installed} is installed.",
            "Start Python elsewhere, or run 'unset PYTHONPATH', so that the installed torch is found first.",
        )


def _several(probe: Probe) -> Iterator[Finding]:
    """Yield what follows from more than one torch on the search path, whose first is the one that is imported."""
    found = probe.torch_installations
    if len(found) < 2:
        return
    listed = "; ".join(f"{torch.version} in {torch.folder}" for torch in found)
    folders = [torch.folder for torch in found]
    if len(set(folders)) < len(folders):
        yield problem(
            "torch",
            f"Several versions of torch were installed over each other: {listed}.",
            "Run 'python -m pip uninstall -y torch' until it finds none, then 'python -m pip install torch torchvision'.",
        )
    elif found[0].user_site:
        yield problem(
            "torch",
            f"The torch in your user folder hides the environment's: {listed}.",
            "Run 'export PYTHONNOUSERSITE=1', or remove the first with 'python -m pip uninstall torch torchvision'.",
        )
    else:
        yield note(
            "torch",
            f"torch is installed {len(found)} times, and the first is used: {listed}.",
            "Work in a fresh environment ('python -m venv') when another one was meant.",
        )


def judge_folders(probe: Probe) -> Iterator[Finding]:
    """Yield the findings on data, cache and profile."""
    if probe.data_error:
        yield problem("data", probe.data_error)
    else:
        yield fine("data", "Fashion-MNIST is there and its checksums are right.")
    if probe.cache_error:
        remedy = "Set COOKBOOK_CACHE to a folder that you may write to."
        yield problem("cache", f"{probe.cache_folder} cannot be written to: {probe.cache_error}", remedy)
    else:
        yield fine("cache", probe.cache_folder)
    if probe.profile_error:
        yield problem("profile", probe.profile_error)
    else:
        meaning = "evidence; it takes hours" if probe.profile == "full" else "shows how things work; not evidence"
        yield fine("profile", f"{probe.profile} ({meaning})")
