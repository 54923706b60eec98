"""What this process may use of the machine: processors, load, shared memory, settings (lesson 01)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Environment variables that change what torch finds or how fast it runs
SETTINGS = (
    "COOKBOOK_DEVICE", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def settings() -> dict[str, str]:
    """Return those of `SETTINGS` that are set, also to nothing, by name."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def processors() -> int:
    """Return the number of logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int | None:
    """Return the physical cores of the machine; None where they cannot be counted."""
    try:
        import psutil
    except ImportError:  # whose absence is a fact of its own
        return None
    return psutil.cpu_count(logical=False)


def load() -> float | None:
    """Return how many programs wanted a processor on average over the last minute; None where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def shared_memory(folder: Path = Path("/dev/shm")) -> int | None:
    """Return the free bytes of the memory through which processes hand each other tensors; None without such a folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def cpu_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the processors that quotas allow this process; None without a quota.

    Args:
        root: where the control groups are mounted.
        membership: the file that names this process's own groups.

    A quota binds everything below its group, so the smallest on the way up counts. Both versions of control
    groups are read (https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1, ``cpu.cfs_quota_us``).
    """
    return min((limit for group in _groups(root, membership) if (limit := _quota(group)) is not None), default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups, and of those above them."""
    yield root
    yield root / "cpu"
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for mount in (root / "cpu", root / controllers) if controllers else (root,):
            yield from (mount / part for part in (group, *group.parents))


def _quota(group: Path) -> float | None:
    """Return the processors that the quota of one group allows, from the files of version 2 or 1."""
    version_two, version_one = group / "cpu.max", group / "cpu.cfs_quota_us"
    if version_two.is_file():
        quota, period = version_two.read_text().split()
    elif version_one.is_file():
        quota, period = version_one.read_text().strip(), version_one.with_name("cpu.cfs_period_us").read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
