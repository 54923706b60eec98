"""A process that appends rows beside others: LEDGER START WRITER COUNT. Every other row is written in pieces."""

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

whole_write = os.write


def write_a_piece(descriptor: int, data: bytes) -> int:
    time.sleep(0.0005)  # the other writers get their chance
    return whole_write(descriptor, data[:PIECE])


def main() -> None:
    path, start, writer, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    print("ready", flush=True)
    while not start.exists():
        time.sleep(0.001)
    ledger = Ledger(path)
    for number in range(count):
        module.os.write = write_a_piece if number % 2 else whole_write
        ledger.append(evidence(note=f"{writer}/{number} {PAYLOAD}"))


if __name__ == "__main__":
    main()
