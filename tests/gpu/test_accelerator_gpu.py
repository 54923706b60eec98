"""The whole GPU evidence in tiny on CUDA, and the speedrun's compiled network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cookbook.accelerator import PARTS, REHEARSAL, choose_parts, make_setting, record_parts
from cookbook.accelerator.placement import exceptions, mismatches, raises
from cookbook.accelerator.speedrun import Track
from cookbook.evidence import Ledger

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(600)
def test_every_part_is_recorded(cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    report = record_parts(choose_parts(PARTS, None), make_setting("cuda", rehearse=True), ledger, minutes=10)
    assert (report.failed, report.left_out) == ({}, [])
    (times,) = ledger.claim_evidence("amp-02")
    assert {"step_time_ratio", "step_time_ratio_resnet50_tf32", "step_time_ratio_resnet50_fp16"} <= set(times.values)
    assert times.provenance.device.startswith("cuda (")
    (accuracy,) = ledger.claim_evidence("amp-03")
    assert "accuracy_difference_points_fp16" in accuracy.values
    (reads,) = ledger.claim_evidence("gpu-04")
    more = reads.values["synchronizations_every_step"] - reads.values["synchronizations_never"]
    assert more == REHEARSAL.loop_steps


def test_devices_that_do_not_match_raise(cuda: torch.device) -> None:
    assert [name for name, case in mismatches(cuda).items() if not raises(case)] == []
    assert [name for name, case in exceptions(cuda).items() if raises(case)] == []


@pytest.mark.timeout(600)
def test_a_compiled_speedrun_learns_what_the_plain_one_learns(cuda: torch.device) -> None:
    setting = make_setting("cuda", rehearse=True)
    speedrun = replace(setting.scale.speedrun, recipe=replace(setting.scale.speedrun.recipe, precision="fp32"))
    ends = []
    for compile in (False, True):
        track = Track(replace(speedrun, compile=compile), setting.splits.train, cuda)
        track.warm_up()
        track.run(0, setting.splits.validation)
        ends.append(track.judge.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-3)
