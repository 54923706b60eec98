"""The doctor: what this machine can do, what keeps it from doing more, and the remedy (lesson 01).

`Probe.collect` gathers facts and judges nothing; `diagnose` judges and touches nothing, so that
each cause can be tested on a machine that does not have it. `cookbook.doctor.cases` holds them all.
"""

from __future__ import annotations

from cookbook.doctor import device, installation, processor
from cookbook.doctor.device import summary
from cookbook.doctor.finding import Finding, Level
from cookbook.probe import Probe


def diagnose(probe: Probe | None = None) -> list[Finding]:
    """Judge the facts of `probe`, or of this machine; the order is that of a repair."""
    probe = probe or Probe.collect()
    findings = [*installation.judge(probe)]
    if probe.libraries.get("torch") and "torch" not in probe.broken:
        findings += [*device.judge(probe), *processor.judge(probe)]
    return [*findings, *installation.judge_folders(probe)]


__all__ = ["Finding", "Level", "Probe", "diagnose", "summary"]
