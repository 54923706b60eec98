"""Each cause is found on a machine that does not have it: the facts are faked."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import pytest

from cookbook.doctor import amd, apple, cases, device, diagnose, installation, nvidia, processor, summary
from cookbook.doctor.cases import CPU, GPU, LOST, MAC, MAC_CPU, ROCM, UNFOUND, Case, constructed_cases, healthy_machines
from cookbook.doctor.finding import Finding
from cookbook.probe import NvidiaGpu, Probe

CASES = constructed_cases()
HEALTHY = healthy_machines()
RULES = (amd, apple, device, installation, nvidia, processor)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cause_is_named_with_its_remedy_and_nothing_misleads(case: Case) -> None:
    findings = diagnose(case.probe)
    (named,) = [
        finding
        for finding in findings
        if finding.level == case.level
        and finding.subject == case.subject
        and all(word in finding.message for word in case.words)
    ]
    assert case.remedy in named.remedy
    assert bool(named.remedy) is bool(case.remedy)
    assert [finding for finding in findings if finding.level == "problem"] == ([named] if case.level == "problem" else [])
    assert case.diagnosed()


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_has_nothing_to_mend(name: str) -> None:
    assert [finding for finding in diagnose(HEALTHY[name]) if finding.level != "ok" or finding.remedy] == []


def test_a_case_is_not_diagnosed_when_the_doctor_says_something_else() -> None:
    case = next(case for case in CASES if case.name == "driver too old for CUDA 13")
    assert case.diagnosed()
    for wrong in (
        replace(case, probe=GPU),
        replace(case, level="note"),
        replace(case, subject="driver"),
        replace(case, words=("570.26", "sunspots")),
        replace(case, remedy="turn it off and on again"),
        replace(case, probe=replace(case.probe, python=(3, 9, 0))),  # a second problem would mislead
    ):
        assert not wrong.diagnosed()


def test_every_case_has_its_own_name_and_its_own_machine() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({repr(case.probe) for case in CASES}) == len(CASES)
    assert all(case.probe not in HEALTHY.values() for case in CASES)


def test_every_fact_that_can_go_wrong_is_part_of_a_case() -> None:
    machines = [*HEALTHY.values(), *(case.probe for case in CASES)]
    plain = Probe()
    never = {
        field.name for field in fields(Probe) if all(getattr(one, field.name) == getattr(plain, field.name) for one in machines)
    }
    assert never == {"processor", "tf32_convolutions", "profile"}


def test_every_finding_that_the_rules_can_make_is_constructed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule without a case would be a claim that nobody checks."""
    made: set[tuple[str, int]] = set()

    def recording(module: ModuleType, make: Any) -> Any:
        def call(*arguments: Any, **words: Any) -> Finding:
            made.add((module.__name__, sys._getframe(1).f_lineno))
            return make(*arguments, **words)

        return call

    written = set()
    for module in RULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("problem", "note", "fine", "Finding"):
                written.add((module.__name__, node.lineno))
        for name in ("problem", "note", "fine", "Finding"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recording(module, getattr(module, name)))
    for probe in [*HEALTHY.values(), *(case.probe for case in CASES)]:
        diagnose(probe)
    assert len(written) > 50 and written - made == set()


def test_the_order_is_that_of_a_repair() -> None:
    assert [finding.subject for finding in diagnose(GPU)] == [
        "Python", "libraries", "device", "driver", "TF32", "threads", "workers", "instructions", "data", "cache", "profile",
    ]  # fmt: skip


def test_two_causes_at_once_are_both_named() -> None:
    blind = cases.with_settings(replace(LOST, driver_version="570.26"), CUDA_VISIBLE_DEVICES="")
    messages = [finding.message for finding in diagnose(blind) if finding.level == "problem"]
    assert len(messages) == 2 and "too old" in messages[0] and "hides every GPU" in messages[1]
    wheel = replace(LOST, nvidia_driver=False, cuda_build=None)
    messages = [finding.message for finding in diagnose(wheel) if finding.level == "problem"]
    assert len(messages) == 2 and "CPU only" in messages[0] and "no driver" in messages[1]


def test_of_two_makers_the_one_that_torch_was_built_for_is_explained() -> None:
    both = replace(UNFOUND, amd_access=False, nvidia_devices=1, nvidia_driver=True)
    assert ["/dev/kfd" in finding.message for finding in diagnose(both) if finding.level == "problem"] == [True]
    (other,) = [finding for finding in diagnose(replace(LOST, amd_devices=1)) if finding.level == "problem"]
    assert "built for CUDA 13.2, finds no device" in other.message


def test_an_older_cuda_is_advised_only_where_its_wheel_holds_code_for_the_gpu() -> None:
    def remedies(capability: tuple[int, int]) -> str:
        gpu = replace(LOST, driver_version="570.26", nvidia_gpus=(NvidiaGpu("GPU", capability),))
        return " ".join(finding.remedy for finding in diagnose(gpu) if "too old" in finding.message)

    assert "cu126" in remedies((9, 0)) and "cu126" not in remedies((12, 0))


def test_without_torch_nothing_is_said_about_what_only_torch_knows() -> None:
    for probe in (replace(CPU, libraries={"torch": None}), replace(CPU, broken={"torch": "no"})):
        assert not {"device", "threads", "instructions"} & {finding.subject for finding in diagnose(probe)}


def test_threads_that_cannot_wait_do_not_spin_and_an_idle_machine_is_not_busy() -> None:
    alone = replace(CPU, settings={}, threads=1, processors=1, cores=1, load=0.4)
    assert not {"waiting", "load"} & {finding.subject for finding in diagnose(alone)}
    assert "load" in {finding.subject for finding in diagnose(replace(alone, load=1.2))}
    assert "load" not in {finding.subject for finding in diagnose(replace(alone, processors=4, load=1.2))}
    assert "load" not in {finding.subject for finding in diagnose(replace(CPU, threads=8))}  # nobody else is there


@pytest.mark.parametrize(("threads", "level"), [(1, "note"), (3, "note"), (4, "ok"), (8, "ok"), (16, "ok"), (17, "problem")])
def test_half_of_the_cores_are_enough_threads(threads: int, level: str) -> None:
    wide = replace(CPU, processors=16, cores=8, threads=threads)
    assert [finding.level for finding in diagnose(wide) if finding.subject == "threads"] == [level]


@pytest.mark.parametrize(("macos", "old"), [("13.7.8", True), ("14", False), ("14.0", False), ("26.1", False)])
def test_the_oldest_macos_is_itself_new_enough(macos: str, old: bool) -> None:
    messages = [finding.message for finding in diagnose(replace(MAC_CPU, macos=macos))]
    assert any("too old" in message for message in messages) is old


def test_amx_is_mentioned() -> None:
    (found,) = [
        finding.message
        for finding in diagnose(replace(CPU, instruction_sets=("avx2", "amx_int8", "amx_bf16")))
        if finding.subject == "instructions"
    ]
    assert "AMX" in found


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        (CPU, "This machine trains on its CPU: no GPU was found."),
        (GPU, "This machine trains on: NVIDIA H100 80GB HBM3."),
        (HEALTHY["eight H100"], "This machine trains on: 8 × NVIDIA H100 80GB HBM3."),
        (MAC, "This machine trains on: Apple GPU (mps)."),
        (ROCM, "This machine trains on: AMD Instinct MI300X."),
        (cases.with_settings(GPU, COOKBOOK_DEVICE="cpu"), "trains on its CPU: COOKBOOK_DEVICE is 'cpu'; unused: NVIDIA H100"),
        (
            replace(LOST, cuda_build=None),
            "There is a GPU, but torch cannot use it: The GPU is NVIDIA's, but this torch was built",
        ),
        (replace(UNFOUND, amd_access=False), "There is a GPU, but torch cannot use it: You may not open /dev/kfd"),
        (replace(MAC_CPU, mps_build=False), "There is a GPU, but torch cannot use it: This torch was built without support"),
        (replace(GPU, architectures=("sm_120",)), "There is a GPU, but torch cannot use it: NVIDIA H100 80GB HBM3 has compute"),
        (replace(CPU, amd_devices=1), "trains on its CPU: The GPU is AMD's"),
        (replace(CPU, wsl=True, nvidia_devices=None), "trains on its CPU: this Linux runs inside Windows"),
        (cases.with_settings(CPU, COOKBOOK_DEVICE="cuda"), "This machine cannot train yet: COOKBOOK_DEVICE is 'cuda'"),
        (replace(CPU, libraries={"torch": None}), "This machine cannot train yet: torch is not installed."),
        (
            replace(CPU, broken={"torch": "libcudnn is gone"}),
            "This machine cannot train yet: torch cannot be imported (libcudnn",
        ),
    ],
)
def test_the_answer_in_one_sentence(probe: Probe, sentence: str) -> None:
    assert sentence in summary(probe, diagnose(probe))
