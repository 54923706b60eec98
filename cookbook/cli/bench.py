"""`cookbook bench`: the library's own costs, measured side by side."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def bench(
    threads: Annotated[int, typer.Option(help="CPU threads of torch and of ONNX Runtime.")] = 1,
    rounds: Annotated[int, typer.Option(help="Samples of each side.")] = 15,
    record: Annotated[
        bool, typer.Option("--record", help="Write to the committed evidence instead of this machine's ledger.")
    ] = False,
) -> None:
    """Print interleaved ratios: fit over a bare loop, resident loader over DataLoader, ONNX Runtime over torch, quantizers.

    Run it on an idle machine; it takes a few minutes.

    Example: cookbook bench --threads 1
    """
    from cookbook.bench import run_bench
    from cookbook.evidence import Ledger

    ledger = Ledger.recorded() if record else Ledger.local()
    console = Console(highlight=False)
    for row in run_bench(threads=threads, rounds=rounds):
        ledger.append(row)
        console.print(f"{row.name:24} {row.ratio}  {row.what}", soft_wrap=True)
    console.print(f"Written to {ledger.path}.", soft_wrap=True)
