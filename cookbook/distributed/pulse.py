"""Whether the machines of a launch still hear of each other (lesson 03).

A cable that is cut says nothing: TCP keeps a silent connection for many minutes, and an exchange between ranks waits for
as long as its group allows, which must be longer than any rank lets the others wait. So the launchers, which have nothing
else to do, tell each other every few seconds that they are there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

BEAT = 2.0  # seconds between two beats
TICK = 1.0  # seconds between two looks at what was heard
SILENCE = 20  # looks without news after which a machine is given up
FAREWELL = -(2**40)  # makes a count negative for good
PATIENCE = timedelta(seconds=60)  # for an answer of the meeting point


class Store(Protocol):
    """What is used of a `torch.distributed.Store`, whose every call waits for an answer."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number that begins at 0, and return it."""
        ...

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value that was set."""
        ...


class Pulse:
    """This machine's beats, and those that it hears of the others, counted in a store that all of them reach.

    Silence is measured in looks, and not by the clock, so that a machine that slept does not take the others for lost.

    Args:
        connect: returns the store, when there is one, or None where it is no longer needed.
        name: of this machine.
        place: of the store, for the message.
        ended: when set, this machine says goodbye.
        beat: seconds between two beats.
        tick: seconds between two looks.
    """

    def __init__(
        self,
        connect: Callable[[], Store | None],
        name: str,
        place: str,
        ended: threading.Event,
        *,
        beat: float = BEAT,
        tick: float = TICK,
    ) -> None:
        self.connect, self.name, self.ended, self.beat, self.tick = connect, name, ended, beat, tick
        self.names = {0: place}
        self.heard: dict[int, int] = {}  # beats of each machine; number 0: answers of the store

    def send(self) -> None:
        """Beat and listen until the end, then say goodbye; on a network that is cut this may wait for ever."""
        with contextlib.suppress(dist.DistError):  # the store is gone for good, which torchrun is told too
            store = self.connect()
            if store is None:
                return
            number = store.add("machines", 1)
            store.set(f"name/{number}", self.name)
            while not self.ended.is_set():
                store.add(f"beats/{number}", 1)
                for other in range(1, store.add("machines", 0) + 1):
                    if other != number:
                        self._hear(store, other)
                self.heard[0] = self.heard.get(0, 0) + 1
                self.ended.wait(self.beat)
            store.add(f"beats/{number}", FAREWELL)
        self.ended.set()

    def _hear(self, store: Store, other: int) -> None:
        """Note how often another machine has beaten, unless it has not begun or has said goodbye."""
        beats = store.add(f"beats/{other}", 0)
        if beats > 0:
            if other not in self.names:
                self.names[other] = store.get(f"name/{other}").decode()
            self.heard[other] = beats
        else:
            self.heard.pop(other, None)

    def listen(self) -> str | None:
        """Return who fell silent, as a sentence; None: the end came first."""
        before: dict[int, int] = {}
        quiet: dict[int, int] = {}
        while not self.ended.wait(self.tick):
            now = dict(self.heard)
            quiet = {one: quiet.get(one, 0) + 1 if before.get(one) == beats else 0 for one, beats in now.items()}
            before = now
            silent = sorted(one for one, looks in quiet.items() if looks >= SILENCE)
            if silent:  # the store first: without it nobody is heard
                return (
                    f"Nothing was heard of {self.names[silent[0]]} for {SILENCE * self.tick:g} s: "
                    "look for a machine that is down, or for a network that is cut."
                )
        return None


@contextlib.contextmanager
def watched(endpoint: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Let this machine beat at the meeting point for the length of the block.

    Args:
        endpoint: ``HOST:PORT`` of a `torch.distributed.TCPStore`, which need not be there yet.
        tell: called, from a thread, with a sentence when a machine falls silent.
    """
    host, _, port = endpoint.rpartition(":")
    ended = threading.Event()

    def connect() -> Store | None:
        while not _listens(host, int(port)):  # asked without torch, which would print each failure
            if ended.wait(TICK):
                return None
        store = dist.TCPStore(host, int(port), timeout=PATIENCE, wait_for_workers=False)  # type: ignore[attr-defined]
        prefixed: Store = dist.PrefixStore("pulse", store)  # type: ignore[attr-defined]
        return prefixed

    def watch() -> None:
        said = pulse.listen()
        if said is not None:
            tell(said)

    pulse = Pulse(connect, socket.gethostname(), f"the meeting point at {endpoint}", ended)
    sender = threading.Thread(target=pulse.send, name="beat", daemon=True)
    sender.start()
    threading.Thread(target=watch, name="watch the machines", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        sender.join(BEAT + TICK)


def _listens(host: str, port: int) -> bool:
    """Say whether a program listens there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
