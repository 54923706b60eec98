"""Which driver runs which CUDA, and which GPU runs which compiled code: NVIDIA's rules as data (lesson 01)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

# The oldest driver branch for each CUDA major version. Within a major version, a driver also runs code that was
# built for a newer minor version ("minor-version compatibility").
# Source: table 2 of NVIDIA's CUDA Toolkit release notes, https://docs.nvidia.com/cuda/cuda-toolkit-release-notes, and
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, as of CUDA 13.3. Linux and Windows.
OLDEST_BRANCH = {11: 450, 12: 525, 13: 580}

# The driver that came with each CUDA version on Linux; from here on nothing is limited. CUDA 13.4 comes without one.
# Source: table 3 of the same release notes, the row of each version's first release.
TOOLKIT_DRIVER = {
    (12, 0): "525.60.13", (12, 1): "530.30.02", (12, 2): "535.54.03", (12, 3): "545.23.06", (12, 4): "550.54.14",
    (12, 5): "555.42.02", (12, 6): "560.28.03", (12, 8): "570.26", (12, 9): "575.51.03",
    (13, 0): "580.65.06", (13, 1): "590.44.01", (13, 2): "595.45.04", (13, 3): "610.43.02",
}  # fmt: skip

# The oldest and the newest GPU for which torch's wheels of a CUDA major version hold code.
# Source: PYTORCH_RELEASES_CODE_CC in torch/cuda/__init__.py of torch 2.15.
WHEELS = {12: ("cu126", (5, 0), (9, 0)), 13: ("cu130", (7, 5), (12, 1))}

Fit = Literal["full", "minor", "too old", "unknown"]


def numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a version such as ``580.65.06`` or ``13.2`` as integers."""
    return tuple(map(int, re.findall(r"\d+", version)))


def driver_fit(driver: str, cuda: str) -> Fit:
    """Say how far a driver runs code that was built for a CUDA version.

    Args:
        driver: version of NVIDIA's driver, such as ``580.65.06``.
        cuda: version that the code was built for, such as ``13.2``.

    Returns:
        ``full``, as new as the driver that came with this CUDA; ``minor``, compiled code runs, PTX of this version
        and what only a newer driver knows do not; ``too old``; ``unknown``, NVIDIA's tables name no such CUDA.
    """
    found, built = numbers(driver), numbers(cuda)[:2]
    if built[0] not in OLDEST_BRANCH or not found:
        return "unknown"
    if found[0] < OLDEST_BRANCH[built[0]]:
        return "too old"
    own = TOOLKIT_DRIVER.get((built[0], built[1] if len(built) > 1 else 0))
    if own is None:
        return "unknown"
    return "full" if found >= numbers(own) else "minor"


def newest_major(driver: str) -> int | None:
    """Return the newest CUDA major version that a driver runs; None when it runs none of them."""
    branch = (numbers(driver) or (0,))[0]
    return max((major for major, oldest in OLDEST_BRANCH.items() if branch >= oldest), default=None)


def code_for(capability: tuple[int, int], architectures: Iterable[str]) -> Literal["binary", "ptx"] | None:
    """Say which of the code in a build a GPU can run; compiled code goes before PTX.

    Args:
        capability: the GPU's compute capability, major and minor.
        architectures: as `torch.cuda.get_arch_list` names them: ``sm_90`` is compiled code, ``compute_90`` PTX.

    Returns:
        ``binary``, compiled code; ``ptx``, code that the driver compiles on first use; None, no code.

    Compiled code runs on its own capability and on later minor ones of the same major version; PTX on its own and
    everything later; with the suffix ``a`` either runs on exactly its capability, with ``f`` within its major version
    (https://docs.nvidia.com/cuda/cuda-programming-guide, section on the CUDA platform). Desktop and data-center GPUs are
    meant: Jetson boards before CUDA 13.2 run only code that was compiled for them.
    """
    kinds = set()
    for architecture in architectures:
        if not (parts := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)):
            continue
        kind, built, suffix = parts[1], (int(parts[2]), int(parts[3])), parts[4]
        same_family = built[0] == capability[0] and built <= capability
        runs = {"a": built == capability, "f": same_family}.get(
            suffix, same_family if kind == "sm" else built <= capability
        )  # fmt: skip
        if runs:
            kinds.add(kind)
    return "binary" if "sm" in kinds else "ptx" if "compute" in kinds else None


def wheel_for(capability: tuple[int, int], driver: str | None) -> str | None:
    """Return the newest of torch's builds that holds code for a GPU and that its driver runs, such as ``cu126``.

    Args:
        capability: the GPU's compute capability.
        driver: version of the driver; None when it is unknown, which excludes nothing.

    None means that no build of a torch that the cookbook supports will do.
    """
    newest = max(WHEELS) if driver is None else newest_major(driver) or 0
    fitting = [tag for major, (tag, first, last) in WHEELS.items() if major <= newest and first <= capability <= last]
    return fitting[-1] if fitting else None
