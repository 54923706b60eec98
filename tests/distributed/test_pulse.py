"""Machines that beat are left alone, those that fall silent are told, and nothing depends on the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from socket import socket

import torch.distributed as dist

from cookbook.distributed.pulse import SILENCE, Pulse, watched


class Script(threading.Event):
    """An event whose every wait is the next step of a script; the last step sets it."""

    def __init__(self, steps: int, act: Callable[[int], object]) -> None:
        super().__init__()
        self.steps, self.act, self.taken = steps, act, 0

    def wait(self, timeout: float | None = None) -> bool:
        if self.taken < self.steps:
            self.act(self.taken)
            self.taken += 1
        else:
            self.set()
        return self.is_set()


def listening(steps: int, act: Callable[[Pulse, int], object]) -> tuple[str | None, int]:
    """Return what is told, and after how many looks, when `act` changes what was heard before each."""
    script = Script(steps, lambda number: act(pulse, number))
    pulse = Pulse(lambda: None, "a", "the meeting point at a:1", script)
    pulse.names |= {1: "b", 2: "c"}
    return pulse.listen(), script.taken


def test_a_machine_without_news_is_told_by_name() -> None:
    def act(pulse: Pulse, number: int) -> None:
        pulse.heard |= {0: number, 1: min(number, 6) // 3, 2: number // 3}  # news of b for the last time in look 6

    said, looks = listening(100, act)
    assert said == "Nothing was heard of b for 20 s: look for a machine that is down, or for a network that is cut."
    assert looks == 7 + SILENCE


def test_without_the_meeting_point_it_is_the_meeting_point_that_is_told() -> None:
    said, looks = listening(100, lambda pulse, number: pulse.heard.update({0: min(number, 9), 1: min(number, 9)}))
    assert said is not None and said.startswith("Nothing was heard of the meeting point at a:1 for 20 s")
    assert looks == 10 + SILENCE


def test_who_beats_now_and_then_or_has_gone_or_was_never_there_is_not_missed() -> None:
    def act(pulse: Pulse, number: int) -> None:
        pulse.heard |= {0: number, 1: number // SILENCE}
        if number == 30:
            pulse.heard.pop(1)

    assert listening(100, act) == (None, 100)
    assert listening(100, lambda pulse, number: None) == (None, 100)


def test_beats_are_counted_names_are_known_and_goodbyes_understood() -> None:
    store = dist.HashStore()
    heard = []

    def act(number: int) -> None:
        heard.append(dict(pulse.heard))
        if number == 0:
            store.add("machines", 1)
        if number == 1:
            store.set("name/2", "b")
        if number in (1, 2):
            store.add("beats/2", 1)
        if number == 3:
            store.add("beats/2", -1000)

    script = Script(5, act)
    pulse = Pulse(lambda: store, "a", "here", script)
    pulse.send()
    assert heard == [{0: 1}, {0: 2}, {0: 3, 2: 1}, {0: 4, 2: 2}, {0: 5}]
    assert pulse.names == {0: "here", 2: "b"} and store.get("name/1") == b"a"
    assert store.add("beats/1", 0) < 0, "it has said goodbye"


def test_a_meeting_point_that_is_closed_is_the_end_of_it() -> None:
    class Closed:
        def add(self, key: str, amount: int) -> int:
            raise dist.DistNetworkError("Connection reset by peer")

    pulse = Pulse(Closed, "a", "here", threading.Event())  # type: ignore[arg-type]
    pulse.send()
    assert pulse.ended.is_set() and pulse.listen() is None


def test_a_machine_may_come_before_the_meeting_point_and_takes_its_leave() -> None:
    said: list[str] = []
    with closing(socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with watched(f"127.0.0.1:{port}", said.append):
            pass
    with watched(f"127.0.0.1:{port}", said.append):
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        deadline = time.monotonic() + 60
        while not store.add("pulse/beats/1", 0):
            assert time.monotonic() < deadline, "it does not beat"
            time.sleep(0.05)
    assert store.add("pulse/beats/1", 0) < 0 and said == []
    assert [thread for thread in threading.enumerate() if thread.name == "beat"] == []
