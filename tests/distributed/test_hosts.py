"""Two namespaces behave like two hosts, compute what one process computes, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hosts_worker import model_and_batch
from torch import nn

from cookbook.distributed.hosts import Network, Running, hosts_unavailable, two_hosts
from cookbook.errors import UsageError
from cookbook.training import RankError

WORKER = Path(__file__).with_name("hosts_worker.py")
START = 240.0  # seconds for four processes that import torch, on a busy machine
REASON = hosts_unavailable()
needs_hosts = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def network() -> Iterator[Network]:
    with two_hosts() as network:
        yield network


def wait_until_gone(processes: list[int], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(psutil.pid_exists, processes)):
        assert time.monotonic() < deadline, "a host's first process is still there"
        time.sleep(0.05)


def wait_until_written(file: Path, running: Running, network: Network) -> None:
    """Wait for what the hosts' processes write, as long as none of them failed."""
    deadline = time.monotonic() + START
    while not file.exists():
        outputs = [running.output(host) for host in network.hosts]
        assert time.monotonic() < deadline and not any(process.poll() for process in running.processes), outputs
        time.sleep(0.1)


LISTEN = """
import socket, sys
with socket.create_server(("", 5000)) as server:
    if socket.gethostname() == "host-a":
        connection, (address, _) = server.accept()
        print(socket.gethostbyname("host-b") == address, connection.recv(9).decode())
    else:
        for _ in range(200):
            try:
                socket.create_connection(("host-a", 5000), timeout=5).sendall(b"hello")
                break
            except ConnectionRefusedError:
                __import__("time").sleep(0.05)
        print(open("/proc/net/dev").read().count("link:"))
"""


@needs_hosts
def test_the_hosts_have_names_and_reach_each_other_alone(network: Network) -> None:
    before = psutil.net_if_addrs().keys()
    with network.started([sys.executable, "-I", "-c", LISTEN]) as running:
        outcomes = running.wait(60)
    assert [outcome.output for outcome in outcomes] == ["True hello\n", "1\n"]
    assert psutil.net_if_addrs().keys() == before  # the real machine's network has nothing new


CONNECT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 5001), timeout=1)
except OSError as error:
    print(type(error).__name__)
"""


@needs_hosts
def test_a_cut_cable_answers_nothing(network: Network) -> None:
    with network.started([sys.executable, "-I", "-c", CONNECT]) as running:
        assert running.wait(60)[1].output == "ConnectionRefusedError\n"  # the other host says that nobody listens
    network.cut()
    with network.started([sys.executable, "-I", "-c", CONNECT]) as running:
        assert running.wait(60)[1].output in ("TimeoutError\n", "OSError\n")


@needs_hosts
def test_when_one_host_fails_the_other_is_ended(network: Network) -> None:
    with network.started(["sh", "-c", 'echo "on $(hostname) with $WORD"; test $(hostname) = host-b && exit 3; sleep 600'],
                         environment={"WORD": "help"}) as running:  # fmt: skip
        first, second = running.wait(300, grace=0.2)
    assert (first.host, first.status, first.output) == ("host-a", -9, "on host-a with help\n")
    assert (second.host, second.status, second.output) == ("host-b", 3, "on host-b with help\n")


@needs_hosts
def test_what_does_not_end_is_ended_with_its_last_words(network: Network) -> None:
    with (
        network.started(["sh", "-c", "echo busy on $(hostname); sleep 600"]) as running,
        pytest.raises(RankError, match=r"host-a did not end within 1 s: .* busy on host-a$"),
    ):
        running.wait(1)
    assert all(process.poll() is not None for process in running.processes)


@needs_hosts
def test_nothing_is_left_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), two_hosts() as network, network.started(["sleep", "600"]) as running:
        processes = [host.process for host in network.hosts] + [process.pid for process in running.processes]
        assert all(map(psutil.pid_exists, processes))
        raise ZeroDivisionError
    wait_until_gone(processes)
    assert not network.folder.exists()


OWNER = """
from cookbook.distributed.hosts import two_hosts
with two_hosts() as network, network.started(["sleep", "600"]):
    print(*(host.process for host in network.hosts), flush=True)
    input()
"""


@needs_hosts
def test_nothing_is_left_when_the_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None and owner.stdout is not None
    with owner.stdin, owner.stdout:
        processes = [int(word) for word in owner.stdout.readline().split()]
        sleepers: list[int] = []
        deadline = time.monotonic() + 30
        while len(sleepers) < 2 and time.monotonic() < deadline:  # what was started may not have become `sleep` yet
            time.sleep(0.05)
            children = psutil.Process(owner.pid).children(recursive=True)
            sleepers = [child.pid for child in children if child.name() == "sleep"]
        owner.kill()
        owner.wait()
    assert len(processes) == len(sleepers) == 2
    wait_until_gone([*processes, *sleepers])


@needs_hosts
@pytest.mark.timeout(START + 120)
def test_torchrun_on_two_hosts_gives_the_gradients_of_one_process_and_a_cut_cable_gives_an_error(
    network: Network, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=host-a:29500"]
    with network.started(
        [*launcher, *meeting, str(WORKER), str(tmp_path), "5"], environment={"OMP_NUM_THREADS": "1"}
    ) as running:
        wait_until_written(tmp_path / "gradients.pt", running, network)
        network.cut()
        outcomes = running.wait(60)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert sorted(found["hosts"]) == ["host-a", "host-b"]
    model, inputs, labels = model_and_batch()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        difference = (found["gradients"][name] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert float(difference) < 1e-6
    for outcome in outcomes:
        assert outcome.status != 0
        assert "ERROR: Rank" in outcome.output and "a network that is cut" in outcome.output


@needs_hosts
@pytest.mark.timeout(START + 120)
def test_a_cut_cable_ends_a_launch_on_both_hosts_within_a_minute_whatever_the_patience(
    network: Network, tmp_path: Path
) -> None:
    """The ranks would wait for each other for ten minutes, and torchrun on the second host for the first for ever."""
    with network.started([sys.executable, str(WORKER), str(tmp_path)], environment={"OMP_NUM_THREADS": "1"}) as running:
        wait_until_written(tmp_path / "met", running, network)
        network.cut()
        outcomes = running.wait(60, grace=60)
    assert [outcome.status for outcome in outcomes] == [1, 1]
    for outcome, silent in zip(outcomes, ("host-b", "the meeting point at host-a:29511"), strict=True):
        assert f"ERROR: Nothing was heard of {silent} for 20 s: look for a machine" in outcome.output


def test_without_the_tools_or_the_right_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"tools unshare and nsenter: install util-linux"), two_hosts():
        pass
    for tool in ("unshare", "nsenter"):
        (tmp_path / tool).write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    reason = hosts_unavailable()
    assert reason == (
        "This machine lets no program make network namespaces (unshare failed: Operation not permitted): try another one."
    ) or (reason or "").startswith("Two hosts on one machine need Linux")
