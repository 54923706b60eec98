"""Runs the parts of the GPU evidence one after the other, within a budget of time (lesson 01)."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cookbook.accelerator.setting import FULL, REHEARSAL, Setting, release, usual_kernels
from cookbook.environment import current_profile, pick_device
from cookbook.errors import UsageError
from cookbook.evidence import Ledger
from cookbook.evidence.rows import Row
from cookbook.files import data_directory


@dataclass(frozen=True)
class Part:
    """Something that can be recorded by itself.

    Attributes:
        name: for ``--only``.
        what: it records, in a few words.
        seconds: that it takes on one H100, estimated; a part that would not fit is not begun.
        record: yields rows, each as soon as it is measured.
        by_default: runs without being asked for.
    """

    name: str
    what: str
    seconds: float
    record: Callable[[Setting], Iterator[Row]]
    by_default: bool = True


@dataclass
class Report:
    """What became of the parts.

    Attributes:
        recorded: names of the parts that ran to their end.
        failed: by name, the error of those that did not; rows that they had measured before are kept.
        left_out: names of those that would not have fitted into the time.
        rows: number of rows that were appended.
    """

    recorded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    rows: int = 0


def make_setting(device: str | None, *, rehearse: bool) -> Setting:
    """Return where and how large the parts run; refuse what would be no evidence.

    Args:
        device: ``cuda`` by default, in a rehearsal ``cpu``.
        rehearse: tiny sizes, on any device.

    Raises:
        UsageError: evidence is wanted on a CPU or in the quick profile, a rehearsal in the full one, or
            the device does not exist.
    """
    full = current_profile() == "full"
    if rehearse:
        if full:
            raise UsageError("A rehearsal is no evidence: leave COOKBOOK_PROFILE at 'quick' with --rehearse.")
        return Setting(pick_device(device or "cpu"), REHEARSAL)
    if not full:
        raise UsageError("Evidence is recorded in the full profile only: set COOKBOOK_PROFILE=full, or add --rehearse.")
    chosen = pick_device(device or "cuda")
    if chosen.type != "cuda":
        raise UsageError(f"GPU evidence cannot be recorded on {chosen}: use a CUDA device, or add --rehearse.")
    return Setting(chosen, FULL)


def open_ledger(out: Path | None, *, rehearse: bool) -> Ledger:
    """Return where the rows go: `out`, the committed evidence, or in a rehearsal a throwaway file that begins empty.

    Raises:
        UsageError: a rehearsal would write to the committed evidence.
    """
    recorded = Ledger.recorded()
    if not rehearse:
        return Ledger(out) if out is not None else recorded
    if out is None:
        out = data_directory().parent / "build" / "rehearsal.jsonl"
        out.unlink(missing_ok=True)
    if out.resolve() == recorded.path.resolve():
        raise UsageError(f"A rehearsal is no evidence: name another --out than {out}.")
    return Ledger(out)


def choose_parts(parts: Sequence[Part], only: str | None) -> list[Part]:
    """Return the parts that ``--only`` names, or those that run by default, in their own order.

    Raises:
        UsageError: a name is unknown.
    """
    if only is None:
        return [part for part in parts if part.by_default]
    wanted = [name.strip() for name in only.split(",")]
    known = [part.name for part in parts]
    for name in wanted:
        if name not in known:
            raise UsageError(f"There is no part {name!r} to record: use one or more of {', '.join(known)}.")
    return [part for part in parts if part.name in wanted]


def record_parts(
    parts: Sequence[Part], setting: Setting, ledger: Ledger, *, minutes: float, say: Callable[[str], None] = print
) -> Report:
    """Record the parts in turn; a row is on the disk as soon as it is measured.

    A part that fails does not keep the others from running.

    Args:
        parts: in the order of running.
        setting: device and sizes.
        ledger: where rows are appended.
        minutes: for all of them; a part whose estimate is longer than what is left is not begun.
        say: takes a line of progress.

    Raises:
        UsageError: `minutes` is not positive.
    """
    if minutes <= 0:
        raise UsageError(f"minutes is {minutes:g}: use a positive number.")
    started, report = time.monotonic(), Report()
    for part in parts:
        left = 60 * minutes - (time.monotonic() - started)
        estimate = min(part.seconds, setting.scale.longest_part)
        if estimate > left:
            say(f"{part.name}: not recorded, it takes about {estimate:.0f} s and {max(left, 0):.0f} s are left.")
            report.left_out.append(part.name)
            continue
        say(f"{part.name}: {part.what}; about {estimate:.0f} s.")
        begun = time.monotonic()
        try:
            release(setting.device)
            with usual_kernels():
                for row in part.record(setting):
                    ledger.append(row)
                    report.rows += 1
        except Exception as error:  # whatever it is, it is reported by name, and the other parts are still worth recording
            report.failed[part.name] = describe(error)
            say(f"{part.name}: failed after {time.monotonic() - begun:.0f} s: {report.failed[part.name]}.")
        else:
            report.recorded.append(part.name)
            say(f"{part.name}: recorded in {time.monotonic() - begun:.0f} s.")
    return report


def describe(error: Exception) -> str:
    """Return an error's type, its first line, and the last line of the cookbook that it passed."""
    house = Path(__file__).resolve().parents[1]
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the loop over the parts
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(house)]
    place = f" at {Path(ours[-1].filename).relative_to(house.parent).as_posix()}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"
