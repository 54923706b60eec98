"""`cookbook record`: measure what the project ships, or what it claims of GPUs, and commit to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cookbook.errors import CookbookError, UsageError

GPU = "With --gpu"


def record(
    threads: Annotated[int, typer.Option(help="CPU threads of both runtimes.")] = 1,
    rounds: Annotated[int, typer.Option(help="Samples of every latency.")] = 30,
    readme: Annotated[Path | None, typer.Option(help="Bring the numbers and the figure of this file in step.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure the baseline anew; without, only --readme is served.")] = True,
    gpu: Annotated[bool, typer.Option("--gpu", help="Record the claims on GPUs instead of the baseline.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Ledger to append to; the committed one by default.", rich_help_panel=GPU)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cuda:N; cuda by default.", rich_help_panel=GPU)] = None,
    minutes: Annotated[float, typer.Option(help="Begin no part that would not fit into this.", rich_help_panel=GPU)] = 8.0,
    only: Annotated[str | None, typer.Option(help="Parts to record, with commas between.", rich_help_panel=GPU)] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run every part in tiny, on a CPU, for a throwaway ledger.", rich_help_panel=GPU)
    ] = False,
) -> None:
    """Measure the shipped baseline in the full profile and append it to the committed evidence.

    With --gpu, measure what the course claims of GPUs instead: all of it in under eight minutes on one H100.
    Rows are written as they are measured, so that an interrupted run keeps what it has.

    Run it on an idle machine with COOKBOOK_PROFILE=full; a rehearsal needs neither.

    Example: cookbook record --readme README.md

    Example: cookbook record --no-measure --readme README.md

    Example: cookbook record --gpu --only amp,speedrun
    """
    if not measure and (gpu or readme is None):
        raise UsageError("--no-measure only brings a file in step: name it with --readme, and leave --gpu out.")
    if gpu:
        _record_gpu(out, device, minutes, only, rehearse)
        return
    if out is not None or device is not None or only is not None or rehearse:
        raise UsageError("--out, --device, --only and --rehearse belong to the GPU evidence: add --gpu, or leave them out.")
    from cookbook.evidence import Ledger, scoreboard
    from cookbook.record import record_baseline, write_numbers

    ledger = Ledger.recorded()
    if measure:
        print(scoreboard(record_baseline(ledger, threads=threads, rounds=rounds)))
        print(f"Written to {ledger.path}.")
    if readme is not None:
        write_numbers(readme, ledger)
        print(f"{readme} quotes the ledger.")


def _record_gpu(out: Path | None, device: str | None, minutes: float, only: str | None, rehearse: bool) -> None:
    """Record the parts, and end with an error that names those that failed.

    Raises:
        UsageError: a part, device or profile does not fit, or a rehearsal would write to the committed ledger.
        CookbookError: a part failed.
    """
    from cookbook.accelerator import PARTS, choose_parts, make_setting, open_ledger, record_parts

    parts = choose_parts(PARTS, only)
    setting = make_setting(device, rehearse=rehearse)
    ledger = open_ledger(out, rehearse=rehearse)
    report = record_parts(parts, setting, ledger, minutes=minutes, say=lambda line: print(line, flush=True))
    print(f"{report.rows} rows written to {ledger.path}.")
    if report.left_out:
        print(f"Not recorded for lack of time: {', '.join(report.left_out)}.")
    if report.failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in report.failed.items())
        raise CookbookError(f"{len(report.failed)} of {len(parts)} parts failed: {reasons}.")
