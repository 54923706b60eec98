"""What the tests of the project share: where things are, and the order of the floors."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cookbook"

# From the ground up: a module imports only from names before its own. `__init__` is the package's face.
FLOORS = (
    "errors", "files", "environment", "progress", "data", "models", "measure", "precision", "training", "distributed",
    "distillation", "deploy", "pruning", "quantization", "evidence", "throughput", "speed", "serving", "plots", "pipeline",
    "search", "experiments", "probe", "doctor", "zoo", "execution", "notebooks", "course", "bench", "record", "accelerator",
    "__init__", "cli",
)  # fmt: skip


def floor_of(path: Path) -> str:
    """Return the name directly below cookbook/ to which a file of it belongs."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources(*folders: str) -> list[Path]:
    """Return the Python files below the folders, in order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
