"""The `cookbook` command: course, train, scoreboard, doctor, zoo, bench, record (lesson 00).

A command's module is imported when it is called, so that ``--help`` answers at once and ``doctor``
works where torch does not.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cookbook import __version__
from cookbook.errors import CookbookError, UsageError

COMMANDS = {
    "course": "Run the lessons and print the scoreboard of what they measured.",
    "doctor": "Say what this machine can do, and what keeps it from doing more.",
    "train": "Train the running model on Fashion-MNIST.",
    "compress": "Compress a model, yours too, under a budget of time, accuracy and bytes.",
    "scoreboard": "Print what was measured, from a ledger.",
    "zoo": "Say which torchvision models go all the way to a served file.",
    "bench": "Print what the library itself costs, as interleaved ratios.",
    "record": "Measure what the project ships, for the committed evidence.",
}
# Typer keeps this class in a private package (click's own in older releases), and shows its errors in a panel
CommandLineError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class Interrupted(Exception):
    """Ctrl-C, carried through Typer, which would drop the message."""


class CommandGroup(TyperGroup):
    """Lists the commands by name, and imports the one that is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take Typer's arguments."""
        super().__init__(*args, **kwargs)
        self.commands.update({name: TyperCommand(name, help=text) for name, text in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that `args` begin with, and the arguments behind it."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt) or "Interrupted.") from interrupt


def _load(name: str) -> Any:
    """Import a command.

    Raises:
        CookbookError: a library that the command needs is missing or broken.
    """
    try:
        module = importlib.import_module(f"cookbook.cli.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CookbookError(
            f"'{name}' cannot start ({reason}): install 'optimization-cookbook[lessons,docs]', or see 'cookbook doctor'."
        ) from error
    single = typer.Typer(add_completion=False)
    single.command(name)(getattr(module, name))
    return typer.main.get_command(single)


app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cookbook {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Make deep learning fast and small, with evidence.

    Start with 'cookbook course', which runs the lessons, or with 'cookbook doctor' when something is
    slow or missing. 'cookbook COMMAND --help' explains a command with an example.

    Exit status: 0 success, 1 failure, 2 wrong use, 3 a budget that is not met, 130 interrupted.
    """


def main() -> None:
    """Run the command line: one line on stderr for every failure that the cookbook explains.

    Exit status: 0 success, 1 failure, 2 usage, 3 a budget that is not met, 130 interrupted.
    """
    try:
        status = app(prog_name="cookbook", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        _leave(str(error), 2)
    except CookbookError as error:
        _leave(str(error), 1)
    except Interrupted as interrupt:
        _leave(str(interrupt), 130)
    except CommandLineError as error:
        _explain(error)
    except BrokenPipeError:
        # the reader, such as 'head', has left: nothing more can be said, not even by the interpreter's last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _leave(f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", 1)
    else:
        if status:
            raise SystemExit(status)


def _explain(error: Any) -> None:
    """Leave with the one line of a wrong command or option; `cookbook` alone has printed the help already."""
    if not sys.argv[1:]:
        raise SystemExit(error.exit_code)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "cookbook"
    message = " ".join(error.format_message().split()).rstrip(".")
    _leave(f"{message}: see '{command} --help'.", error.exit_code)


def _leave(message: str, status: int) -> None:
    print(f"cookbook: {message}", file=sys.stderr)
    raise SystemExit(status)
