"""Start a function in several processes, from the command line, from Python or from a notebook's cell (lesson 03).

torchrun does the work, in a process of its own: a fork of a process in which torch has computed can hang, and a
notebook's kernel is one. Everything that was started ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from cookbook.distributed.context import launched
from cookbook.distributed.traces import failed_for_good, processes, rank_process, results
from cookbook.errors import UsageError
from cookbook.training import RankError

GRACE = 20.0  # seconds for ranks that were asked to stop, to save their work
GRACE_APART = 5.0  # seconds for ranks that have lost the others: together they cannot save any more
LOOK = 1.0  # seconds between two looks at what the ranks and the agent left


class SilenceError(RankError):
    """Another machine fell silent."""


def launch(
    worker: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    timeout: float | None = None,
    max_restarts: int = 0,
    threads: int | None = None,
    hosts: int = 1,
    endpoint: str | None = None,
    grace: float = GRACE,
) -> list[Any]:
    """Call ``worker(*arguments)`` in `ranks` processes; return what each returned, in the order of the ranks.

    The processes find in their environment who they are: the worker forms their group by `joined`. Their output
    appears here, each line behind its rank. When one fails, the others are stopped, and its traceback is the
    one that is printed. Ctrl-C, and a kernel's interrupt, stop all ranks, which save first where they train with a
    checkpoint; when this process ends in any way, SIGKILL included, they end too.

    On several machines call it on each, with the same `hosts` and `endpoint`; the first rank on the machine of
    the endpoint is rank 0. Each call returns the results of its own machine. When a machine is silent for some
    twenty seconds, because it is down or the network is cut, the call ends on all others, whatever the `timeout`.

    Args:
        worker: a function of an importable module, not of a notebook's cell.
        arguments: plain JSON types, passed by position.
        ranks: processes on this machine.
        timeout: seconds after which ranks that have not ended are taken for hung: their stacks are printed, and
            they are stopped. None: no limit. Exchanges between ranks have a limit of their own, see `joined`.
        max_restarts: how often all ranks are started again after one failed or was killed; with a checkpoint
            `fit` goes on from there.
        threads: CPU threads of each rank; None: the machine's cores divided by the ranks, unless
            ``OMP_NUM_THREADS`` is set.
        hosts: machines (torchrun's ``--nnodes``).
        endpoint: ``HOST:PORT`` at which the machines meet (``--rdzv-endpoint``): a name or address of one of
            them, the same on all, and a free port. Not needed for one machine.
        grace: seconds for ranks that were asked to stop; at most five when another machine fell silent.

    Raises:
        UsageError: the worker or the arguments cannot be passed on, a number is out of range, or this is called
            by a rank.
        RankError: a rank failed, was killed or hung, the machines did not meet, or one fell silent.
        KeyboardInterrupt: Ctrl-C, after all ranks have ended.
    """
    for name, value, least in (("ranks", ranks, 1), ("max_restarts", max_restarts, 0), ("hosts", hosts, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}: use {least} or more.")
    if launched():
        raise UsageError("This process is itself a rank of a launch: call launch from a process that is not.")
    name, root = worker_name(worker)
    try:
        passed = json.loads(json.dumps(arguments))
    except (TypeError, ValueError) as error:
        raise UsageError(f"The arguments cannot be passed on ({error}): use numbers, text, lists and dictionaries.") from error
    meeting = _meeting(hosts, endpoint)
    with tempfile.TemporaryDirectory(prefix="cookbook-launch-") as place:
        folder = Path(place)
        task = {"worker": name, "arguments": passed, "grace": grace, "endpoint": endpoint if hosts > 1 else None}
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        below = [sys.executable, "-P", str(Path(__file__).with_name("supervised.py"))]
        options = [f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}", "--tee=3", f"--log-dir={folder / 'logs'}"]
        command = [*below, "agent", place, *meeting, *options, "--no-python", *below, "rank", place]
        agent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env=_environment(root, ranks, threads, hosts),
        )  # fmt: skip
        with _ending(agent, folder, grace):
            _follow(agent, folder, timeout, max_restarts, grace)
        return results(folder, agent.returncode, ranks * hosts)


def worker_name(worker: Callable[..., Any]) -> tuple[str, Path]:
    """Return ``module:function``, and the folder from which the module is imported.

    Raises:
        UsageError: another process cannot import the function.
    """
    module, path = getattr(worker, "__module__", None) or "", getattr(worker, "__qualname__", "")
    if module == "__main__":
        raise UsageError(
            f"The worker {path or worker!r} is defined in a notebook's cell or a script, which another process cannot import: "
            "put it into a module, such as my_worker.py beside the notebook, and import it."
        )
    if not module or not path or "<" in path:
        raise UsageError(f"The worker {path or worker!r} has no name to import it by: use a function of a module.")
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None:
        raise UsageError(f"The module {module} of the worker has no file: use a function of a module on the path.")
    file = Path(specification.origin)
    depth = len(module.split(".")) - (file.name != "__init__.py")
    return f"{module}:{path}", file.resolve().parents[depth]


def _meeting(hosts: int, endpoint: str | None) -> list[str]:
    """Return torchrun's options for where the machines meet."""
    if endpoint is None:
        if hosts > 1:
            raise UsageError(f"{hosts} machines need a place to meet: give endpoint=HOST:PORT, the same on all.")
        return ["--standalone", "--nnodes=1"]
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(f"endpoint is {endpoint!r}: write HOST:PORT, such as node0:29500.")
    if hosts == 1 and _taken(host, int(port)):
        raise UsageError(f"Port {port} is in use on this machine: choose another, or leave the endpoint out.")
    return [f"--nnodes={hosts}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=cookbook"]


def _taken(host: str, port: int) -> bool:
    """Say whether another program listens at this port of this machine."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _environment(root: Path, ranks: int, threads: int | None, hosts: int) -> dict[str, str]:
    """Return this process's environment with what the ranks need on top."""
    own = Path(__file__).resolve().parents[2]
    path = [str(root), str(own), *filter(None, [os.environ.get("PYTHONPATH")])]
    share = max(1, (psutil.cpu_count(logical=False) or 1) // ranks)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "OMP_NUM_THREADS": str(threads or os.environ.get("OMP_NUM_THREADS") or share),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        **({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if hosts > 1 else {}),  # see `joined`
    }


def _follow(agent: subprocess.Popen[bytes], folder: Path, timeout: float | None, max_restarts: int, grace: float) -> None:
    """Print what the ranks print until they have ended.

    An agent that no longer reaches the meeting point can wait for it for ever: when its ranks have failed for the
    last time, it has `grace` seconds to end.

    Raises:
        RankError: they have not ended in time.
        SilenceError: another machine fell silent.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    assert agent.stdout is not None
    threading.Thread(target=_read, args=(agent.stdout, lines), daemon=True).start()
    began = time.monotonic()
    deadline = math.inf if timeout is None else began + timeout
    busy = looked = began
    while True:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=0.1)
            if line is None:
                break
            print(line, flush=True)
        now = time.monotonic()
        if now - looked > LOOK:
            looked = now
            if (folder / "lost").exists():
                raise SilenceError(json.loads((folder / "lost").read_text(encoding="utf-8")))
            if not failed_for_good(folder, max_restarts):
                busy = now
            elif now - busy > grace:
                agent.kill()
        if now > deadline:
            asked = _print_stacks(folder)
            raise RankError(
                f"{len(asked)} ranks had not ended after {timeout:g} s: the stacks above say where each of them is."
                if asked else f"No rank had started after {timeout:g} s: try a longer timeout."
            )  # fmt: skip
    agent.wait()


def _read(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.decode(errors="replace").rstrip("\n"))
    lines.put(None)


def _print_stacks(folder: Path) -> list[str]:
    """Let all ranks write down where they are, and print it; return the ranks that were asked."""
    asked = []
    for rank, (pid, _) in processes(folder).items():
        if hasattr(signal, "SIGUSR1") and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGUSR1)
            asked.append(rank)
    time.sleep(1.0)
    for rank in asked:
        for line in (folder / f"stacks-{rank}").read_text(errors="replace").splitlines():
            print(f"[rank {rank}] {line}")
    return asked


@contextlib.contextmanager
def _ending(agent: subprocess.Popen[bytes], folder: Path, grace: float) -> Iterator[None]:
    """See to it that no process is left when the block ends, in whatever way."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            agent.send_signal(signal.SIGTERM)  # torchrun passes it on
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(min(grace, GRACE_APART) if isinstance(error, SilenceError) else grace)
        raise
    finally:
        assert agent.stdin is not None
        agent.stdin.close()
        for pid, _ in processes(folder).values():
            _kill_group(pid, str(folder))
        if agent.poll() is None:
            agent.kill()
        agent.wait()


def _kill_group(pid: int, mark: str) -> None:
    """Kill a rank and the processes that it started."""
    process = rank_process(pid, mark)
    if process is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        family = [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=5)
