"""NVIDIA's rules, against pairs that are known, against order, and against sets written out device by device."""

from __future__ import annotations

from itertools import combinations

import pytest

from cookbook.doctor.compatibility import (
    OLDEST_BRANCH,
    TOOLKIT_DRIVER,
    WHEELS,
    code_for,
    driver_fit,
    newest_major,
    numbers,
    wheel_for,
)
from cookbook.doctor.nvidia import visible

RANK = {"too old": 0, "minor": 1, "full": 2}
DRIVERS = [f"{branch}.{minor:02d}.01" for branch in range(430, 640, 5) for minor in (0, 26, 65, 99)]


@pytest.mark.parametrize(
    ("driver", "cuda", "fit"),
    [
        ("580.65.06", "13.0", "full"), ("580.65.05", "13.0", "minor"), ("579.99", "13.0", "too old"),
        ("580.126.09", "13.2", "minor"), ("595.45.04", "13.2", "full"), ("610.43.02", "13.2", "full"),
        ("570.26", "13.2", "too old"), ("550.54.14", "12.6", "minor"), ("560.28.03", "12.6", "full"),
        ("525.60.13", "12.0", "full"), ("525.60.13", "12.9", "minor"), ("520.61.05", "12.0", "too old"),
        ("610.43.02", "12.8", "full"), ("470.82.01", "11.8", "unknown"), ("595.45.04", "14.0", "unknown"),
        ("610.43.02", "13.4", "unknown"), ("570.26", "13.4", "too old"), ("", "13.2", "unknown"), ("580.65.06", "13", "full"),
    ],
)  # fmt: skip
def test_known_pairs_of_driver_and_cuda(driver: str, cuda: str, fit: str) -> None:
    assert driver_fit(driver, cuda) == fit


def test_a_newer_driver_never_fits_worse_and_a_newer_cuda_never_better() -> None:
    for major, minor in TOOLKIT_DRIVER:
        fits = [RANK[driver_fit(driver, f"{major}.{minor}")] for driver in DRIVERS]
        assert fits == sorted(fits) and set(fits) == {0, 1, 2}
    for driver in DRIVERS:
        fits = [RANK[driver_fit(driver, f"{major}.{minor}")] for major, minor in sorted(TOOLKIT_DRIVER)]
        assert fits == sorted(fits, reverse=True)


def test_the_tables_agree_with_each_other() -> None:
    drivers = [numbers(TOOLKIT_DRIVER[cuda]) for cuda in sorted(TOOLKIT_DRIVER)]
    assert drivers == sorted(drivers)
    for major in (12, 13):
        assert numbers(TOOLKIT_DRIVER[(major, 0)])[0] == OLDEST_BRANCH[major]
    assert [newest_major(driver) for driver in ("400.1", "470.82", "525.60.13", "579.9", "580.1", "610.43.02")] == [
        None, 11, 12, 12, 13, 13,
    ]  # fmt: skip


CAPABILITIES = [(major, minor) for major in range(5, 13) for minor in range(10)]
COMPILED = {f"sm_{major}{minor}": {(major, above) for above in range(minor, 10)} for major, minor in CAPABILITIES}
PTX = {f"compute_{major}{minor}": set(CAPABILITIES[index:]) for index, (major, minor) in enumerate(CAPABILITIES)}
EXACT = {"sm_90a": {(9, 0)}, "sm_100a": {(10, 0)}, "sm_120f": {(12, above) for above in range(10)}}
EXACT_PTX = {"compute_90a": {(9, 0)}, "compute_103f": {(10, above) for above in range(3, 10)}}
SOME = [
    "sm_50",
    "sm_61",
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_90",
    "sm_100",
    "sm_120",
    "compute_50",
    "compute_80",
    "compute_89",
    "compute_120",
]


def test_which_code_a_gpu_runs_by_brute_force() -> None:
    compiled, ptx = COMPILED | EXACT, PTX | EXACT_PTX
    singles = [(name,) for name in (*compiled, *ptx)]
    for architectures in [(), *singles, *combinations(SOME, 2), *combinations(SOME, 3)]:
        runs_compiled = set().union(*(compiled.get(name, set()) for name in architectures))
        runs_ptx = set().union(*(ptx.get(name, set()) for name in architectures))
        for capability in CAPABILITIES:
            expected = "binary" if capability in runs_compiled else "ptx" if capability in runs_ptx else None
            assert code_for(capability, architectures) == expected, (capability, architectures)


@pytest.mark.parametrize(
    ("capability", "architectures", "code"),
    [
        ((6, 1), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", None),  # GTX 1080, torch for CUDA 13
        ((6, 1), "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", "binary"),  # the same with CUDA 12.6
        ((8, 6), "sm_80", "binary"),  # RTX 3090
        ((8, 0), "sm_86", None),  # A100
        ((8, 9), "sm_86 compute_86", "binary"),  # RTX 4090
        ((9, 0), "sm_86 compute_86", "ptx"),  # H100
        ((12, 0), "sm_90 sm_100", None),  # RTX 5090
        ((12, 1), "sm_120", "binary"),  # DGX Spark
        ((9, 4), "gfx942", None),
    ],
)  # fmt: skip
def test_known_gpus(capability: tuple[int, int], architectures: str, code: str | None) -> None:
    assert code_for(capability, architectures.split()) == code


@pytest.mark.parametrize(
    ("capability", "driver", "wheel"),
    [
        ((6, 1), None, "cu126"), ((7, 0), "595.45.04", "cu126"), ((7, 5), None, "cu130"), ((9, 0), "580.65.06", "cu130"),
        ((9, 0), "570.26", "cu126"), ((12, 0), "570.26", None), ((12, 0), None, "cu130"), ((3, 7), None, None),
        ((9, 0), "470.82.01", None), ((9, 0), "400.1", None), ((13, 0), None, None),
    ],
)  # fmt: skip
def test_the_wheel_that_is_advised_fits_gpu_and_driver(
    capability: tuple[int, int], driver: str | None, wheel: str | None
) -> None:
    assert wheel_for(capability, driver) == wheel


def test_wheels_are_named_after_a_cuda_of_their_major_version() -> None:
    assert all(tag.startswith(f"cu{major}") and first < last for major, (tag, first, last) in WHEELS.items())


@pytest.mark.parametrize(
    ("setting", "count", "shown"),
    [
        ("0", 2, [0]), ("1,0", 2, [1, 0]), (" 0, 1", 2, [0, 1]), ("", 2, []), ("-1", 2, []), ("2", 2, []), ("0,2,1", 2, [0]),
        ("0,-1,1", 2, [0]), ("0,0", 2, []), ("NoDevFiles", 2, []), ("7", None, [7]), ("0", 0, []), ("10", 16, [10]),
    ],
)  # fmt: skip
def test_visible_devices_are_read_as_cuda_does(setting: str, count: int | None, shown: list[int]) -> None:
    assert visible(setting, count) == shown
