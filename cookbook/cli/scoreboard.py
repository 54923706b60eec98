"""`cookbook scoreboard`: what was measured, as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence import Ledger
from cookbook.evidence import scoreboard as make_table
from cookbook.files import atomic_path

FIGURE_FORMATS = (".png", ".svg", ".pdf")


def scoreboard(
    ledger: Annotated[Path | None, typer.Option(help="A ledger file; by default this machine's own.")] = None,
    recorded: Annotated[bool, typer.Option("--recorded", help="The evidence that was committed with the project.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Also draw accuracy against latency: a .png, .svg or .pdf file.")] = None,
) -> None:
    """Print what was measured of every candidate, as ratios to the first row.

    Without an option the ledger is the one that COOKBOOK_LEDGER names, or the one in the cache folder.

    Example: cookbook scoreboard --ledger build/course/ledger.jsonl --figure scoreboard.png
    """
    if ledger is not None and recorded:
        raise UsageError("--ledger and --recorded name two sources: give one of them.")
    if ledger is not None and not ledger.is_file():
        raise UsageError(f"--ledger is {ledger}, which is not a file: name a ledger such as build/course/ledger.jsonl.")
    if figure is not None and figure.suffix.lower() not in FIGURE_FORMATS:
        raise UsageError(f"--figure is {figure}: name a file that ends in {', '.join(FIGURE_FORMATS)}.")
    source = Ledger(ledger) if ledger is not None else Ledger.recorded() if recorded else Ledger.local()
    measured = source.measurements()
    if not measured:
        raise EvidenceError(f"{source.path} holds no measurement: run 'cookbook course', or name another file with --ledger.")
    print(make_table(measured))
    if figure is not None:
        from cookbook.plots import scoreboard_figure  # matplotlib takes a second to load

        with atomic_path(figure) as temporary:
            scoreboard_figure(measured).savefig(temporary, format=figure.suffix[1:].lower(), bbox_inches="tight")
        print(f"{figure} written.")
