"""`cookbook record`: measure what the project ships, and commit to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def record(
    threads: Annotated[int, typer.Option(help="CPU threads of both runtimes.")] = 1,
    rounds: Annotated[int, typer.Option(help="Samples of every latency.")] = 30,
    readme: Annotated[Path | None, typer.Option(help="Bring the numbers of this file in step.")] = None,
) -> None:
    """Measure the shipped baseline in the full profile and append it to the committed evidence.

    Run it on an idle machine; it takes a few minutes.

    Set COOKBOOK_PROFILE=full.

    Example: cookbook record --readme README.md
    """
    from cookbook.evidence import Ledger, scoreboard
    from cookbook.record import record_baseline, write_numbers

    ledger = Ledger.recorded()
    print(scoreboard(record_baseline(ledger, threads=threads, rounds=rounds)))
    print(f"Written to {ledger.path}.")
    if readme is not None:
        write_numbers(readme, ledger)
        print(f"{readme} quotes the ledger.")
