import time

import pytest
import torch

from cookbook.measure import energy_of


def zone(folder, number, name, microjoules, wrap=10_000_000):
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_summed_and_their_parts_are_not(tmp_path):
    counters = [
        zone(tmp_path, "0", "package-0", 1_000_000),
        zone(tmp_path, "1", "package-1", 9_500_000),
        zone(tmp_path, "0:1", "dram", 5),
    ]
    parts = [zone(tmp_path, "0:0", "core", 0), zone(tmp_path, "2", "psys", 0)]

    def work():
        for counter, value in zip(counters, (3_000_000, 250_000, 500_005), strict=True):  # the second wraps around
            counter.write_text(str(value))
        for part in parts:
            part.write_text("9000000")

    energy = energy_of(work, powercap=tmp_path)
    assert energy.joules == pytest.approx(2.0 + 0.75 + 0.5)
    assert "package-0" in energy.source and "dram" in energy.source and "core" not in energy.source


def test_without_a_readable_counter_there_are_cpu_seconds_only(tmp_path):
    for folder in (tmp_path / "absent", tmp_path):
        energy = energy_of(lambda: None, powercap=folder)
        assert energy.joules is None and "no readable RAPL counter" in energy.source
    zone(tmp_path, "0", "package-0", 1)
    zone(tmp_path, "1", "package-1", 1).unlink()  # one package alone would be taken for the whole machine
    assert energy_of(lambda: None, powercap=tmp_path).joules is None


def test_an_accelerator_is_not_billed_with_the_processors_energy(tmp_path, monkeypatch):
    zone(tmp_path, "0", "package-0", 1)
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    energy = energy_of(lambda: None, device="cuda", powercap=tmp_path)
    assert energy.joules is None and "accelerator" in energy.source and len(waits) == 2


def test_cpu_seconds_are_those_of_work_and_not_of_sleep(tmp_path):
    def spin():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    assert energy_of(spin, powercap=tmp_path).cpu_seconds >= 0.05
    assert energy_of(lambda: time.sleep(0.1), powercap=tmp_path).cpu_seconds < 0.05
