"""Twins: what is read, written, normalized and compared; nothing here starts a kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook import notebooks
from cookbook.execution import LessonError, read_notebook, write_notebook
from cookbook.notebooks import build, check, differences, main, normalize, rebuild, to_twin, twin_of, twin_text

TWIN = """# %% [markdown]
# # 00 A lesson
#
# With text.

# %% tags=["raises-exception"]
print(1)

# %%
x = 2
x
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one lesson, executed by `pretend`, and its twin."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "00_lesson.py").write_text(TWIN, encoding="utf-8")
    notebook = build(tmp_path / "src" / "00_lesson.py")
    pretend(notebook)
    write_notebook(normalize(notebook), tmp_path / "00_lesson.ipynb")
    return tmp_path


def pretend(notebook: NotebookNode, *_: object, **__: object) -> None:
    """Fill outputs in as an execution would, with counts and pieces that normalizing has to put right."""
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count + 40
        cell.outputs = [new_output("stream", name="stdout", text=text) for text in ("1", "\n")]


def messy() -> NotebookNode:
    """Return a notebook with everything that differs from one run to the next."""
    png = {"image/png": {"width": 640, "height": 480}, "needs_background": "light"}
    cells = [
        new_markdown_cell("# Title", metadata={"editable": True, "tags": ["keep"]}),
        new_code_cell(
            "print(1)",
            execution_count=17,
            metadata={"execution": {"iopub.execute_input": "2026-11-01"}, "nbgrader": {"grade": True}},
            outputs=[
                new_output("stream", name="stdout", text="a\n"),
                new_output("stream", name="stdout", text="b\n"),
                new_output("stream", name="stderr", text="c\n"),
                new_output("stream", name="stdout", text="d\n"),
                new_output("display_data", data={"image/png": "AAAA"}, metadata=png),
            ],
        ),
        new_code_cell("never_run = 1"),
        new_code_cell(
            "2", execution_count=40, outputs=[new_output("execute_result", data={"text/plain": "2"}, execution_count=40)]
        ),
    ]
    metadata = {
        "widgets": {},
        "language_info": {"name": "python", "version": "3.11.7"},
        "kernelspec": {"name": "my-env", "display_name": "Mine"},
    }
    return new_notebook(cells=cells, metadata=metadata)


def test_normalizing_keeps_what_a_reader_sees() -> None:
    clean = normalize(messy())
    first, code, unrun, result = clean.cells
    assert [output.get("text") for output in code.outputs] == ["a\nb\n", "c\n", "d\n", None]
    assert (code.execution_count, unrun.execution_count, result.execution_count) == (1, None, 2)
    assert result.outputs[0].execution_count == 2
    assert (first.metadata, code.metadata) == ({"tags": ["keep"]}, {"nbgrader": {"grade": True}})
    assert code.outputs[3].metadata == {} and code.outputs[3].data == {"image/png": "AAAA"}
    assert clean.metadata.kernelspec.name == "python3"
    assert set(clean.metadata) == {"kernelspec", "language_info"} and "version" not in clean.metadata.language_info
    nbformat.validate(clean)


def test_normalizing_is_stable() -> None:
    once, again = normalize(messy()), normalize(messy())
    assert nbformat.writes(once) == nbformat.writes(again) == nbformat.writes(normalize(once))


def test_cell_ids_follow_from_position_and_source() -> None:
    base = normalize(messy())
    edited = messy()
    edited.cells[2].source = "changed = 1"
    assert [a.id == b.id for a, b in zip(base.cells, normalize(edited).cells, strict=True)] == [True, True, False, True]
    twice = normalize(new_notebook(cells=[new_code_cell("x"), new_code_cell("x")]))
    assert len({cell.id for cell in twice.cells}) == 2


def test_a_twin_and_its_notebook_are_equal(folder: Path) -> None:
    check(folder / "00_lesson.ipynb")
    notebook = read_notebook(folder / "00_lesson.ipynb")
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code"]
    assert notebook.cells[1].metadata.tags == ["raises-exception"]
    assert twin_text(notebook) == TWIN


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("x = 2", "x = 3", "source"),
        ("With text", "With words", "source"),
        ("raises-exception", "other", "tags"),
        ("# %%\nx = 2", "# %% [markdown]\n# x = 2", "type"),
        ("# %%\nx = 2\nx\n", "", "cells"),
    ],
)
def test_a_hand_edit_of_one_twin_is_found(
    folder: Path, old: str, new: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = folder / "src" / "00_lesson.py"
    twin.write_text(TWIN.replace(old, new), encoding="utf-8")
    assert main(["--check", "--folder", str(folder)]) == 1
    assert word in capsys.readouterr().err


def test_extra_cells_on_either_side_are_found() -> None:
    one, two = (new_notebook(cells=[new_code_cell("x") for _ in range(count)]) for count in (1, 2))
    assert differences(one, two) and differences(two, one) and not differences(one, one)


def test_rebuilding_writes_what_the_twin_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def run(notebook: NotebookNode, where: Path, **options: object) -> None:
        seen.update(options, where=where)
        pretend(notebook)

    monkeypatch.setattr(notebooks, "execute", run)
    (folder / "src" / "00_lesson.py").write_text(TWIN.replace("x = 2", "x = 3"), encoding="utf-8")
    assert main(["00", "--folder", str(folder)]) == 0
    cell = read_notebook(folder / "00_lesson.ipynb").cells[2]
    assert (cell.source, cell.execution_count, [output.text for output in cell.outputs]) == ("x = 3\nx", 2, ["1\n"])
    assert seen == {"where": folder, "name": "00_lesson", "environment": {"COOKBOOK_PROGRESS": "off"}}
    before = (folder / "00_lesson.ipynb").read_bytes()
    rebuild(folder / "00_lesson.ipynb")
    assert (folder / "00_lesson.ipynb").read_bytes() == before and b"\r" not in before and before.endswith(b"}\n")


def test_a_failing_cell_leaves_the_committed_notebook(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(notebook: NotebookNode, *_: object, **__: object) -> None:
        raise LessonError("00_lesson", 2, "NameError: name 'y' is not defined")

    monkeypatch.setattr(notebooks, "execute", fail)
    before = (folder / "00_lesson.ipynb").read_bytes()
    assert main(["--folder", str(folder)]) == 1
    assert capsys.readouterr().err == "00_lesson, cell 2: NameError: name 'y' is not defined\n"
    assert (folder / "00_lesson.ipynb").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["00_lesson.ipynb", "src"]


def test_a_lesson_begins_as_a_twin_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "execute", pretend)
    (folder / "src" / "01_new.py").write_text("# %%\nprint(1)\n", encoding="utf-8")
    assert main(["01_new", "--folder", str(folder)]) == 0
    assert read_notebook(folder / "01_new.ipynb").cells[0].source == "print(1)"


def test_an_edit_in_jupyterlab_goes_back_to_the_twin(folder: Path) -> None:
    path = folder / "00_lesson.ipynb"
    notebook = read_notebook(path)
    notebook.cells[2].source = "x = 4\nx"
    notebook.metadata["language_info"]["version"] = "3.99"
    write_notebook(notebook, path)
    to_twin(path)
    assert twin_of(path).read_text(encoding="utf-8") == TWIN.replace("x = 2", "x = 4")
    check(path)


def test_what_is_missing_or_damaged_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check", "--folder", str(folder)]
    (folder / "src" / "00_lesson.py").write_bytes(b"\xff\xfe\x00")
    assert main(arguments) == 1 and "is not UTF-8 text" in capsys.readouterr().err
    (folder / "src" / "00_lesson.py").unlink()
    assert main(arguments) == 1 and "00_lesson.py is missing" in capsys.readouterr().err
    (folder / "src" / "00_lesson.py").write_text(TWIN, encoding="utf-8")
    (folder / "00_lesson.ipynb").write_text("{", encoding="utf-8")
    assert main(arguments) == 1 and "is not a readable notebook" in capsys.readouterr().err
    (folder / "00_lesson.ipynb").unlink()
    assert main(arguments) == 1 and "00_lesson.ipynb is missing" in capsys.readouterr().err
    assert main([*arguments, "05"]) == 2 and "choose from 00_lesson" in capsys.readouterr().err
    assert main(["--folder", str(folder / "none")]) == 2 and "There is no lesson in" in capsys.readouterr().err
