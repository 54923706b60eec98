"""Tables for a terminal and for JupyterLab, and the scoreboard (lesson 00)."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len

from cookbook.errors import UsageError
from cookbook.evidence.rows import Rows, latest
from cookbook.measure.latency import Ratio, speedup
from cookbook.measure.measurement import Measurement
from cookbook.measure.statistics import PairedComparison

MISSING = "—"
NOTHING_RECORDED = "Nothing was recorded yet."
WIDEST_TABLE = 120  # characters of plain text
CELL_WIDTHS = (60, 44, 36, 28, 22, 18)  # a longer cell goes on in the next line; the first width that fits is taken
SCOREBOARD_BATCHES = (1, 64)
GLUE = "\N{NO-BREAK SPACE}"
NUMBER = re.compile(r"(— \()?[+\-−]?\d")


@dataclass(frozen=True, repr=False)
class Table:
    """Cells that show themselves: aligned text where printed, an HTML table as a cell's last expression.

    Attributes:
        columns: the header.
        rows: one sequence of cells a row, as long as `columns`; white space in a cell becomes one blank.
        note: lines below the table.
        title: above the table; the caption in HTML.

    Raises:
        UsageError: a row is shorter or longer than the header.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UsageError(f"A row has {len(row)} cells, the header {len(self.columns)}: give every column a cell.")
        object.__setattr__(self, "columns", tuple(map(_one_line, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(_one_line, row)) for row in self.rows))

    def _numeric(self) -> list[bool]:
        """Say of each column whether it holds nothing but numbers, which are aligned on the right; the first names rows."""
        cells = [[row[at] for row in self.rows if row[at] != MISSING] for at in range(len(self.columns))]
        return [at > 0 and bool(column) and all(map(NUMBER.match, column)) for at, column in enumerate(cells)]

    def __str__(self) -> str:
        for limit in CELL_WIDTHS:
            wrapped = [[_wrap(cell, limit) for cell in row] for row in (self.columns, *self.rows)]
            widths = [max(cell_len(line) for row in wrapped for line in row[at]) for at in range(len(self.columns))]
            if sum(widths) + 2 * len(widths) <= WIDEST_TABLE:
                break
        lines = [self.title] if self.title else []
        for number, row in enumerate(wrapped):
            for parts in zip_longest(*row, fillvalue=""):
                cells = zip(parts, widths, self._numeric(), strict=True)
                lines.append("  ".join(_pad(text, width, right) for text, width, right in cells).rstrip())
            if number == 0:
                lines.append("  ".join("─" * width for width in widths))
        return "\n".join([*lines, *self.note.splitlines()])

    __repr__ = __str__  # a notebook keeps it as the plain text beside the HTML

    def to_markdown(self) -> str:
        """Return the table as GitHub shows it; the note follows as text, the title is left to the page."""
        sides = ["---:" if number else ":---" for number in self._numeric()]
        lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (self.columns, sides, *self.rows)]
        note = ["", *self.note.splitlines()] if self.note else []
        return "\n".join([*(f"| {line} |" for line in lines), *note])

    def _repr_html_(self) -> str:
        """Return the table for JupyterLab; it takes its colours from the page, light or dark."""
        aligned = [f"text-align: {'right' if number else 'left'}" for number in self._numeric()]

        def cell(at: int, text: str, tag: str, scope: str = "") -> str:
            return f'<{tag}{scope} style="{aligned[at]}">{html.escape(text)}</{tag}>'

        head = "".join(cell(at, text, "th", ' scope="col"') for at, text in enumerate(self.columns))
        body = "".join(
            "<tr>"
            + "".join(cell(at, text, *(("td",) if at else ("th", ' scope="row"'))) for at, text in enumerate(row))
            + "</tr>"
            for row in self.rows
        )
        caption = (
            f'<caption style="caption-side: top; text-align: left">{html.escape(self.title)}</caption>' if self.title else ""
        )
        note = "".join(f"<p>{html.escape(line)}</p>" for line in self.note.splitlines())
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def scoreboard(
    measurements: Iterable[Measurement],
    baseline: Measurement | str | None = None,
    *,
    comparisons: Mapping[str, PairedComparison] | None = None,
) -> Table:
    """Compare candidates in every dimension; of repeated measurements the newest counts.

    Rows that hold nothing but the time of a training step belong to another table and are left out.
    Accuracy comes with Wilson's 95 % interval. Latency is a ratio to the baseline's (above 1 is
    faster) with its bootstrap interval, and the median in milliseconds; a ratio appears only where
    both were timed in turns within one run.

    Args:
        measurements: for example from `Ledger.measurements`.
        baseline: a row of `measurements` or its subject; the first row by default.
        comparisons: by subject, the paired test of a candidate's accuracy against the baseline's.
            Counts of right predictions alone decide nothing, so there is no word without it.

    Raises:
        UsageError: `baseline` is not among the rows.
    """
    newest = latest(measurements)
    rows = Rows((row for row in newest if not _is_training_step(row)), newest.skipped)
    if not rows and baseline is None:
        return Table(("subject",), (), _notes(skipped_note(rows.skipped), "Nothing was measured yet."), "Scoreboard")
    reference = _find(rows, baseline)
    batches = sorted({batch for row in rows for batch in row.latency}) or list(SCOREBOARD_BATCHES)
    devices = {row.provenance.device for row in rows}
    columns = ["subject", "runtime", "accuracy", "parameters", "MACs", "bytes"]
    columns += [f"speed, batch {batch}" for batch in batches] + ["against the baseline"]
    table, apart = [], False
    for row in rows:
        ratios = {batch: _ratio(reference, row, batch) for batch in batches}
        apart = apart or any(ratios[batch] is None and batch in row.latency for batch in batches)
        table.append([
            row.subject + (" (quick)" if row.provenance.profile == "quick" else ""),
            row.runtime + (f", {row.provenance.device}" if len(devices) > 1 else ""),
            accuracy_text(row),
            quantity(row.parameters),
            quantity(row.macs),
            quantity(row.bytes, "B"),
            *(_speed(row, batch, ratios[batch]) for batch in batches),
            "baseline" if row is reference else _words(ratios, (comparisons or {}).get(row.subject)),
        ])  # fmt: skip
    threads = sorted({str(timing.threads) for row in rows for timing in row.latency.values()})
    note = _notes(
        f"Measured on {', '.join(sorted(set(map(_machine, rows))))}"
        + (f"; timed with threads: {', '.join(threads)}." if threads else "."),
        "(quick): from the quick profile, not evidence." if any(row.provenance.profile == "quick" for row in rows) else "",
        f"{MISSING} before a time: not timed together with the baseline in one run, so there is no ratio." if apart else "",
        skipped_note(rows.skipped),
    )
    return Table(columns, table, note, "Scoreboard")


def accuracy_text(row: Measurement) -> str:
    """Return the accuracy in percent with its interval; another split than test is named."""
    if row.accuracy is None or row.accuracy_interval is None:
        return MISSING
    low, high = row.accuracy_interval
    split = "" if row.split in (None, "test") else f" ({row.split})"
    return f"{row.accuracy:.2%} [{100 * low:.2f}, {100 * high:.2f}]{split}"


def quantity(value: float | None, unit: str = "") -> str:
    """Return a count to three digits with a decimal prefix, such as ``1.08 M`` or ``91.7 kB``."""
    if value is None:
        return MISSING
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            scaled = value / factor
            digits = max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def skipped_note(skipped: int) -> str:
    """Return the sentence on damaged lines of a ledger, empty when there are none."""
    return f"{skipped} damaged line{'s' * (skipped != 1)} skipped." if skipped else ""


def together(one: Measurement, other: Measurement) -> bool:
    """Say whether two measurements were taken in one run: the same lesson, machine and second."""
    runs = [(row.recorded, row.lesson, row.provenance.processor) for row in (one, other)]
    return runs[0] == runs[1]


def newest_run(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return those of the rows that were measured in one run with the last of them; of none, none."""
    return [row for row in rows if together(row, rows[-1])]


def _is_training_step(row: Measurement) -> bool:
    return row.step_seconds is not None and row.correct is None and not row.latency


def _machine(row: Measurement) -> str:
    device, processor = row.provenance.device, row.provenance.processor
    return f"{device} ({processor})" if device == "cpu" else device


def _find(rows: Rows[Measurement], baseline: Measurement | str | None) -> Measurement:
    if baseline is None:
        return rows[0]
    for row in rows:
        if baseline in (row, row.subject):
            return row
    name = baseline if isinstance(baseline, str) else baseline.subject
    raise UsageError(
        f"The baseline {name!r} is not among the rows: use one of {', '.join(row.subject for row in rows) or 'none'}."
    )


def _ratio(baseline: Measurement, row: Measurement, batch: int) -> Ratio | None:
    """Return the speed-up, or None where the two were not timed round by round in one run."""
    ours, theirs = row.latency.get(batch), baseline.latency.get(batch)
    if ours is None or theirs is None or not together(baseline, row):
        return None
    try:
        return speedup(theirs, ours)
    except UsageError:  # other rounds or threads: nothing to pair
        return None


def _speed(row: Measurement, batch: int, ratio: Ratio | None) -> str:
    timing = row.latency.get(batch)
    if timing is None:
        return MISSING
    return f"{ratio or MISSING} ({1e3 * timing.median:.3g} ms)"


def _words(ratios: Mapping[int, Ratio | None], comparison: PairedComparison | None) -> str:
    """Return the words of all comparisons that could be made."""
    parts = [f"accuracy {comparison.word} ({comparison.difference:+.2f} points)"] if comparison else []
    words = {batch: ratio.verdict() for batch, ratio in ratios.items() if ratio is not None}
    if len(words) == len(ratios) and len(set(words.values())) == 1:
        parts.append(f"speed {next(iter(words.values()))}")
    else:
        parts += [f"speed at batch {batch} {word}" for batch, word in words.items()]
    return ", ".join(parts) or MISSING


def _notes(*sentences: str) -> str:
    return "\n".join(filter(None, sentences))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", str(text)).strip()


def _wrap(text: str, limit: int) -> list[str]:
    """Break a cell into lines, but not within an interval or between a time and its unit."""
    glued = re.sub(r"\[[^]]*\]|\([^)]*ms\)", lambda found: found[0].replace(" ", GLUE), text)
    lines = textwrap.wrap(glued, limit, break_long_words=False, break_on_hyphens=False)
    return [line.replace(GLUE, " ") for line in lines] or [""]


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks
