"""Parts run in turn within their time; a failure is reported, keeps its rows and stops nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cookbook import environment
from cookbook.accelerator import (
    FULL,
    PARTS,
    REHEARSAL,
    Part,
    Report,
    Setting,
    choose_parts,
    make_setting,
    open_ledger,
    record_parts,
    runner,
)
from cookbook.environment import provenance
from cookbook.errors import UsageError
from cookbook.evidence import ClaimEvidence, Ledger, load_claims
from cookbook.files import data_directory

CPU = Setting(torch.device("cpu"), REHEARSAL)


def row(value: float) -> ClaimEvidence:
    return ClaimEvidence(claim="gpu-02", lesson="01", values={"cases_raised_share": value}, provenance=provenance("cpu"))


def two_rows(setting: Setting) -> Iterator[ClaimEvidence]:
    yield row(1.0)
    yield row(2.0)


def one_row_then_error(setting: Setting) -> Iterator[ClaimEvidence]:
    yield row(3.0)
    raise RuntimeError("the kernel image is missing.\nmore lines")


def values_in(ledger: Ledger) -> list[float]:
    return [found.values["cases_raised_share"] for found in ledger.claim_evidence("gpu-02")]


def run(parts: list[Part], tmp_path: Path, minutes: float = 8, setting: Setting = CPU) -> tuple[Report, Ledger, list[str]]:
    said: list[str] = []
    ledger = Ledger(tmp_path / "ledger.jsonl")
    return record_parts(parts, setting, ledger, minutes=minutes, say=said.append), ledger, said


def test_a_failure_is_named_and_the_others_run(tmp_path: Path) -> None:
    parts = [Part("bad", "what fails", 1, one_row_then_error), Part("good", "what runs", 1, two_rows)]
    report, ledger, said = run(parts, tmp_path)
    assert (report.recorded, list(report.failed), report.left_out, report.rows) == (["good"], ["bad"], [], 3)
    assert report.failed["bad"] == "RuntimeError: the kernel image is missing"
    assert values_in(ledger) == [3.0, 1.0, 2.0]
    assert any("bad" in line and "RuntimeError" in line for line in said)


def test_the_place_of_an_error_in_the_cookbook_is_named(tmp_path: Path) -> None:
    def refused(setting: Setting) -> Iterator[ClaimEvidence]:
        choose_parts(PARTS, "nonsense")
        yield row(0.0)

    report, _, _ = run([Part("bad", "", 1, refused)], tmp_path)
    assert report.failed["bad"].startswith("UsageError at cookbook/accelerator/runner.py:")


def test_an_interrupted_part_keeps_its_rows(tmp_path: Path) -> None:
    def interrupted(setting: Setting) -> Iterator[ClaimEvidence]:
        yield row(7.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Part("long", "", 1, interrupted)], tmp_path)
    assert values_in(Ledger(tmp_path / "ledger.jsonl")) == [7.0]


def test_a_part_that_would_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def lasting(seconds: float) -> Callable[[Setting], Iterator[ClaimEvidence]]:
        def record(setting: Setting) -> Iterator[ClaimEvidence]:
            now[0] += seconds
            yield row(seconds)

        return record

    parts = [
        Part("first", "", 50, lasting(70.0)), Part("second", "", 51, lasting(0.0)), Part("third", "", 50, lasting(50.0)),
        Part("fourth", "", 1, lasting(1.0)),
    ]  # fmt: skip
    report, ledger, said = run(parts, tmp_path, minutes=2, setting=Setting(torch.device("cpu"), FULL))
    assert (report.recorded, report.left_out) == (["first", "third"], ["second", "fourth"])
    assert values_in(ledger) == [70.0, 50.0]
    assert said[0] == "first: ; about 50 s."
    assert "second: not recorded, it takes about 51 s and 50 s are left." in said


def test_the_rehearsal_is_not_held_up_by_estimates_for_the_full_sizes(tmp_path: Path) -> None:
    report, _, said = run([Part("part", "what", 10_000, two_rows)], tmp_path, minutes=0.1)
    assert report.recorded == ["part"]
    assert said[0] == f"part: what; about {REHEARSAL.longest_part:.0f} s."


@pytest.mark.parametrize("minutes", [0, -1])
def test_there_must_be_time(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UsageError, match="minutes is"):
        run([], tmp_path, minutes=minutes)


def test_a_part_runs_with_torchs_usual_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen = []

    def look(setting: Setting) -> Iterator[ClaimEvidence]:
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        yield row(0.0)

    run([Part("look", "", 1, look)], tmp_path)
    assert seen == [(False, False)]
    assert torch.backends.cudnn.deterministic is True


def test_parts_are_chosen_by_name_in_their_own_order() -> None:
    assert [part.name for part in choose_parts(PARTS, "speedrun, amp")] == ["amp", "speedrun"]
    everything = choose_parts(PARTS, None)
    assert {"seeds", "choose", "changes"}.isdisjoint(part.name for part in everything)
    assert sum(part.seconds for part in everything) <= 480
    with pytest.raises(UsageError, match=r"no part 'amd'.*amp"):
        choose_parts(PARTS, "amp,amd")


def test_evidence_needs_the_full_profile_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    with pytest.raises(UsageError, match="COOKBOOK_PROFILE=full"):
        make_setting("cpu", rehearse=False)
    assert make_setting(None, rehearse=True) == CPU
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    with pytest.raises(UsageError, match="cannot be recorded on cpu"):
        make_setting("cpu", rehearse=False)
    with pytest.raises(UsageError, match="rehearsal is no evidence"):
        make_setting("cpu", rehearse=True)


def test_a_rehearsal_never_touches_the_committed_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Ledger.recorded().path
    with pytest.raises(UsageError, match="name another --out"):
        open_ledger(recorded.parent / ".." / recorded.parent.name / recorded.name, rehearse=True)
    assert open_ledger(None, rehearse=False).path == recorded
    assert open_ledger(tmp_path / "x.jsonl", rehearse=True).path == tmp_path / "x.jsonl"
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path / "data"))
    throwaway = open_ledger(None, rehearse=True)
    throwaway.append(row(1.0))
    assert throwaway.path.is_relative_to(data_directory().parent / "build")
    assert values_in(open_ledger(None, rehearse=True)) == []


def test_every_claim_on_one_gpu_has_a_part() -> None:
    what = " ".join(part.what for part in PARTS)
    needed = [claim.id for claim in load_claims().values() if claim.device not in ("any", "gpus>=2")]
    assert [claim for claim in needed if claim not in what] == []


def test_provenance_on_a_gpu_names_the_software_below_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(environment, "_nvidia_driver", lambda: None)
    origin = provenance("cuda")
    assert origin.device == "cuda (NVIDIA H100)"
    assert (origin.libraries["cuda"], origin.libraries["cudnn"]) == ("13.0", "91002")
    assert "driver" not in origin.libraries
    assert "cuda" not in provenance("cpu").libraries
