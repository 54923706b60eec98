"""Two pretended hosts on one Linux machine, and ready files for many real ones (lesson 03).

What changes from one machine to several is where the processes meet:

- On every machine the same command is started, with ``--nnodes``, the number of machines, and
  ``--rdzv-endpoint=HOST:PORT``, the name of one of them, which all can resolve, and a free TCP port there:
  ``torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=host-a:29500 train.py``.
  The machine that has this name opens the meeting point; the launchers meet there and number the machines.
- ``MASTER_ADDR`` and ``MASTER_PORT`` are what the launcher then tells its workers: the machine of rank 0
  and the port at which `torch.distributed.init_process_group` makes the group. Whoever sets them, with
  ``RANK`` and ``WORLD_SIZE``, by hand needs no launcher.

A firewall must let the machines reach each other on all ports: the ranks exchange gradients on others than these two.

When the network fails, `launch` (and with it ``cookbook train --nnodes``) ends within half a minute, because its
launchers listen to each other. A bare torchrun does not: every rank ends with an error after the timeout of its group,
and the launcher on a machine that no longer reaches the meeting point may then wait until the kernel gives the connection
up, which takes many minutes; schedulers therefore end a job with its first failed task (Slurm: ``srun
--kill-on-bad-exit``), and so does `Running.wait`.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html; network_namespaces(7) and veth(4) of the Linux manual.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from cookbook.errors import UsageError
from cookbook.training import RankError

NAMES = ("host-a", "host-b")
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # RFC 5737: reserved for examples, so that no real network has them
PREFIX = 24
OWN = ("--mount", "--net", "--uts", "--pid")  # what each host has for itself
INSIDE = [sys.executable, "-I", str(Path(__file__).with_name("host_side.py"))]
PATIENCE = 20.0  # seconds for a step that takes milliseconds
LAST_LINES = 15  # of a host's output, in an error


@dataclass(frozen=True)
class Outcome:
    """How a command ended on one host.

    Attributes:
        host: the host's name.
        status: the exit status.
        output: standard output and standard error together.
    """

    host: str
    status: int
    output: str


@dataclass(frozen=True)
class Host:
    """One of the two: a network, host name, process table and /etc/hosts of its own; files and user are shared.

    Attributes:
        name: its host name, which both hosts can resolve.
        address: its IPv4 address.
        process: the identifier, on the real machine, of its first process.
    """

    name: str
    address: str
    process: int

    def command(self, arguments: Sequence[str], *namespaces: str) -> list[str]:
        """Return the command that runs `arguments` on this host, by default in all of its namespaces."""
        entered = namespaces or OWN
        directory = [] if namespaces else [f"--wd={Path.cwd()}"]
        target = ["--preserve-credentials", "--user", *entered, *directory, f"--target={self.process}"]
        return ["nsenter", *target, "--", *arguments]


@dataclass(frozen=True)
class Network:
    """Two hosts and the cable between them.

    Attributes:
        hosts: the two.
        folder: for their output; gone with the network.
    """

    hosts: tuple[Host, Host]
    folder: Path

    @contextlib.contextmanager
    def started(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
        """Start the same command on both hosts; what still runs at the end of the block is ended.

        Args:
            command: program and arguments.
            environment: variables on top of this process's own.
        """
        variables = {**os.environ, **(environment or {})}
        with contextlib.ExitStack() as cleanup:
            processes = []
            for host in self.hosts:
                output = cleanup.enter_context((self.folder / host.name).open("wb"))
                process = subprocess.Popen(
                    host.command(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=variables
                )
                cleanup.callback(_end, process)
                processes.append(process)
            yield Running(self, tuple(processes))

    def cut(self) -> None:
        """Pull the cable: from now on packets vanish, and nobody is told."""
        _check(self.hosts[0].command([*INSIDE, "cut"], "--net"))


@dataclass(frozen=True)
class Running:
    """A command that runs on both hosts."""

    network: Network
    processes: tuple[subprocess.Popen[bytes], ...]

    def wait(self, timeout: float, *, grace: float = 15.0) -> list[Outcome]:
        """Wait until the command has ended on both hosts.

        Args:
            timeout: seconds for both.
            grace: seconds that one host has to end after the command has failed on the other; it is killed then.

        Raises:
            RankError: it neither failed nor ended in time; the message has the end of a host's output.
        """
        started, failed = time.monotonic(), None
        while any(process.poll() is None for process in self.processes):
            now = time.monotonic()
            if failed is None and any(process.poll() for process in self.processes):
                failed = now
            if now - started > timeout or (failed is not None and now - failed > grace):
                break
            time.sleep(0.05)
        slow = [host for host, process in zip(self.network.hosts, self.processes, strict=True) if process.poll() is None]
        for process in self.processes:
            _end(process)
        if slow and failed is None:
            last = " / ".join(self.output(slow[0]).splitlines()[-LAST_LINES:]) or "(none)"
            raise RankError(f"{slow[0].name} did not end within {timeout:.0f} s: look at the last lines that it wrote, {last}")
        pairs = zip(self.network.hosts, self.processes, strict=True)
        return [Outcome(host.name, process.returncode, self.output(host)) for host, process in pairs]

    def output(self, host: Host) -> str:
        """Return what the command has written on this host so far."""
        return (self.network.folder / host.name).read_text("utf-8", errors="replace")


def hosts_unavailable() -> str | None:
    """Return why `two_hosts` cannot work on this machine, as a sentence; None: it can."""
    try:
        with two_hosts():
            return None
    except UsageError as error:
        return str(error)


@contextlib.contextmanager
def two_hosts() -> Iterator[Network]:
    """Make two hosts joined by a cable, for the length of the block.

    They are namespaces of this Linux kernel: no rights beyond an ordinary user's are needed where the
    administrator allows user namespaces, and the real network is never touched. Whatever was made or started
    is gone afterwards, also when this process is killed: the kernel ends a host with its first process, which
    waits for the end of a pipe that this process holds.

    Raises:
        UsageError: this machine does not allow it.
    """
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("unshare", "nsenter"))):
        raise UsageError("Two hosts on one machine need Linux and its tools unshare and nsenter: install util-linux there.")
    with contextlib.ExitStack() as cleanup:
        try:
            network = cleanup.enter_context(_wired())
        except (OSError, subprocess.SubprocessError, _Refusal) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UsageError(f"This machine lets no program make network namespaces ({reason}): try another one.") from error
        yield network


def cluster_template(scheduler: Literal["slurm", "kubernetes"]) -> str:
    """Return the text of a ready file for several machines, to be copied and changed where it says so.

    Args:
        scheduler: ``slurm`` for a script to submit with ``sbatch``; ``kubernetes`` for a TrainJob of Kubeflow Trainer.

    Raises:
        UsageError: there is no file for this scheduler.
    """
    names = {"slurm": "slurm.sbatch", "kubernetes": "trainjob.yaml"}
    if scheduler not in names:
        raise UsageError(f"There is no template for {scheduler!r}: use one of {', '.join(names)}.")
    return (Path(__file__).with_name("templates") / names[scheduler]).read_text("utf-8")


class _Refusal(Exception):
    """A step of making the network failed."""


@contextlib.contextmanager
def _wired() -> Iterator[Network]:
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        table = [("127.0.0.1", "localhost"), *zip(ADDRESSES, NAMES, strict=True)]
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in table), encoding="utf-8")
        holding = [[*INSIDE, "hold", name, str(folder / "hosts")] for name in NAMES]
        isolated = [*OWN, "--fork", "--kill-child", "--"]
        first = cleanup.enter_context(_held(["unshare", "--user", "--map-root-user", *isolated, *holding[0]]))
        a = Host(NAMES[0], ADDRESSES[0], first)
        # the second is made inside the first's user namespace, whose owner may join the networks of both
        inner = ["nsenter", "--preserve-credentials", "--user", f"--target={first}", "--", "unshare", *isolated, *holding[1]]
        b = Host(NAMES[1], ADDRESSES[1], cleanup.enter_context(_held(inner)))
        _check(a.command([*INSIDE, "connect", str(b.process)], "--net"))
        for host in (a, b):
            _check(host.command([*INSIDE, "address", host.address, str(PREFIX)], "--net"))
        yield Network((a, b), folder)


@contextlib.contextmanager
def _held(command: list[str]) -> Iterator[int]:
    """Start a host's first process, and yield its identifier when it is ready; end it, and its host, afterwards."""
    starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert starter.stdin is not None and starter.stdout is not None and starter.stderr is not None
    try:
        if starter.stdout.readline() != b"ready\n":
            starter.stdin.close()
            raise _Refusal(starter.stderr.read().decode(errors="replace"))
        (innermost,) = (child for child in psutil.Process(starter.pid).children(recursive=True) if not child.children())
        yield innermost.pid
    finally:
        starter.stdin.close()  # with this its first process ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(PATIENCE)
        _end(starter)
        starter.stdout.close()
        starter.stderr.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and what it has started, if it still runs."""
    if process.poll() is None:
        family = psutil.Process(process.pid)
        for member in [*family.children(recursive=True), family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise _Refusal(done.stderr)
