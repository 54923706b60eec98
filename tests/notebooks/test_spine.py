"""The checks of a lesson find what is planted, and pass what is right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import spine
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def stream(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


def good() -> spine.Lesson:
    """Return a small lesson without a flaw."""
    cells = [
        new_markdown_cell("# 07 A title\n\nWhat it is about."),
        new_markdown_cell("| question | answer |\n|---|---|\n| how long | a minute |\n\nThe imports:"),
        new_code_cell("import torch", execution_count=1, outputs=[stream("profile quick | cpu\n")]),
        new_markdown_cell("## Shapes\n\nThis prints 3."),
        new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(3)", execution_count=2, outputs=[stream("3\n")]),
        new_markdown_cell("## What held and what did not\n\nThis prints 4."),
        new_code_cell("print(4)", execution_count=3, outputs=[stream("4\n")]),
        new_markdown_cell("## Your turn\n\nDo it."),
        new_markdown_cell("## Next\n\nLesson 08."),
    ]
    notebook = new_notebook(cells=cells)
    return spine.Lesson("07_a_title", notebook, copy.deepcopy(notebook))


def violations(lesson: spine.Lesson) -> dict[str, list[str]]:
    return {name: found for name, check in spine.CHECKS.items() if (found := check(lesson))}


def test_a_lesson_without_a_flaw_passes() -> None:
    assert violations(good()) == {}


Plant = Callable[[list[NotebookNode]], object]
FOLDER = "/" + "root"  # spelled apart, as in spine.py


def set_source(at: int, source: str) -> Plant:
    return lambda cells: cells[at].update(source=source)


def set_output(at: int, *outputs: NotebookNode) -> Plant:
    return lambda cells: cells[at].update(outputs=list(outputs))


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
PLANTED: list[tuple[str, Plant]] = [
    ("executed", lambda cells: cells[4].update(execution_count=None)),
    ("executed", lambda cells: cells[4].update(execution_count=5)),
    ("executed", set_output(6, ERROR)),
    ("checked", set_source(4, "print(3)")),
    ("checked", set_output(4)),
    ("checked", set_source(4, "# NBVAL_CHECK_OUTPUT\nprint(launch(work, ranks=2))")),
    ("title", set_source(0, "# 08 A title")),
    ("title", set_source(0, "# A title")),
    ("title", set_source(0, "Text\n\n# 07 A title")),
    ("fact_box", set_source(1, "The imports:")),
    ("fact_box", set_source(1, "a | b\n\nThe imports:")),
    ("imports", set_source(6, "import os")),
    ("imports", set_source(6, "def f():\n    from os import path\n    return path")),
    ("imports", set_source(2, "x = 1")),
    ("imports", set_source(2, "from torch import *")),
    ("imports", set_output(2, stream("torch 2.15.0\n"))),
    ("imports", set_output(2)),
    ("headings", set_source(7, "Your turn")),
    ("headings", set_source(8, "## Next steps")),
    ("headings", lambda cells: cells.append(cells.pop(7))),
    ("headings", set_source(8, "## Next\n\n## Next")),
    ("cell_length", set_source(6, "\n".join(f"a = {n}" for n in range(16)))),
    ("led_in", lambda cells: cells.insert(5, new_code_cell("b = 1", execution_count=3))),
    ("led_in", set_source(3, "## Shapes")),
    ("plain_python", set_source(6, "!ls")),
    ("plain_python", set_source(6, "files = !ls")),
    ("plain_python", set_source(6, "%matplotlib inline")),
    ("plain_python", set_source(6, "%%time\nx = 1")),
    ("plain_python", set_source(6, "get_ipython().run_line_magic('time', 'x')")),
    ("plain_python", set_source(6, "def (")),
    ("plain_python", set_source(6, "warnings.filterwarnings('ignore')")),
    ("plain_python", set_source(6, "with warnings.catch_warnings():\n    warnings.simplefilter('ignore')")),
    ("machine_paths", set_source(6, f"open('{FOLDER}/data')")),
    ("machine_paths", set_source(3, f"Look into `{FOLDER}`.")),
    ("machine_paths", set_output(6, stream(f"written to {FOLDER}/x\n"))),
    ("machine_paths", set_output(6, new_output("execute_result", data={"text/html": f"<b title='{FOLDER}/x'>x</b>"}))),
    ("machine_paths", set_output(6, stream("C:" + "\\Us" + "ers\\me\n"))),
    ("machine_paths", set_output(6, new_output("error", ename="E", evalue="x", traceback=[f'File "{FOLDER}/a.py"']))),
    ("quiet_outputs", set_output(6, stream(" 40%|████      | 4/10 [00:01<00:02, 3.1it/s]"))),
    ("quiet_outputs", set_output(6, stream("epoch ━━━━━━━━ 1/2"))),
    ("quiet_outputs", set_output(6, stream("one\rtwo"))),
    ("quiet_outputs", set_output(6, new_output("display_data", data={spine.WIDGET: {"model_id": "1"}}))),
    ("quiet_outputs", set_output(6, new_output("stream", name="stderr", text="x.py:1: UserWarning: old\n"))),
    ("twins_agree", set_source(7, "## Your turn\n\nDo that.")),
    ("twins_agree", lambda cells: cells[4].metadata.update(tags=["other"])),
    ("twins_agree", lambda cells: cells.append(new_markdown_cell("The end."))),
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=[f"{rule}-{number}" for number, (rule, _) in enumerate(PLANTED)])
def test_a_planted_violation_is_found(rule: str, plant: Plant) -> None:
    lesson = good()
    plant(lesson.notebook.cells)
    assert violations(lesson).get(rule), f"{rule} passed"


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _ in PLANTED} == set(spine.CHECKS)


ALLOWED: list[Plant] = [
    lambda cells: cells[6].update(outputs=[ERROR], metadata=NotebookNode(tags=["raises-exception"])),
    set_source(1, "> How long: a minute.\n\nThe imports:"),
    set_source(6, 'text = """\n%d images\n!\n"""'),
    set_source(6, "\n\n".join(f"a = {n}" for n in range(15))),
    set_source(3, "## Shapes\n\nRead and/or work; see https://example.org/home/page."),
    set_output(6, new_output("display_data", data={"image/png": FOLDER + "/AAAA"})),
    set_output(6, stream("99.9% of the images; 3 × faster\n")),
]


@pytest.mark.parametrize("plant", ALLOWED, ids=range(len(ALLOWED)))
def test_what_is_right_is_not_reported(plant: Plant) -> None:
    lesson = good()
    plant(lesson.notebook.cells)
    assert set(violations(lesson)) <= {"twins_agree"}
