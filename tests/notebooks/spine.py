"""What every committed lesson keeps to, as functions that return the violations they find.

`CHECKS` maps the name of a rule to a function of a `Lesson`; each returns one sentence a violation.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from cookbook.execution import code_cells
from cookbook.notebooks import differences

LONGEST_CELL = 15
CHECKED = "# NBVAL_CHECK_OUTPUT"
CLOSING_HEADINGS = ("What held and what did not", "Your turn", "Next")

MAGIC = re.compile(r"^\s*(?:\w+\s*=\s*)?[!%]", re.MULTILINE)
WARNINGS_FILTER = re.compile(r"\b(?:filterwarnings|simplefilter|captureWarnings|PYTHONWARNINGS)\b")
LAUNCH = re.compile(r"\blaunch\(")
STAMP = re.compile(r"\bprofile (?:quick|full)\b")
# the folders are spelled apart, so that a search for machine paths does not find this file
MACHINE_FOLDERS = ("root", "home", "Users", "tmp", "work", "workspace", "var", "mnt", "content", "private", "scratch")
MACHINE_PATH = re.compile(r"(?<![\w.:/>-])/(?:" + "|".join(MACHINE_FOLDERS) + r")(?![\w-])|\b[A-Za-z]:\\\w")
PROGRESS = re.compile(r"\d%\|| [━╸╺]{3}|[█▏▎▍▌▋▊▉]{3}|\bit/s\b|\bs/it\b|\r")
WARNING = re.compile(r"\b\w*Warning\b|\bWARNING\b")
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Lesson:
    """A committed notebook, its name (``00_start_here``), and the notebook that its twin describes."""

    name: str
    notebook: NotebookNode
    twin: NotebookNode


def executed(lesson: Lesson) -> list[str]:
    """Every code cell ran, in order, and none failed that is not tagged raises-exception."""
    found = []
    for number, cell in enumerate(code_cells(lesson.notebook), start=1):
        if cell.execution_count != number:
            found.append(f"code cell {number} has the execution count {cell.execution_count}")
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed and "raises-exception" not in cell.metadata.get("tags", []):
            found.append(f"code cell {number} ended with an error")
    return found if code_cells(lesson.notebook) else ["there is no code cell"]


def checked(lesson: Lesson) -> list[str]:
    """At least one cell is compared by nbval and has an output to compare; none launches ranks."""
    marked = [cell for cell in code_cells(lesson.notebook) if CHECKED in map(str.strip, cell.source.splitlines())]
    if not marked:
        return [f"no cell is marked {CHECKED}"]
    if any(LAUNCH.search(cell.source) for cell in marked):  # torch logs more where no network names the host
        return [f"a cell marked {CHECKED} launches ranks"]
    return [] if any(cell.outputs for cell in marked) else [f"no cell marked {CHECKED} has an output"]


def title(lesson: Lesson) -> list[str]:
    """The first cell begins with ``# NN Title``, with the file's number."""
    first = lesson.notebook.cells[0]
    if first.cell_type == "markdown" and re.match(rf"# {re.escape(lesson.name[:2])} \S", first.source):
        return []
    return [f"the first cell does not begin with '# {lesson.name[:2]} Title'"]


def fact_box(lesson: Lesson) -> list[str]:
    """A table or a block quote stands in the first or the second cell."""
    for cell in lesson.notebook.cells[:2]:
        if cell.cell_type == "markdown" and re.search(r"^(?:>|\|.*\|\s*\n\|[ :|-]+\|)", cell.source, re.MULTILINE):
            return []
    return ["neither of the first two cells holds a fact box (a table or a block quote)"]


def imports(lesson: Lesson) -> list[str]:
    """The first code cell holds all imports, none of them with a star, and stamps the profile."""
    found = []
    for number, cell in enumerate(code_cells(lesson.notebook), start=1):
        names = [node for node in _nodes(cell) if isinstance(node, ast.Import | ast.ImportFrom)]
        if number == 1 and not names:
            found.append("the first code cell imports nothing")
        if number > 1 and names:
            found.append(f"code cell {number} imports")
        if any(alias.name == "*" for node in names for alias in node.names):
            found.append(f"code cell {number} imports *")
        if number == 1 and not STAMP.search(_text_of(cell)):
            found.append("the output of the first code cell does not stamp the profile")
    return found


def headings(lesson: Lesson) -> list[str]:
    """The closing sections are there, once each and in order."""
    lines = [line for cell in lesson.notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    places = []
    for heading in CLOSING_HEADINGS:
        at = [number for number, line in enumerate(lines) if re.fullmatch(rf"##+ {re.escape(heading)}\W*", line.strip())]
        if len(at) != 1:
            return [f"the heading {heading!r} stands there {len(at)} times"]
        places += at
    return [] if places == sorted(places) else [f"the headings are not in the order {', '.join(CLOSING_HEADINGS)}"]


def cell_length(lesson: Lesson) -> list[str]:
    """A code cell has at most 15 lines that are not blank."""
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(lesson.notebook)]
    return [f"code cell {number} has {length} lines" for number, length in enumerate(lengths, 1) if length > LONGEST_CELL]


def led_in(lesson: Lesson) -> list[str]:
    """Before each code cell stands text, more than a heading."""
    found, number, before = [], 0, None
    for cell in lesson.notebook.cells:
        if cell.cell_type == "code":
            number += 1
            lines = before.source.splitlines() if before is not None and before.cell_type == "markdown" else []
            if not any(line.strip() and not line.startswith("#") for line in lines):
                found.append(f"code cell {number} is not led in by text")
        before = cell
    return found


def plain_python(lesson: Lesson) -> list[str]:
    """No shell command, no magic, no filter of warnings; every cell is Python."""
    found = []
    for number, cell in enumerate(code_cells(lesson.notebook), start=1):
        # a line of a string may begin with a percent sign: magic is what keeps a cell from being Python
        if (_tree(cell) is None and MAGIC.search(cell.source)) or "get_ipython" in cell.source:
            found.append(f"code cell {number} uses a magic or a shell command")
        elif _tree(cell) is None:
            found.append(f"code cell {number} is not Python")
        if WARNINGS_FILTER.search(cell.source):
            found.append(f"code cell {number} filters warnings")
    return found


def machine_paths(lesson: Lesson) -> list[str]:
    """Neither source nor output names a folder of the machine it ran on."""
    own = {str(Path.home()), str(Path(__file__).resolve().parents[2]), tempfile.gettempdir()} - {"/"}
    found = []
    for number, cell in enumerate(lesson.notebook.cells, start=1):
        for text in (cell.source, _text_of(cell)):
            match = MACHINE_PATH.search(text)
            leak = match.group() if match else next((path for path in own if path in text), None)
            if leak:
                found.append(f"cell {number} holds the machine path {leak!r}")
    return found


def quiet_outputs(lesson: Lesson) -> list[str]:
    """No progress bar, no widget and no warning is left in an output."""
    found = []
    for number, cell in enumerate(code_cells(lesson.notebook), start=1):
        text = _text_of(cell)
        if PROGRESS.search(text) or any(WIDGET in output.get("data", {}) for output in cell.outputs):
            found.append(f"the output of code cell {number} holds a progress bar or a widget")
        if WARNING.search(text):
            found.append(f"the output of code cell {number} holds a warning")
    return found


def twins_agree(lesson: Lesson) -> list[str]:
    """The py:percent twin has the same cells."""
    return differences(lesson.twin, lesson.notebook)


CHECKS: dict[str, Callable[[Lesson], list[str]]] = {
    check.__name__: check
    for check in (
        executed, checked, title, fact_box, imports, headings, cell_length, led_in, plain_python, machine_paths,
        quiet_outputs, twins_agree,
    )
}  # fmt: skip


def _text_of(cell: NotebookNode) -> str:
    """Return everything that a reader can read in the outputs of a cell; pictures are left out."""
    return "\n".join(_texts(cell))


def _texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        yield "\n".join([output.get("evalue", ""), *output.get("traceback", [])])
        for kind, content in output.get("data", {}).items():
            if kind.startswith("text/") or kind == "image/svg+xml":
                yield content if isinstance(content, str) else "".join(content)


def _tree(cell: NotebookNode) -> ast.Module | None:
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return None


def _nodes(cell: NotebookNode) -> Iterator[ast.AST]:
    tree = _tree(cell)
    return ast.walk(tree) if tree is not None else iter(())
