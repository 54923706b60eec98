"""`cookbook doctor`: the machine's state on one page."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cookbook import __version__
from cookbook.doctor import Finding, Level, Probe, diagnose, summary
from cookbook.probe import redacted
from cookbook.progress import progress_wanted

STYLES: dict[Level, str] = {"problem": "bold red", "note": "yellow", "ok": "green"}  # in the order of the page


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print findings and raw facts as JSON, for an issue report.")] = False,
) -> None:
    """Say whether this machine trains on its GPU and, if not, why; look at all that a lesson needs besides.

    The page begins with what stands in the way: every finding is a 'problem', a 'note' or 'ok', with what mends
    it. The JSON names neither your user nor your home folder. Exit status: 0 without a problem, else 1.

    Example: cookbook doctor --json
    """
    waiting = Console(stderr=True)
    with waiting.status("Looking at this machine …") if progress_wanted(waiting) else contextlib.nullcontext():
        probe = Probe.collect()
    findings = diagnose(probe)
    headline = redacted(summary(probe, findings))
    if as_json:
        content = {
            "cookbook": __version__,
            "summary": headline,
            "findings": [redacted(asdict(finding)) for finding in findings],
            "facts": probe.to_dict(),
        }
        print(json.dumps(content, indent=2))
    else:
        print_page(headline, findings, Console())
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def print_page(headline: str, findings: list[Finding], console: Console) -> None:
    """Print the headline, one row a finding with its remedy below the message, and the number of problems.

    Args:
        headline: the answer in one sentence.
        findings: problems go first, then notes; within each, the order is kept.
        console: where to print, at its width.
    """
    console.print(Text(headline, style="bold"))
    grid = Table.grid(padding=(0, 2))
    levels = list(STYLES)
    for finding in sorted(findings, key=lambda finding: levels.index(finding.level)):
        text = Text(redacted(finding.message))
        if finding.remedy:
            text.append(f"\n→ {redacted(finding.remedy)}")
        grid.add_row(Text(finding.level, style=STYLES[finding.level]), Text(finding.subject), text)
    console.print()
    console.print(grid)
    problems = sum(finding.level == "problem" for finding in findings)
    console.print(f"\n{problems or 'No'} problem{'s' * (problems != 1)} found.", highlight=False)
