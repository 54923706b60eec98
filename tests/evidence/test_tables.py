"""Tables as text and as HTML, and the scoreboard."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from ledger_rows import LATER, measurement, origin, timing

from cookbook.errors import UsageError
from cookbook.evidence import Rows, Table, scoreboard
from cookbook.evidence.tables import WIDEST_TABLE, quantity
from cookbook.measure.latency import speedup
from cookbook.measure.statistics import compare_paired, wilson_interval


class Cells(HTMLParser):
    """Collects rows, caption, notes and the scopes of the header cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scopes: list[str | None] = []
        self.texts: dict[str, list[str]] = {"caption": [], "p": []}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self.scopes += [value for name, value in attrs if name == "scope"]
        assert not any("color" in (value or "") or "background" in (value or "") for _, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        else:
            self.texts[self.open[-1]].append(data)


def cells_of_text(text: str, columns: int) -> list[list[str]]:
    """Cut printed rows at the columns that the ruler below the header marks."""
    lines = text.splitlines()
    ruler = next(line for line in lines if set(line) == {"─", " "})
    starts = [at for at, mark in enumerate(ruler) if mark == "─" and (at == 0 or ruler[at - 1] == " ")]
    assert len(starts) == columns
    ends = [*(start - 2 for start in starts[1:]), None]
    return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines if line != ruler]


def test_text_and_html_show_the_same_cells() -> None:
    table = Table(("name", "speed"), [("a <b> & 'c'", "2.41×"), ("größer", "—"), ("x", "11.00×")])
    expected = [list(table.columns), *map(list, table.rows)]
    assert cells_of_text(str(table), 2) == expected
    assert Cells(table._repr_html_()).rows == expected


def test_html_has_a_caption_scopes_and_the_note_and_escapes_everything() -> None:
    table = Table(("<i>", "n"), [("<script>", "1"), ("b", "2")], note="one & two\nthree <", title="A < B")
    found = Cells(table._repr_html_())
    assert found.texts == {"caption": ["A < B"], "p": ["one & two", "three <"]}
    assert found.scopes == ["col", "col", "row", "row"]
    assert "<script>" not in table._repr_html_()


def test_numbers_stand_on_the_right_and_wide_letters_keep_the_columns() -> None:
    lines = str(Table(("name", "n", "end"), [("一二", "5", "x"), ("abcdef", "1,234", "y")], title="T", note="N")).splitlines()
    assert lines == [
        "T",
        "name        n  end",
        "──────  ─────  ───",
        "一二        5  x",
        "abcdef  1,234  y",
        "N",
    ]


def test_a_long_cell_goes_on_in_the_next_line_without_losing_a_word() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    text = str(Table(("id", "what", "why"), [("x-01", words, f"{words} [1.00, 2.00]"), ("x-02", "short", "1")]))
    assert max(map(len, text.splitlines())) <= WIDEST_TABLE
    rows = cells_of_text(text, 3)
    last = next(at for at, row in enumerate(rows) if row[0] == "x-02")
    assert " ".join(row[1] for row in rows[1:last]).split() == words.split()
    assert any("[1.00, 2.00]" in row[2] for row in rows)  # an interval is not torn


def test_white_space_in_a_cell_cannot_break_the_table() -> None:
    table = Table(("a", "b"), [("two\nlines", "tab\there ")])
    assert table.rows == (("two lines", "tab here"),)


def test_every_row_needs_a_cell_for_each_column() -> None:
    with pytest.raises(UsageError, match="2 cells, the header 3"):
        Table(("a", "b", "c"), [("1", "2")])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "—"), (0, "", "0"), (999, "B", "999 B"), (1000, "B", "1.00 kB"), (91_681, "B", "91.7 kB"),
        (999_499, "", "999 k"), (999_501, "", "1.00 M"), (1_081_898, "", "1.08 M"), (9_995, "", "10.0 k"),
        (30_812_345, "", "30.8 M"), (4_100_000_000, "", "4.10 G"),
    ],
)  # fmt: skip
def test_quantities_have_three_digits_and_a_decimal_prefix(value: int | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def cell(table: Table, subject: str, column: str) -> str:
    row = next(row for row in table.rows if row[0] == subject)
    return row[list(table.columns).index(column)]


def test_the_scoreboard_shows_ratios_to_the_first_row_and_milliseconds() -> None:
    base, fast = measurement("base", 2.0), measurement("fast", 0.5, runtime="ONNX Runtime", bytes=91_681)
    table = scoreboard([base, fast])
    ratio = speedup(base.latency[64], fast.latency[64])
    assert cell(table, "fast", "speed, batch 64") == f"{ratio} (20.4 ms)"
    assert cell(table, "base", "speed, batch 1").startswith("1.00×")
    assert cell(table, "base", "against the baseline") == "baseline"
    assert cell(table, "fast", "against the baseline") == "speed better"
    low, high = wilson_interval(9481, 10_000)
    assert cell(table, "base", "accuracy") == f"94.81% [{100 * low:.2f}, {100 * high:.2f}]"
    row = ["fast", "ONNX Runtime", cell(table, "base", "accuracy"), "1.08 M", "30.8 M", "91.7 kB"]
    assert list(table.rows[1][:6]) == row
    assert "no ratio" not in table.note
    assert "cpu (a processor); timed with threads: 1" in table.note


def test_another_baseline_turns_the_ratios_round() -> None:
    base, fast = measurement("base", 2.0), measurement("fast", 0.5)
    for chosen in ("fast", fast):
        table = scoreboard([base, fast], chosen)
        assert cell(table, "base", "speed, batch 1").startswith("0.25×")
        assert cell(table, "base", "against the baseline") == "speed worse"
    with pytest.raises(UsageError, match="'other' is not among the rows: use one of base, fast"):
        scoreboard([base, fast], "other")
    with pytest.raises(UsageError, match="'gone' is not among the rows"):
        scoreboard([base, fast], measurement("gone"))


@pytest.mark.parametrize(
    "changes",
    [
        {"recorded": LATER},
        {"lesson": "01"},
        {"provenance": origin(processor="another")},
        {"latency": {1: timing(1.0, rounds=7), 64: timing(40.0, rounds=7, batch=64)}},
    ],
    ids=["another time", "another lesson", "another machine", "other rounds"],
)
def test_no_ratio_of_what_was_not_timed_together(changes: dict[str, Any]) -> None:
    table = scoreboard([measurement("base"), measurement("alone", 1.0, **changes)])
    assert cell(table, "alone", "speed, batch 1").startswith("— (")
    assert cell(table, "alone", "speed, batch 1").endswith(" ms)")
    assert cell(table, "alone", "against the baseline") == "—"
    assert "not timed together with the baseline" in table.note


def test_what_was_not_measured_is_missing_and_not_guessed() -> None:
    bare = measurement("bare", correct=None, images=None, parameters=None, macs=None, bytes=None, latency={})
    table = scoreboard([measurement("base"), bare])
    assert list(table.rows[1][2:]) == ["—"] * 7
    assert "no ratio" not in table.note
    assert list(scoreboard([bare]).columns[6:8]) == ["speed, batch 1", "speed, batch 64"]


def test_accuracy_gets_a_word_only_from_a_paired_test() -> None:
    rows = [measurement("base"), measurement("better", correct=9900), measurement("other", correct=9000)]
    assert "accuracy" not in cell(scoreboard(rows), "better", "against the baseline")
    wrong, right = torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)
    table = scoreboard(rows, comparisons={"better": compare_paired(wrong, right)})
    assert cell(table, "better", "against the baseline") == "accuracy better (+100.00 points), speed no difference"
    assert cell(table, "other", "against the baseline") == "speed no difference"


def test_batches_that_disagree_are_named() -> None:
    mixed = measurement("mixed", latency={1: timing(1.0), 64: timing(160.0, batch=64)})
    table = scoreboard([measurement("base", 2.0), mixed])
    assert cell(table, "mixed", "against the baseline") == "speed at batch 1 better, speed at batch 64 worse"


def test_quick_rows_other_splits_and_devices_are_labelled() -> None:
    rows = [
        measurement("base"),
        measurement("quick one", provenance=origin("quick"), split="validation"),
        measurement("gpu one", provenance=origin(device="cuda (a GPU)")),
    ]
    table = scoreboard(rows)
    assert [row[0] for row in table.rows] == ["base", "quick one (quick)", "gpu one"]
    assert "not evidence" in table.note
    assert cell(table, "quick one (quick)", "accuracy").endswith("(validation)")
    assert [row[1] for row in table.rows] == ["torch eager, cpu", "torch eager, cpu", "torch eager, cuda (a GPU)"]
    assert "not evidence" not in scoreboard(rows[:1]).note
    assert scoreboard(rows[:1]).rows[0][1] == "torch eager"


def test_of_repeated_measurements_the_newest_is_shown() -> None:
    rows = [measurement("base"), measurement("base", correct=5000, recorded=LATER)]
    table = scoreboard(rows)
    assert [row[2][:6] for row in table.rows] == ["50.00%"]


def test_damaged_lines_are_said_below_the_scoreboard() -> None:
    assert "2 damaged lines skipped." in scoreboard(Rows([measurement()], skipped=2)).note
    assert "1 damaged line skipped." in str(scoreboard(Rows([], skipped=1)))
    assert "skipped" not in scoreboard([measurement()]).note
    assert "Nothing was measured yet." in str(scoreboard([]))
