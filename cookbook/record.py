"""Recorded evidence: measured in the full profile, committed, and quoted by the README (lesson 00)."""

from __future__ import annotations

import hashlib
import html
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cookbook.bench.compressors import peers_table
from cookbook.data import ResidentLoader, load_fashion_mnist
from cookbook.deploy import Runtime, export
from cookbook.environment import current_profile
from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence import Ledger, Measurement, Rows, scoreboard
from cookbook.experiments.capstone import PACKED
from cookbook.files import atomic_path, data_directory
from cookbook.measure import Candidate, count_macs, count_parameters, measure_candidates
from cookbook.models import load

if TYPE_CHECKING:
    from cookbook.plots import Picture
    from cookbook.plots.picture import Theme

BASELINE = "baseline fp32"
MARKERS = "<!-- scoreboard:begin -->", "<!-- scoreboard:end -->"
PEER_MARKERS = "<!-- peers:begin -->", "<!-- peers:end -->"
BASELINE_LESSON = "00"
FIGURES: dict[Theme, str] = {"light": "data/results/scoreboard-light.svg", "dark": "data/results/scoreboard-dark.svg"}


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


def scoreboard_rows(ledger: Ledger) -> Rows[Measurement]:
    """Return what the README shows: the newest run of `cookbook.experiments.capstone`, else the baseline alone.

    The rows of one run were timed in turns, so that all of them have a ratio to the first.
    """
    rows = ledger.measurements(profile="full")
    board = [row for row in rows if row.split == "test" and row.latency and PACKED in row.values]
    newest = max((row.recorded for row in board), default=None)
    board = [row for row in board if row.recorded == newest] or [row for row in rows if row.lesson == BASELINE_LESSON]
    return Rows(board, rows.skipped)


def numbers_block(ledger: Ledger) -> str:
    """Return what stands between the README's markers: the figure where there is something to draw, and the scoreboard."""
    rows = scoreboard_rows(ledger)
    table = f"{scoreboard(rows).to_markdown()}\n"
    if not _drawable(rows):
        return table
    finding = html.escape(_figure(rows, "light").finding)
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{FIGURES["dark"]}">\n'
        f'<img alt="{finding}" src="{FIGURES["light"]}">\n</picture>\n\n{table}'
    )


def peers_block(ledger: Ledger) -> str:
    """Return what stands between the README's second pair of markers: other compressors beside ours, as Markdown."""
    return f"{peers_table(ledger.measurements(profile='full')).to_markdown()}\n"


def write_numbers(readme: Path, ledger: Ledger) -> None:
    """Put the ledger's numbers into the README and draw its figure beside it; everything outside the markers stays.

    Raises:
        EvidenceError: the README has not exactly one pair of each kind of markers.
    """
    text = readme.read_text(encoding="utf-8")
    for markers, block in ((MARKERS, numbers_block(ledger)), (PEER_MARKERS, peers_block(ledger))):
        text = _between(markers, block, text, readme)
    for theme, name in FIGURES.items():
        write_figure(scoreboard_rows(ledger), theme, readme.parent / name)
    with atomic_path(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _between(markers: tuple[str, str], block: str, text: str, readme: Path) -> str:
    """Return the text of the README with a new block between the markers."""
    begin, end = markers
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise EvidenceError(
            f"{readme} has not exactly one pair of the markers {begin} and {end}: put them where the table goes."
        )
    return pattern.sub(lambda _: f"{begin}\n{block}{end}", text)


def write_figure(rows: Rows[Measurement], theme: Theme, path: Path) -> None:
    """Draw accuracy against latency as SVG, the same bytes for the same rows; where nothing can be drawn there is no file.

    The file names the rows that it shows by their digest, so that a test can tell whether it is in step.
    """
    if not _drawable(rows):
        path.unlink(missing_ok=True)
        return
    import matplotlib

    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "scoreboard"}):
        _figure(rows, theme).savefig(temporary, format="svg", metadata={"Date": None, "Description": rows_digest(rows)})


def rows_digest(rows: Rows[Measurement]) -> str:
    """Return the SHA-256 of everything in the rows, in hexadecimal digits."""
    text = json.dumps([row.to_dict() for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drawable(rows: Rows[Measurement]) -> bool:
    return any(row.accuracy is not None and 1 in row.latency for row in rows)


def _figure(rows: Rows[Measurement], theme: Theme) -> Picture:
    from cookbook.plots import scoreboard_figure  # matplotlib takes a second to load

    return scoreboard_figure(rows, theme=theme)
