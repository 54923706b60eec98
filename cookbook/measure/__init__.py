"""The measuring instrument: latency, memory, size, operations, energy and statistics."""

from cookbook.measure.energy import Energy, energy_of
from cookbook.measure.instrument import Candidate, measure_candidates
from cookbook.measure.latency import Ratio, Timing, interleave, pinned_threads, speedup
from cookbook.measure.measurement import Measurement
from cookbook.measure.memory import peak_memory
from cookbook.measure.operations import count_macs, count_parameters
from cookbook.measure.size import bytes_on_disk
from cookbook.measure.statistics import (
    PairedComparison,
    SeedComparison,
    Spread,
    Word,
    compare_paired,
    compare_seeds,
    spread,
    wilson_interval,
)

__all__ = [
    "Candidate",
    "Energy",
    "Measurement",
    "PairedComparison",
    "Ratio",
    "SeedComparison",
    "Spread",
    "Timing",
    "Word",
    "bytes_on_disk",
    "compare_paired",
    "compare_seeds",
    "count_macs",
    "count_parameters",
    "energy_of",
    "interleave",
    "measure_candidates",
    "peak_memory",
    "pinned_threads",
    "speedup",
    "spread",
    "wilson_interval",
]
