"""Recorded evidence: measured in the full profile, committed, and quoted by the README (lesson 00)."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from cookbook.data import ResidentLoader, load_fashion_mnist
from cookbook.deploy import Runtime, export
from cookbook.environment import current_profile
from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence import Ledger, Measurement, scoreboard
from cookbook.files import atomic_path, data_directory
from cookbook.measure import Candidate, count_macs, count_parameters, measure_candidates
from cookbook.models import load

BASELINE = "baseline fp32"
MARKERS = "<!-- scoreboard:begin -->", "<!-- scoreboard:end -->"


def record_baseline(ledger: Ledger, *, threads: int = 1, rounds: int = 30) -> list[Measurement]:
    """Measure the shipped checkpoint in torch and in ONNX Runtime on the whole test split, and keep the rows.

    Args:
        ledger: where the rows are appended.
        threads: of both runtimes.
        rounds: samples of every latency.

    Raises:
        UsageError: the profile is not ``full``.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if current_profile() != "full":
        raise UsageError("Evidence is recorded in the full profile only: set COOKBOOK_PROFILE=full.")
    checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
    model = load(checkpoint)
    seed = json.loads(checkpoint.with_suffix(".json").read_text())["recipe"]["seed"]
    test = load_fashion_mnist().test
    example = test.normalized()[:1]
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(export(model, example, Path(folder) / "baseline.onnx"), threads=threads)
        size = {"parameters": count_parameters(model), "macs": count_macs(model, example), "seed": seed}
        candidates = [
            Candidate.from_torch(BASELINE, model, example, artefacts=[checkpoint], seed=seed),
            runtime.candidate(f"{BASELINE}, exported", **size),
        ]
        rows = measure_candidates(candidates, ResidentLoader(test, 500), lesson="00", threads=threads, rounds=rounds)
    for row in rows:
        ledger.append(row)
    return rows


def numbers_block(ledger: Ledger) -> str:
    """Return what stands between the README's markers: the scoreboard of the full profile as Markdown."""
    return f"{scoreboard(ledger.measurements(profile='full')).to_markdown()}\n"


def write_numbers(readme: Path, ledger: Ledger) -> None:
    """Put the ledger's numbers into the README; everything outside the markers stays.

    Raises:
        EvidenceError: the README has not exactly one pair of markers.
    """
    begin, end = MARKERS
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise EvidenceError(
            f"{readme} has not exactly one pair of the markers {begin} and {end}: put them where the table goes."
        )
    with atomic_path(readme) as temporary:
        temporary.write_text(pattern.sub(lambda _: f"{begin}\n{numbers_block(ledger)}{end}", text), encoding="utf-8")
