"""Where a model stopped an exporter: its own line, or the operator (lesson 07)."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import onnxscript
import torch
from torch import nn

from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError

MACHINERY = tuple(str(Path(file).parent) for file in (torch.__file__, onnxscript.__file__, __file__))
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
PACKAGES = ("site-packages", "dist-packages")  # may lie inside of the standard library's folder
NAMED_LINE = re.compile(r'File "([^"]+)", line (\d+)')
NAMED_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|operator '([\w.:]+)'")
CONSTANT_BATCH = re.compile(r"static shape of|specialized")  # how torch.export says that a free size became a number


def stopped(model: nn.Module, error: BaseException, what: str) -> DeploymentError:
    """Return the sentence for a model that an exporter or its own code gave up on.

    Args:
        model: its class is the sentence's subject.
        error: what was raised; it and its causes are searched for a line outside of torch, and then for an operator.
        what: the predicate, such as ``cannot be exported``.
    """
    chain = list(_causes(error))
    place = next(filter(None, map(_line, chain)), None) or next(filter(None, map(_operator, chain)), None)
    if CONSTANT_BATCH.search(str(chain[0])):
        advice = "it fixes the batch size, so look for a condition or a number in its forward that depends on x.shape[0]"
    elif place:
        advice = "rewrite this part of the model"
    else:
        advice = "run torch.export.export(model, (example,)) to see what stops it"
    where = f" because of {place}" if place else ""
    return DeploymentError(f"{type(model).__name__} {what}{where} ({first_line(chain[0])}): {advice}.")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error's causes and then itself, the innermost first."""
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
    yield error


def _line(error: BaseException) -> str | None:
    """Return the innermost line of the model's own code that the message or the traceback names."""
    named = [(name, int(line)) for name, line in NAMED_LINE.findall(str(error))]
    called = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{name}:{line}" for name, line in (*called, *named) if _is_own(name)]
    return own[-1] if own else None


def _is_own(name: str) -> bool:
    """Say whether a file holds a model, and is not part of what exports or interprets it."""
    installed = any(folder in Path(name).parts for folder in PACKAGES)
    library = name.startswith(STANDARD_LIBRARY) and not installed
    return not (library or name.startswith("<") or any(Path(name).is_relative_to(folder) for folder in MACHINERY))


def _operator(error: BaseException) -> str | None:
    found = NAMED_OPERATOR.search(str(error))
    return f"the operator {found[1] or found[2]}" if found else None
