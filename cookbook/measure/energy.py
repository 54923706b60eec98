"""Energy of a function where the processor counts it, and the CPU seconds that it took (lesson 00)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cookbook.measure.latency import synchronizer

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """What a function consumed.

    Attributes:
        joules: energy of the processor packages and their memory; None where no counter is readable.
        cpu_seconds: CPU time of all threads of this process; child processes are not in it.
        source: which counters were read, in words.
    """

    joules: float | None
    cpu_seconds: float
    source: str


def energy_of(function: Callable[[], object], *, device: torch.device | str = "cpu", powercap: str | Path = POWERCAP) -> Energy:
    """Call `function` once and return what it consumed.

    Reads the RAPL counters of Linux's power capping framework
    (https://www.kernel.org/doc/html/latest/power/powercap/powercap.html), which many systems let
    only root read. They cover the whole processor with all that runs on it, so keep the machine
    quiet and let `function` run for a second or longer. They wrap around, which is corrected once: a
    function longer than a counter's range, some minutes under full load, comes out too small.

    Args:
        function: what to run; its result is thrown away.
        device: where it computes. On an accelerator, joules is None: torch offers no energy counter,
            and the processor's alone would mislead.
        powercap: folder with the counters.
    """
    wait = synchronizer(device)
    on_cpu = torch.device(device).type == "cpu"
    counters = _counters(Path(powercap)) if on_cpu else []
    wait()
    before, started = [counter.read() for counter in counters], time.process_time()
    function()
    wait()
    cpu_seconds = time.process_time() - started
    after = [counter.read() for counter in counters]
    if not counters:
        where = "RAPL counter" if on_cpu else "counter of the accelerator"
        return Energy(None, cpu_seconds, f"no readable {where}: CPU seconds only")
    used = sum(counter.between(*ends) for counter, *ends in zip(counters, before, after, strict=True))
    names = ", ".join(counter.name for counter in counters)
    return Energy(used / 1e6, cpu_seconds, f"RAPL ({names}), everything on the machine included")


@dataclass(frozen=True)
class _Counter:
    """One counter of microjoules that starts again at zero after `wrap`."""

    name: str
    folder: Path
    wrap: int

    def read(self) -> int:
        return int((self.folder / "energy_uj").read_text())

    def between(self, before: int, after: int) -> int:
        return after - before if after >= before else after + self.wrap - before


def _counters(powercap: Path) -> list[_Counter]:
    """Return the packages' and the memory's counters, or none of them when one cannot be read.

    A package's count holds its cores and its graphics; ``psys`` holds the packages.
    """
    counters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's counters appear under this name too
        name = (folder / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            try:
                counter = _Counter(name, folder, int((folder / "max_energy_range_uj").read_text()))
                counter.read()
            except OSError:
                return []
            counters.append(counter)
    return counters
