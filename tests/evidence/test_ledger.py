"""The ledger: writers at once, torn and damaged lines, failed writes, filters."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from append_many import append_rows
from ledger_rows import bench_ratio, evidence, measurement, origin

from cookbook.errors import EvidenceError, UsageError
from cookbook.evidence import Ledger
from cookbook.evidence import ledger as module

ROWS = 100


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "results" / "ledger.jsonl")


def test_every_kind_of_row_comes_back_equal(ledger: Ledger) -> None:
    rows = [measurement("é ×", energy_joules=0.25), evidence(note='a "quoted"\nnote'), bench_ratio()]
    for row in rows:
        ledger.append(row)
    assert [*ledger.measurements(), *ledger.claim_evidence("measure-01"), *ledger.bench()] == rows
    assert ledger.skipped == 0
    assert [json.loads(line)["kind"] for line in ledger.path.read_text("utf-8").splitlines()] == [
        "measurement",
        "claim",
        "bench",
    ]


def test_a_missing_ledger_reads_as_empty_and_is_not_made(ledger: Ledger) -> None:
    assert (ledger.measurements(), ledger.claim_evidence("measure-01"), ledger.bench(), ledger.skipped) == ([], [], [], 0)
    assert not ledger.path.parent.exists()


def test_two_processes_at_once_lose_and_mix_nothing(ledger: Ledger) -> None:
    script = Path(__file__).with_name("append_many.py")
    command = [sys.executable, str(script), str(ledger.path), "other", str(ROWS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert other.stdin is not None
        print(file=other.stdin, flush=True)
        append_rows(ledger.path, "this", ROWS)
        assert other.wait(timeout=120) == 0
    found = [row.note.split()[0] for row in ledger.claim_evidence("measure-01")]
    for writer in ("this", "other"):  # all are there, each writer's in its own order
        assert [note for note in found if note.startswith(writer)] == [f"{writer}/{number}" for number in range(ROWS)]
    assert (len(found), ledger.skipped) == (2 * ROWS, 0)


def test_a_row_is_one_write_and_is_flushed_to_the_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync

    def counted_write(descriptor: int, data: bytes) -> int:
        calls.append("write")
        return write(descriptor, data)

    def counted_sync(descriptor: int) -> None:
        calls.append("sync")
        sync(descriptor)

    monkeypatch.setattr(module.os, "write", counted_write)
    monkeypatch.setattr(module.os, "fsync", counted_sync)
    ledger.append(evidence(note="x" * 100_000))
    assert calls == ["write", "sync"]


def test_a_reader_never_meets_half_a_row(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(evidence())
    write = os.write

    def slow(descriptor: int, data: bytes) -> int:
        time.sleep(0.002)
        return write(descriptor, data[:100])

    monkeypatch.setattr(module.os, "write", slow)
    writer = threading.Thread(target=lambda: [ledger.append(evidence()) for _ in range(5)])
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(ledger.skipped)
    writer.join()
    assert len(seen) > 1
    assert set(seen) == {0}
    assert len(ledger.claim_evidence("measure-01")) == 6


def test_a_torn_last_line_costs_that_line_alone(ledger: Ledger) -> None:
    for number in range(3):
        ledger.append(measurement(f"net {number}"))
    whole = ledger.path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        ledger.path.write_bytes(whole[:end])
        complete = end == len(whole) - 1  # only the line's end is missing
        torn = end > last and not complete
        assert [row.subject for row in ledger.measurements()] == [f"net {number}" for number in range(2 + complete)]
        assert ledger.skipped == torn
        ledger.append(evidence())
        assert ledger.path.read_bytes().startswith(whole[:end])
        assert len(ledger.claim_evidence("measure-01")) == 1
        assert [row.subject for row in ledger.measurements()] == [f"net {number}" for number in range(2 + complete)]
        assert ledger.skipped == torn


def without_provenance() -> bytes:
    fields = {"kind": "measurement", **measurement().to_dict()}
    del fields["provenance"]
    return json.dumps(fields).encode()


DAMAGE: dict[str, Callable[[], bytes]] = {
    "not json": lambda: b'{"kind": "measurement", ',
    "unknown kind": lambda: b'{"kind": "rumour"}',
    "no kind": lambda: b'{"claim": "measure-01"}',
    "a list": lambda: b"[1, 2]",
    "a word": lambda: b'"measurement"',
    "nothing": lambda: b"null",
    "kind of another type": lambda: b'{"kind": ["claim"]}',
    "not utf-8": lambda: b'{"kind": "\xff"}',
    "zeros": lambda: b"\0" * 40,
    "deep": lambda: b"[" * 100_000,
    "missing field": without_provenance,
    "unknown field": lambda: json.dumps({"kind": "claim", **evidence().to_dict(), "extra": 1}).encode(),
    "infinite threads": lambda: (
        json.dumps({"kind": "measurement", **measurement().to_dict()})
        .replace('"threads": 1, "batch"', '"threads": 1e999, "batch"')
        .encode()
    ),
    "a bound that is no number": lambda: (
        json.dumps({"kind": "bench", **bench_ratio().to_dict()}).replace("0.98", '"?"').encode()
    ),
    "a value that is no number": lambda: json.dumps({"kind": "claim", **evidence().to_dict()}).replace("0.5", '"?"').encode(),
    "provenance of another form": lambda: json.dumps({"kind": "claim", **evidence().to_dict(), "provenance": 3}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_in_the_middle_is_passed_over_and_counted(ledger: Ledger, damage: Callable[[], bytes]) -> None:
    ledger.append(measurement("first"))
    with ledger.path.open("ab") as file:
        file.write(damage() + b"\n\n")
    ledger.append(measurement("second"))
    rows = ledger.measurements()
    assert [row.subject for row in rows] == ["first", "second"]
    assert (rows.skipped, ledger.skipped, ledger.bench().skipped, ledger.claim_evidence("amp-01").skipped) == (1, 1, 1, 1)


def test_a_failed_write_leaves_the_file_as_it_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(measurement())
    before = ledger.path.read_bytes()
    pieces = iter([lambda descriptor, data: write(descriptor, data[:100])])
    write = os.write

    def full_disk(descriptor: int, data: bytes) -> int:
        for piece in pieces:
            return piece(descriptor, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full_disk)
    with pytest.raises(EvidenceError, match="No space left on device"):
        ledger.append(measurement())
    assert ledger.path.read_bytes() == before


def test_what_is_no_row_is_refused_before_anything_is_written(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dict"):
        ledger.append({"subject": "net"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no claim 'measure-99'"):
        ledger.append(evidence("measure-99"))
    with pytest.raises(EvidenceError, match="not finite"):
        ledger.append(measurement(step_seconds=float("nan")))
    assert not ledger.path.exists()
    with pytest.raises(EvidenceError, match="cannot be written"):
        Ledger(tmp_path).append(measurement())
    with pytest.raises(EvidenceError, match="cannot be read"):
        Ledger(tmp_path).measurements()


def test_measurements_are_filtered_by_what_they_say(ledger: Ledger) -> None:
    rows = [
        measurement("a"),
        measurement("b", lesson="01"),
        measurement("a", runtime="ONNX Runtime"),
        measurement("a", provenance=origin("quick")),
    ]
    for row in rows:
        ledger.append(row)
    assert ledger.measurements() == rows
    assert ledger.measurements(lesson="01") == rows[1:2]
    assert ledger.measurements(profile="quick") == rows[3:]
    assert ledger.measurements(subject="a", runtime="torch eager", profile="full") == rows[:1]
    assert ledger.measurements(subject="c") == []


def test_the_two_ledgers_are_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    monkeypatch.delenv("COOKBOOK_LEDGER", raising=False)
    assert Ledger.local().path == tmp_path / "cache" / "ledger.jsonl"
    assert Ledger.recorded().path == tmp_path / "results" / "ledger.jsonl"
    monkeypatch.setenv("COOKBOOK_LEDGER", str(tmp_path / "other.jsonl"))
    Ledger.local().append(measurement("local"))
    assert Ledger(tmp_path / "other.jsonl").measurements()[0].subject == "local"
    assert Ledger.recorded().measurements() == []
