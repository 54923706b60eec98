"""Each cause is found on a machine that does not have it: the facts are faked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cookbook.doctor import Finding, Probe, diagnose

HEALTHY = Probe(cache_folder="cache", omp_wait_policy="passive")
NVIDIA = replace(HEALTHY, nvidia_driver=True, nvidia_devices=2, cuda_build="13.2", accelerators=("H100", "H100"))


def about(subject: str, probe: Probe) -> Finding:
    """Return the one finding on `subject`."""
    (finding,) = [finding for finding in diagnose(probe) if finding.subject == subject]
    return finding


@pytest.mark.parametrize("probe", [HEALTHY, NVIDIA], ids=["cpu", "gpu"])
def test_a_healthy_machine_has_no_problem(probe: Probe) -> None:
    findings = diagnose(probe)
    assert {finding.level for finding in findings} == {"ok"}
    subjects = ["Python", "libraries", "device", "threads", "instructions", "data", "cache", "profile"]
    assert [finding.subject for finding in findings] == subjects


LOST = replace(NVIDIA, accelerators=())
CAUSES: list[tuple[str, Probe, str, str, str]] = [
    ("Python", replace(HEALTHY, python=(3, 10, 9)), "problem", "3.10.9 is too old", "3.11 or newer"),
    ("libraries", replace(HEALTHY, libraries={"torch": "2.15.0", "onnx": None}), "problem", "installed: onnx", "pip install"),
    ("torch", replace(HEALTHY, libraries={"torch": "2.9.1"}), "problem", "2.9.1 is too old", "2.11 or newer"),
    ("torch", replace(HEALTHY, broken={"torch": "libcudnn.so.9: no such file"}), "problem", "libcudnn", "Reinstall torch"),
    (
        "torchvision",
        replace(
            HEALTHY,
            libraries={"torch": "2.15.0+cpu", "torchvision": "0.29.2"},
            broken={"torchvision": "operator torchvision::nms does not exist"},
        ),
        "problem", "cannot be imported", "the same one",
    ),
    ("device", HEALTHY, "ok", "no GPU", ""),
    ("device", replace(HEALTHY, cuda_build="13.2"), "ok", "no GPU found, torch built for CUDA 13.2", ""),
    ("device", replace(HEALTHY, cuda_build="13.2", nvidia_driver=True), "ok", "no GPU", ""),
    ("device", NVIDIA, "ok", "H100, H100", ""),
    ("device", replace(HEALTHY, system="Darwin", accelerators=("Apple GPU (mps)",)), "ok", "Apple", ""),
    ("device", replace(LOST, cuda_build=None), "problem", "for the CPU only", "CUDA build"),
    ("device", replace(LOST, cuda_build=None, nvidia_devices=None), "problem", "for the CPU only", "CUDA build"),
    ("device", replace(LOST, cuda_build=None, rocm_build="7.1"), "problem", "for ROCm 7.1", "CUDA build"),
    ("device", replace(LOST, nvidia_driver=False), "problem", "no driver", "driver"),
    ("device", replace(LOST, cuda_visible_devices=""), "problem", "hides every GPU", "Unset CUDA_VISIBLE_DEVICES"),
    ("device", replace(LOST, cuda_visible_devices="-1"), "problem", "hides every GPU", "Unset CUDA_VISIBLE_DEVICES"),
    ("device", replace(LOST, accelerator_error="driver is too old"), "problem", "driver is too old", "update the driver"),
    ("device", replace(LOST, cuda_visible_devices="0"), "problem", "finds no device", "nvidia-smi"),
    (
        "device", replace(NVIDIA, accelerators=("H100",), cuda_visible_devices="1"),
        "note", "hides some of 2 GPUs", "Unset CUDA_VISIBLE_DEVICES",
    ),
    ("device", replace(NVIDIA, cuda_visible_devices="0,1"), "ok", "H100, H100", ""),
    ("device", replace(NVIDIA, device_setting="cpu"), "note", "unused: H100", "Unset COOKBOOK_DEVICE"),
    ("device", replace(HEALTHY, device_setting="cuda"), "problem", "'cuda'", "Unset COOKBOOK_DEVICE"),
    ("device", replace(HEALTHY, device_setting="cpu"), "ok", "CPU", ""),
    ("threads", replace(HEALTHY, threads=8), "problem", "wait for each other", "OMP_NUM_THREADS=4"),
    ("threads", replace(HEALTHY, processors=64, threads=32, cpu_limit=2.0), "problem", "limited to 2", "OMP_NUM_THREADS=2"),
    ("threads", replace(HEALTHY, threads=2, cpu_limit=1.5), "ok", "limited to 1.5", ""),
    ("threads", replace(HEALTHY, threads=2, processors=16, cores=8), "note", "idle", "OMP_NUM_THREADS=8"),
    ("threads", replace(HEALTHY, threads=1, processors=1, cores=None, cpu_limit=0.5), "ok", "0.5", ""),
    ("waiting", replace(HEALTHY, omp_wait_policy=None), "note", "spin", "OMP_WAIT_POLICY=passive"),
    ("waiting", replace(HEALTHY, omp_wait_policy="active"), "note", "spin", "OMP_WAIT_POLICY=passive"),
    ("int8", replace(HEALTHY, instruction_sets=("avx2", "avx512_bf16")), "note", "VNNI", "accuracy"),
    ("bf16", replace(HEALTHY, instruction_sets=("avx2", "avx_vnni")), "note", "bfloat16", ""),
    ("instructions", replace(HEALTHY, instruction_sets=None), "note", "cannot be read", ""),
    ("instructions", replace(HEALTHY, instruction_sets=("asimddp", "bf16")), "ok", "asimddp, bf16", ""),
    ("data", replace(HEALTHY, data_error="x.gz is damaged: restore it."), "problem", "x.gz is damaged", ""),
    ("cache", replace(HEALTHY, cache_error="Permission denied"), "problem", "Permission denied", "COOKBOOK_CACHE"),
    ("profile", replace(HEALTHY, profile_error="COOKBOOK_PROFILE is 'fast'"), "problem", "fast", ""),
    ("profile", replace(HEALTHY, profile="full"), "ok", "evidence", ""),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "probe", "level", "message", "remedy"), CAUSES, ids=[f"{c[0]}-{c[3]}" for c in CAUSES])
def test_a_cause_is_found_and_nothing_else(subject: str, probe: Probe, level: str, message: str, remedy: str) -> None:
    finding = about(subject, probe)
    assert finding.level == level
    assert message in finding.message and remedy in finding.remedy
    assert bool(finding.remedy) is bool(remedy)
    others = [other for other in diagnose(probe) if other.subject != subject and other.level != "ok"]
    assert others == []


def test_idle_threads_cannot_spin_where_there_is_one() -> None:
    probe = replace(HEALTHY, omp_wait_policy=None, threads=1, processors=1, cores=1)
    assert "waiting" not in [finding.subject for finding in diagnose(probe)]


def test_without_torch_nothing_is_said_about_what_only_torch_knows() -> None:
    for probe in (replace(HEALTHY, libraries={"torch": None}), replace(HEALTHY, broken={"torch": "no"})):
        assert not {"device", "threads", "instructions"} & {finding.subject for finding in diagnose(probe)}
