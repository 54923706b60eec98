"""Facts that may leave the machine: home folders and user names taken out of them (lesson 01)."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any

NAME_GOES_ON = r"(?![\w-]|\.\w)"  # a full stop behind a path ends a sentence, not a name


def redacted(value: Any, *, home: Path | None = None, user: str | None = None) -> Any:
    """Return `value` with the home folder written as ``~`` and the user's name in paths as ``USER``.

    Args:
        value: a string, or lists, tuples and dictionaries of them, nested at will; other types pass unchanged.
        home: the folder to hide; None for that of the running user, also under its name without links.
        user: the name to hide where it is one part of a path, as in a shared disk's folder; None for the running user's.

    An issue report needs the shape of a path, not whose it is.
    """
    homes = [home] if home is not None else _homes()
    names = [user] if user is not None else _names()
    return _redact(value, homes, names)


def _redact(value: Any, homes: list[Path], names: list[str]) -> Any:
    if isinstance(value, dict):
        return {_redact(key, homes, names): _redact(item, homes, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(item, homes, names) for item in value)
    if not isinstance(value, str):
        return value
    for folder in homes:
        value = re.sub(rf"(?<![\w./\\~-]){re.escape(str(folder))}{NAME_GOES_ON}", "~", value)
    for name in names:
        value = re.sub(rf"(?<=[\\/]){re.escape(name)}{NAME_GOES_ON}", "USER", value)
    return value


def _homes() -> list[Path]:
    """Return the home folder under both of its names, the longer first; none where it is the root of the disk."""
    try:
        home = Path.home()
    except RuntimeError:  # an account without a home
        return []
    return sorted({path for path in (home, home.resolve()) if path != Path(path.anchor)}, key=lambda path: -len(str(path)))


def _names() -> list[str]:
    try:
        return [getpass.getuser()]
    except (ImportError, KeyError, OSError):  # a container's numeric user has no name
        return []
