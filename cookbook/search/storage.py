"""Where a study is kept, what it belongs to, and trials whose process is gone (lesson 09)."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import TrialState

from cookbook.errors import CheckpointError, UsageError

Storage = str | os.PathLike[str] | BaseStorage | None
IDENTITY, WORKER = "cookbook search", "worker"  # names of what is noted with a study and with a trial
LOCK_SECONDS = 60  # that SQLite waits while another process writes
ATTEMPTS, PAUSE = 5, 0.2  # where two processes make the tables of a new file at the same moment


def open_storage(storage: Storage) -> BaseStorage:
    """Return Optuna's storage for a file, a URL or nothing.

    Args:
        storage: None: memory, which ends with the process. A path: an SQLite file, made when it is missing. A URL that
            SQLAlchemy knows, such as ``postgresql://user@host/studies``: a database that many machines share. One of
            Optuna's own storages, such as its journal in a shared folder, is taken as it is.

    Raises:
        UsageError: the storage cannot be opened.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    text = os.fspath(storage)
    if "://" in text:
        url, shown = text, f"{text.split('://')[0]}://…"  # the rest can hold a password
    else:
        path = Path(text).expanduser().absolute()
        if path.is_dir():
            raise UsageError(f"The storage {text} is a folder: name a file in it, such as study.db.")
        path.parent.mkdir(parents=True, exist_ok=True)
        url, shown = f"sqlite:///{path.as_posix()}", text
    settings = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite:") else {}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except Exception as error:  # SQLAlchemy's, Optuna's or a missing driver's
            if attempt == ATTEMPTS or isinstance(error, ImportError):
                reason = (str(error).strip().splitlines() or ["no reason given"])[0].replace(url, shown).rstrip(".")
                raise UsageError(
                    f"The storage {shown} cannot be opened ({reason}): give the path of an SQLite file, or a URL whose "
                    "database and driver are there."
                ) from error
        time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def opened_study(storage: Storage, name: str, sampler: BaseSampler, identity: Mapping[str, Any]) -> Iterator[Study]:
    """Yield the study of this name, made when it is missing; Optuna's announcements rest meanwhile.

    Raises:
        UsageError: the storage cannot be opened, or the name is empty.
        CheckpointError: the study belongs to another search; the message says in what.
    """
    if not name:
        raise UsageError("The study has no name: give one, such as 'search'.")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kept = None
    try:
        kept = open_storage(storage)
        study = optuna.create_study(
            storage=kept, sampler=sampler, study_name=name, load_if_exists=True, directions=["maximize", "minimize"]
        )
        _require_same(study, identity)
        yield study
    finally:
        if kept is not None:
            kept.remove_session()
        optuna.logging.set_verbosity(before)


def _require_same(study: Study, identity: Mapping[str, Any]) -> None:
    found = study.user_attrs.get(IDENTITY)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, dict(identity))
        return
    if found is None:
        raise CheckpointError(
            f"The study {study.study_name!r} was not made by cookbook.search: choose another name or storage."
        )
    different = [key for key in identity if found.get(key) != identity[key]]
    if different:
        raise CheckpointError(
            f"The study {study.study_name!r} belongs to another search, with another {' and '.join(different)}: "
            "choose another name or storage, or search as before."
        )


def this_worker() -> dict[str, Any]:
    """Return what tells this process from all others, on this machine and elsewhere."""
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def release_abandoned(study: Study, older_than: float) -> None:
    """Mark running trials as failed whose process on this machine is gone, or that began too long ago.

    Args:
        older_than: seconds; a trial of another machine that runs for longer is given up.
    """
    limit = datetime.now() - timedelta(seconds=older_than)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        old = trial.datetime_start is not None and trial.datetime_start < limit
        if old or (worker is not None and worker["host"] == platform.node() and not _lives(worker)):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _lives(worker: Mapping[str, Any]) -> bool:
    try:
        return bool(psutil.Process(worker["pid"]).create_time() == worker["started"])
    except psutil.NoSuchProcess:
        return False
