"""GPUs as the system shows them, on machines made of files and of a program that only pretends."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from cookbook.probe import hardware
from cookbook.probe.hardware import NvidiaGpu, amd_facts, apple_facts, nvidia_facts, run, wsl

OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\nGCC version: 12"
)
OLDER_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\nGCC version:  gcc"


def device(pci: Path, name: str, vendor: str, kind: str, driver: str = "") -> None:
    (pci / name).mkdir(parents=True)
    (pci / name / "vendor").write_text(vendor + "\n")
    (pci / name / "class").write_text(kind + "\n")
    if driver:
        (pci / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (pci / name / "driver").symlink_to(pci / "drivers" / driver)


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called nvidia-smi first on the search path."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text("#!/bin/sh\n" + script)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without nvidia-smi, whatever this one has, and not inside Windows."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(str(shutil.which("sh")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(hardware, "wsl", lambda: False)


def test_no_gpu_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "pci").mkdir()
    facts = nvidia_facts(proc=tmp_path / "proc", pci=tmp_path / "pci")
    assert (facts["nvidia_driver"], facts["nvidia_devices"], facts["driver_version"]) == (False, 0, None)
    assert (facts["nvidia_gpus"], facts["nvidia_smi_error"], facts["nouveau"]) == ((), "", False)


def test_gpus_are_counted_on_the_bus_without_a_driver(tmp_path: Path) -> None:
    pci = tmp_path / "pci"
    device(pci, "0000:01:00.0", "0x10de", "0x030200", "nouveau")
    device(pci, "0000:01:00.1", "0x10de", "0x040300")  # the sound of the same card
    device(pci, "0000:02:00.0", "0x1002", "0x030000", "amdgpu")
    device(pci, "0000:03:00.0", "0x1002", "0x120000")
    device(pci, "0000:04:00.0", "0x8086", "0x020000", "e1000")
    facts = nvidia_facts(proc=tmp_path / "proc", pci=pci)
    assert (facts["nvidia_driver"], facts["nvidia_devices"], facts["nouveau"]) == (False, 1, True)
    assert amd_facts(kfd=tmp_path / "kfd", pci=pci) == {"amd_devices": 2, "amd_driver": False, "amd_access": False}


@pytest.mark.parametrize(("text", "version"), [(OPEN_MODULE, "580.95.05"), (OLDER_MODULE, "470.82.01"), ("NVRM", None)])
def test_a_loaded_driver_says_its_version_and_its_gpus(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "proc" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "proc" / "gpus" / "0000:02:00.0").mkdir()
    (tmp_path / "proc" / "version").write_text(text)
    facts = nvidia_facts(proc=tmp_path / "proc", pci=tmp_path / "pci")
    assert (facts["nvidia_driver"], facts["nvidia_devices"], facts["driver_version"]) == (True, 2, version)


def test_nvidia_smi_describes_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "NVIDIA H100, 580.95.05, 9.0, Default, Enabled\nTesla K80, 580.95.05, [N/A], Exclusive_Process, [N/A]\n"
    smi(tmp_path / "tools", monkeypatch, f"printf '{lines}'")
    (tmp_path / "proc" / "gpus" / "0000:01:00.0").mkdir(parents=True)  # a list that the container was not meant to see
    facts = nvidia_facts(proc=tmp_path / "proc", pci=tmp_path / "pci")
    assert facts["nvidia_gpus"] == (
        NvidiaGpu("NVIDIA H100", (9, 0), "Default", True),
        NvidiaGpu("Tesla K80", None, "Exclusive_Process", False),
    )
    assert (facts["nvidia_driver"], facts["nvidia_devices"], facts["driver_version"]) == (True, 2, "580.95.05")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; echo 'NVML library version: 580.95'; exit 18",
         "Failed to initialize NVML: Driver/library version mismatch NVML library version: 580.95"),
        ("echo 'No devices were found'", "No devices were found"),
        ("echo trouble >&2; exit 9", "trouble"),
        ("exit 9", "nvidia-smi ended with status 9."),
        ("true", "nvidia-smi listed no GPU."),
    ],
)  # fmt: skip
def test_why_nvidia_smi_fails_is_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str) -> None:
    smi(tmp_path / "tools", monkeypatch, script)
    facts = nvidia_facts(proc=tmp_path / "proc", pci=tmp_path / "pci")
    assert (facts["nvidia_smi_error"], facts["nvidia_gpus"], facts["nvidia_driver"]) == (error, (), False)
    assert facts["nvidia_devices"] is None  # a system without a list of devices, as Windows


def test_inside_windows_the_bus_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "wsl", lambda: True)
    (tmp_path / "pci").mkdir()
    assert nvidia_facts(proc=tmp_path / "proc", pci=tmp_path / "pci")["nvidia_devices"] is None


def test_a_program_that_hangs_or_cannot_start_is_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path / "tools", monkeypatch, "while :; do :; done")
    assert run([str(tmp_path / "tools" / "nvidia-smi")], timeout=0.2) == ("", "nvidia-smi did not answer within 0.2 seconds.")
    answer, error = run([str(tmp_path / "no-such-program")])
    assert answer == "" and error == "no-such-program cannot be started: No such file or directory."


def test_amds_device_file_can_be_closed_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kfd").touch()
    opened = amd_facts(kfd=tmp_path / "kfd", pci=tmp_path)
    assert (opened["amd_driver"], opened["amd_access"]) == (True, True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)  # an administrator's tests could open any file
    closed = amd_facts(kfd=tmp_path / "kfd", pci=tmp_path)
    assert (closed["amd_driver"], closed["amd_access"]) == (True, False)


@pytest.mark.parametrize(("answer", "rosetta"), [("1\n", True), ("0\n", False), ("", False)])
def test_a_mac_says_whether_python_is_translated(monkeypatch: pytest.MonkeyPatch, answer: str, rosetta: bool) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(hardware, "run", lambda command: (answer, ""))
    assert apple_facts() == {"macos": "15.5", "rosetta": rosetta}
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert apple_facts() == {}


@pytest.mark.parametrize(
    ("release", "inside"),
    [("5.15.153.1-microsoft-standard-WSL2", True), ("4.4.0-19041-Microsoft", True), ("6.8.0-generic", False)],
)
def test_a_linux_inside_windows_is_told_by_its_kernel(tmp_path: Path, release: str, inside: bool) -> None:
    (tmp_path / "osrelease").write_text(release + "\n")
    assert wsl(tmp_path / "osrelease") is inside
    assert wsl(tmp_path / "absent") is False


def test_a_library_is_loadable_or_not() -> None:
    assert hardware._loadable("libc.so.6") or platform.system() != "Linux"
    assert not hardware._loadable("libcuda-that-nobody-has.so.1")
