"""The ledger: every measurement as one line of JSON, appended and never rewritten (lesson 00)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence.claims import load_claims
from cookbook.evidence.rows import KINDS, BenchRatio, ClaimEvidence, Row, Rows
from cookbook.files import cache_directory, data_directory
from cookbook.measure.measurement import Measurement

LOCKED_BYTE = 2**30  # Windows locks ranges of bytes: one far behind any content keeps the content readable


class Ledger:
    """A file of measurements, evidence for claims and ratios of the benchmark, one JSON object a line.

    Several processes may append at once: each row is written in one piece under a lock on the
    file and flushed to the disk. A line that a crash tore, or that is damaged in another way, is
    passed over and counted, and the next row begins on a line of its own.

    Args:
        path: of the file; a missing one reads as empty and is made by the first `append`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    @classmethod
    def local(cls) -> Ledger:
        """Return this machine's ledger: ``COOKBOOK_LEDGER``, else ``ledger.jsonl`` in the cache folder."""
        setting = os.environ.get("COOKBOOK_LEDGER")
        return cls(Path(setting).expanduser() if setting else cache_directory() / "ledger.jsonl")

    @classmethod
    def recorded(cls) -> Ledger:
        """Return the committed evidence: ``results/ledger.jsonl`` in the data folder."""
        return cls(data_directory() / "results" / "ledger.jsonl")

    def append(self, row: Row) -> None:
        """Add a row at the end; when this returns, the row is on the disk.

        Raises:
            UsageError: `row` is of another type, or names a claim that does not exist.
            EvidenceError: a number is not finite, or the file cannot be written.
        """
        kind = next((kind for kind, type_ in KINDS.items() if isinstance(row, type_)), None)
        if kind is None:
            raise UsageError(f"A ledger holds no {type(row).__name__}: pass a Measurement, a ClaimEvidence or a BenchRatio.")
        if isinstance(row, ClaimEvidence) and row.claim not in load_claims():
            raise UsageError(f"There is no claim {row.claim!r}: use an id from cookbook/evidence/claims.toml.")
        try:
            line = json.dumps({"kind": kind, **row.to_dict()}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except ValueError as error:
            raise EvidenceError(
                f"The row holds a number that is not finite ({error}): record None for what is unknown."
            ) from error
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file, _locked(file.fileno()):
                _append(file.fileno(), line)
        except OSError as error:
            raise EvidenceError(
                f"The ledger {self.path} cannot be written ({error.strerror}): check the path and the disk."
            ) from error

    def measurements(
        self, *, lesson: str | None = None, profile: str | None = None, subject: str | None = None, runtime: str | None = None
    ) -> Rows[Measurement]:
        """Return the measurements in the order of the file; each argument that is given must match."""
        wanted = {"lesson": lesson, "subject": subject, "runtime": runtime}
        rows, skipped = self._read()
        return Rows(
            (
                row for row in rows
                if isinstance(row, Measurement)
                and profile in (None, row.provenance.profile)
                and all(value in (None, getattr(row, name)) for name, value in wanted.items())
            ),
            skipped,
        )  # fmt: skip

    def claim_evidence(self, claim_id: str) -> Rows[ClaimEvidence]:
        """Return what was recorded for one claim, in the order of the file."""
        rows, skipped = self._read()
        return Rows((row for row in rows if isinstance(row, ClaimEvidence) and row.claim == claim_id), skipped)

    def bench(self) -> Rows[BenchRatio]:
        """Return the benchmark's ratios in the order of the file."""
        rows, skipped = self._read()
        return Rows((row for row in rows if isinstance(row, BenchRatio)), skipped)

    @property
    def skipped(self) -> int:
        """Number of lines that hold no row: torn, damaged, or of an unknown kind."""
        return self._read()[1]

    def _read(self) -> tuple[list[Row], int]:
        """Return every row that can be read, and the number of lines that cannot."""
        try:
            with self.path.open("rb") as file, _locked(file.fileno(), shared=True):
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise EvidenceError(
                f"The ledger {self.path} cannot be read ({error.strerror}): check the path and its permissions."
            ) from error
        rows: list[Row] = []
        skipped = 0
        for line in filter(bytes.strip, lines):
            row = _parse(line)
            if row is None:
                skipped += 1
            else:
                rows.append(row)
        return rows, skipped


def _parse(line: bytes) -> Row | None:
    """Return the row that a line holds, or None for a damaged one."""
    try:
        fields: Any = json.loads(line)
        return KINDS[fields.pop("kind")].from_dict(fields)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, EvidenceError):
        return None


def _append(descriptor: int, line: bytes) -> None:
    """Write `line` at the end in one piece, on a line of its own; on failure leave the file as it was."""
    end = os.fstat(descriptor).st_size
    if end:
        os.lseek(descriptor, end - 1, os.SEEK_SET)
        if os.read(descriptor, 1) != b"\n":
            line = b"\n" + line
    try:
        written = 0
        while written < len(line):  # one call unless the disk is full or a signal comes in between
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, end)
        raise


@contextlib.contextmanager
def _locked(descriptor: int, *, shared: bool = False) -> Iterator[None]:
    """Hold the operating system's lock on an open file; it also ends with the process.

    Args:
        shared: let other readers in (not on Windows).
    """
    if sys.platform == "win32":
        import msvcrt

        def lock(mode: int) -> None:
            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, mode, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)

        while True:
            try:
                lock(msvcrt.LK_NBLCK)
                break
            except PermissionError:
                time.sleep(0.01)
        try:
            yield
        finally:
            lock(msvcrt.LK_UNLCK)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
