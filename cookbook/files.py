"""Where the project's files are, and writes that leave either the old file or the new one.

Introduced in lesson 00.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cookbook.errors import UsageError


def data_directory() -> Path:
    """Return the folder with the datasets, checkpoints and recorded results.

    The environment variable ``COOKBOOK_DATA`` overrides the ``data`` folder of the checkout.

    Raises:
        UsageError: neither names an existing folder.
    """
    setting = os.environ.get("COOKBOOK_DATA")
    folder = Path(setting).expanduser() if setting else Path(__file__).resolve().parents[1] / "data"
    if not folder.is_dir():
        raise UsageError(
            f"The data folder {folder} does not exist: set COOKBOOK_DATA to the 'data' folder of a checkout of the cookbook."
        )
    return folder


def cache_directory() -> Path:
    """Return the folder for files that can be made again; it is created when it is missing.

    The environment variable ``COOKBOOK_CACHE`` overrides the default, which is
    ``optimization-cookbook`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    setting = os.environ.get("COOKBOOK_CACHE")
    if setting:
        folder = Path(setting).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "optimization-cookbook"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `destination` that replaces it when the block ends well.

    The bytes are flushed to the disk before the rename, so that after a crash or SIGKILL at any
    moment `destination` holds either its old content or the whole new one. When the block raises,
    the temporary file is removed and `destination` is untouched.

    Example:
        >>> with atomic_path("weights.bin") as temporary:  # doctest: +SKIP
        ...     temporary.write_bytes(payload)
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; a shipped artefact must be as readable as any other file
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
