"""The errors that a user meets: each says what was wrong, what was expected and what to do.

Everything that the cookbook raises on purpose derives from `CookbookError`, so that the command
line and the notebooks can print one sentence instead of a traceback.
"""

from __future__ import annotations


class CookbookError(Exception):
    """Base of every failure that the cookbook explains in one sentence."""


class UsageError(CookbookError, ValueError):
    """An argument or a setting has a value that cannot work."""


class DataError(CookbookError):
    """A dataset is missing, corrupt, too small or of the wrong split."""


class CheckpointError(CookbookError):
    """A saved model or training state is damaged or belongs to something else."""


class NonFiniteLossError(CookbookError, ArithmeticError):
    """Training produced a loss that is NaN or infinite."""


class DeploymentError(CookbookError):
    """A model could not be exported, or a deployed file could not be loaded or run."""


class EvidenceError(CookbookError):
    """Recorded evidence is malformed, or a claim asks for something that was never recorded."""
