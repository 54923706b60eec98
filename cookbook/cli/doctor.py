"""`cookbook doctor`: the machine's state on one page."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cookbook.doctor import Finding, Probe, diagnose

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print findings and raw facts as JSON, for a bug report.")] = False,
) -> None:
    """Look at Python, the libraries, the GPU, threads, data and folders, and say what to do.

    Every finding is 'ok', a 'note' or a 'problem'. Exit status: 0 without a problem, else 1.

    Example: cookbook doctor --json
    """
    probe = Probe.collect()
    findings = diagnose(probe)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "facts": probe.to_dict()}, indent=2))
    else:
        print_page(findings, Console())
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def print_page(findings: list[Finding], console: Console) -> None:
    """Print one row a finding, the remedy below its message, and the number of problems."""
    grid = Table.grid(padding=(0, 2))
    for finding in findings:
        text = Text(finding.message)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}")
        grid.add_row(Text(finding.level, style=STYLES[finding.level]), Text(finding.subject), text)
    console.print(grid)
    problems = sum(finding.level == "problem" for finding in findings)
    console.print(f"\n{problems or 'No'} problem{'s' * (problems != 1)} found.", highlight=False)
