"""Notebooks and their py:percent twins: read, execute, normalize, compare (lesson 00 explains the pair).

``notebooks/src/NN_name.py`` is what an author edits and a reviewer reads; ``notebooks/NN_name.ipynb``
is built from it, executed, and committed with its outputs. The command:

    python -m cookbook.notebooks              build and execute every lesson
    python -m cookbook.notebooks 00 01        only these
    python -m cookbook.notebooks --check      compare the twins, execute nothing
    python -m cookbook.notebooks --to-twin 00 write the twin from a notebook edited in JupyterLab

Source of the pairing: https://jupytext.readthedocs.io; of the execution: https://nbclient.readthedocs.io.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from cookbook.errors import CookbookError, UsageError
from cookbook.execution import KERNEL, LessonError, execute, notebooks_directory, pick_lessons, read_notebook, write_notebook
from cookbook.files import atomic_path

KEPT_CELL_METADATA = ("tags", "nbgrader")
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
TWIN_FILTERS = {"cell_metadata_filter": "tags,nbgrader,-all", "notebook_metadata_filter": "-all"}


def build(twin: Path) -> NotebookNode:
    """Return the notebook, without outputs, that a py:percent file describes.

    Raises:
        LessonError: the file is missing or not UTF-8 text.
    """
    if not twin.is_file():
        raise LessonError(twin.stem, None, f"{twin} is missing: restore it, or write it from the notebook with --to-twin.")
    try:
        return normalize(jupytext.reads(twin.read_text(encoding="utf-8"), fmt="py:percent"))
    except UnicodeDecodeError as error:
        raise LessonError(twin.stem, None, f"{twin} is not UTF-8 text: save it as UTF-8.") from error


def twin_text(notebook: NotebookNode) -> str:
    """Return the py:percent text of `notebook`: sources, tags and nbgrader fields, no header."""
    copy = nbformat.from_dict({**notebook, "metadata": {"jupytext": TWIN_FILTERS, "kernelspec": KERNEL}})
    return jupytext.writes(copy, fmt="py:percent")


def differences(twin: NotebookNode, notebook: NotebookNode) -> list[str]:
    """Return a sentence for every cell whose type, source or tags differ; empty when the twins are equal."""
    found = [
        f"cell {number} differs ({', '.join(_differing(left, right))})"
        for number, (left, right) in enumerate(zip(twin.cells, notebook.cells, strict=False), start=1)
        if _differing(left, right)
    ]
    if len(twin.cells) != len(notebook.cells):
        found.append(f"the twin has {len(twin.cells)} cells, the notebook {len(notebook.cells)}")
    return found


def _differing(left: NotebookNode, right: NotebookNode) -> list[str]:
    parts = {"type": "cell_type", "source": "source"}
    found = [word for word, key in parts.items() if left[key] != right[key]]
    return found + [key for key in KEPT_CELL_METADATA if left.metadata.get(key) != right.metadata.get(key)]


def normalize(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook that holds only what a reader sees, so that a rerun changes only real changes.

    Execution counts become 1…n, consecutive outputs of one stream are joined, cell ids follow from
    position and source, and metadata is reduced to kernel, language, tags and nbgrader fields.
    """
    cells = []
    count = 0
    for position, cell in enumerate(notebook.cells):
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        metadata = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata}
        new = {"id": f"{position:02d}-{digest}", "cell_type": cell.cell_type, "metadata": metadata, "source": cell.source}
        if cell.cell_type == "code":
            executed = cell.execution_count is not None
            count += executed
            new["execution_count"] = count if executed else None
            new["outputs"] = _normalize_outputs(cell.outputs, new["execution_count"])
        cells.append(new)
    metadata = {"kernelspec": KERNEL, "language_info": LANGUAGE}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})


def _normalize_outputs(outputs: Sequence[NotebookNode], count: int | None) -> list[dict[str, object]]:
    kept: list[dict[str, object]] = []
    for output in outputs:
        new = {key: value for key, value in output.items() if key != "transient"}
        if "metadata" in new:
            new["metadata"] = {}
        if "execution_count" in new:
            new["execution_count"] = count
        last = kept[-1] if kept else {}
        if new["output_type"] == "stream" and last.get("output_type") == "stream" and last["name"] == new["name"]:
            last["text"] = f"{last['text']}{new['text']}"
        else:
            kept.append(new)
    return kept


def rebuild(path: Path) -> None:
    """Build a lesson from its twin, execute it, and replace the committed notebook.

    Args:
        path: the notebook; its twin is ``src/NAME.py`` beside it. It is untouched when a cell fails.

    Raises:
        LessonError: there is no twin, or a cell failed.
    """
    notebook = build(twin_of(path))
    execute(notebook, path.parent, name=path.stem, environment={"COOKBOOK_PROGRESS": "off"})
    write_notebook(normalize(notebook), path)


def twin_of(path: Path) -> Path:
    """Return where the twin of the notebook `path` belongs."""
    return path.parent / "src" / f"{path.stem}.py"


def check(path: Path) -> None:
    """Compare a committed notebook with its twin.

    Raises:
        LessonError: a side is missing, or a cell differs.
    """
    found = differences(build(twin_of(path)), read_notebook(path))
    if found:
        advice = "rebuild the notebook, or take its edits over with --to-twin"
        raise LessonError(path.stem, None, f"the twins differ: {'; '.join(found)}: {advice}.")


def to_twin(path: Path) -> None:
    """Write the twin from the notebook `path`, after an edit in JupyterLab.

    Raises:
        LessonError: the notebook cannot be read.
    """
    text = twin_text(read_notebook(path))
    with atomic_path(twin_of(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m cookbook.notebooks``; return 0, 1 when a lesson failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m cookbook.notebooks", description="Build each lesson from its twin in src/, execute it, normalize it."
    )
    parser.add_argument("names", nargs="*", metavar="LESSON", help="number or name, such as 00; all by default")
    parser.add_argument("--folder", type=Path, default=notebooks_directory(), help="where the notebooks are")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_const", dest="step", const=check, help="compare the twins, execute nothing")
    mode.add_argument("--to-twin", action="store_const", dest="step", const=to_twin, help="write the twins from the notebooks")
    parser.set_defaults(step=rebuild)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    stems = {path.stem for pattern in ("[0-9][0-9]_*.ipynb", "src/[0-9][0-9]_*.py") for path in folder.glob(pattern)}
    try:
        lessons = pick_lessons({stem: folder / f"{stem}.ipynb" for stem in sorted(stems)}, options.names, folder)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    failures = 0
    for path in lessons:
        try:
            options.step(path)
            print(f"{path.stem}: done", flush=True)
        except CookbookError as error:
            failures += 1
            print(error, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted: the lesson that was running keeps its committed notebook.", file=sys.stderr)
        sys.exit(130)
