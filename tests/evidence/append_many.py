"""Appends rows beside another process: LEDGER WRITER COUNT. Every other row is written in pieces."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ledger_rows import evidence

from cookbook.evidence import Ledger
from cookbook.evidence import ledger as module

PAYLOAD = "x" * 10_000  # more than a page
PIECE = 1500


def append_rows(path: Path, writer: str, count: int) -> None:
    """Append `count` rows whose notes begin with writer/number."""
    whole_write = os.write

    def write_a_piece(descriptor: int, data: bytes) -> int:
        time.sleep(0.0005)  # the other writer gets its chance
        return whole_write(descriptor, data[:PIECE])

    ledger = Ledger(path)
    try:
        for number in range(count):
            module.os.write = write_a_piece if number % 2 else whole_write
            ledger.append(evidence(note=f"{writer}/{number} {PAYLOAD}"))
    finally:
        module.os.write = whole_write


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()  # both begin together
    append_rows(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
