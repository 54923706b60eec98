"""The processes below a launch: ``python -P supervised.py agent|rank FOLDER …``, as `launch` starts them (lesson 03).

The agent is torchrun (https://docs.pytorch.org/docs/stable/elastic/run.html) with one addition, which the ranks share:
they end when the process that launched them is gone. On several machines the agents also watch each other, see `Pulse`.

The folder holds ``task.json``, what to call. Each rank leaves there who it is (``process-RANK``), where it hangs when it
is asked (``stacks-RANK``), and how it ended (``result-RANK.json`` or ``failure-RANK-ATTEMPT.json``); the agent leaves
``agent.json``, and ``lost`` when another machine fell silent. This file imports little, so that a process is up, and can
be ended in good order, before torch is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cookbook.errors import CookbookError, UsageError
from cookbook.files import atomic_path


def end_when_abandoned(grace: float, ask: Callable[[], object] = lambda: None) -> None:
    """Watch, in a thread, whether the process that launched this one is gone, however it ended; then end this one too.

    Standard input is a pipe whose other end only the launching process holds: it ends when that process does.

    Args:
        grace: seconds until this process and those that it started, such as a DataLoader's, are killed.
        ask: called before.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        ask()
        time.sleep(grace)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="watch the launching process", daemon=True).start()


def run_agent(folder: Path, options: list[str]) -> int:
    """Run torchrun with its command-line options; return its exit status."""
    task = _task(folder)
    # torchrun passes SIGTERM on to the ranks, who save their work
    end_when_abandoned(task["grace"], lambda: os.kill(os.getpid(), signal.SIGTERM))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    from cookbook.distributed.pulse import watched

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `launch` tells what they would
    # `launch` reads ``lost`` and ends this process, which may itself wait for the meeting point for ever
    several = (
        watched(task["endpoint"], lambda said: _write(folder / "lost", said)) if task["endpoint"] else contextlib.nullcontext()
    )
    try:
        with several:
            run(parse_args(options))
    except ChildFailedError as error:
        ending: dict[str, object] = {"exits": {str(rank): ended.exitcode for rank, ended in error.failures.items()}}
    except Exception as error:
        ending = {"exits": {}, "message": " ".join(f"{type(error).__name__}: {error}".split())}
    else:
        return 0
    _write(folder / "agent.json", ending)
    return 1


def run_rank(folder: Path) -> None:
    """Call the worker, and leave its result or its failure in the folder."""
    task = _task(folder)
    rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    end_when_abandoned(task["grace"])
    if hasattr(signal, "SIGUSR1"):  # Windows has no such signal
        # held open for as long as the process lives: a signal handler writes to it
        faulthandler.register(signal.SIGUSR1, (folder / f"stacks-{rank}").open("w"), all_threads=True)
    _write(folder / f"process-{rank}", [os.getpid(), int(attempt)])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    try:
        _write(folder / f"result-{rank}.json", find_worker(task["worker"])(*task["arguments"]))
    except Exception as error:
        failure = {
            "rank": int(rank), "time": time.time(), "kind": type(error).__name__, "message": " ".join(str(error).split()),
            "explained": isinstance(error, CookbookError), "traceback": traceback.format_exc(),
        }  # fmt: skip
        _write(folder / f"failure-{rank}-{attempt}.json", failure)
        sys.stdout.flush()
        os._exit(1)  # an exit in good order would wait for exchanges with ranks that are gone


def find_worker(name: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names.

    Raises:
        UsageError: there is no such module or function.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"The worker {name} cannot be imported ({error}): name a function of a module on the path.") from error
    return found


def _task(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "task.json").read_text(encoding="utf-8"))


def _write(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        raise SystemExit(run_agent(Path(sys.argv[2]), sys.argv[3:]))
    run_rank(Path(sys.argv[2]))
