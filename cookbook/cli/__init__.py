"""The `cookbook` command: doctor, train, course, scoreboard (lesson 00)."""

from __future__ import annotations

import sys

import typer

from cookbook.cli.train import train
from cookbook.errors import CookbookError, UsageError

app = typer.Typer(
    help="Make deep learning fast and small, with evidence. Start with 'cookbook course' or 'cookbook doctor'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)


@app.callback()
def _root() -> None:
    """Keep `cookbook COMMAND` a group, whatever the number of commands."""


def main() -> None:
    """Run the command line: one line on stderr for every failure that the cookbook explains.

    Exit status: 0 success, 1 failure, 2 usage, 130 interrupted.
    """
    try:
        app(standalone_mode=True)
    except UsageError as error:
        _leave(str(error), 2)
    except CookbookError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt as interrupt:
        _leave(str(interrupt) or "Interrupted.", 130)


def _leave(message: str, status: int) -> None:
    print(f"cookbook: {message}", file=sys.stderr)
    raise SystemExit(status)
