"""The house rules that a machine can check: floors, sizes, banned calls, leaks, mirrors, CI."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import FLOORS, PACKAGE, ROOT, floor_of, sources

MOST_LINES = 300
MIRRORS_OF_NO_MODULE = ("project", "notebooks", "gpu")


def imported_floors(source: str) -> list[tuple[int, str]]:
    """Return (line, floor) for everything that the source imports from cookbook, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "cookbook" else [module]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if not head:
                found.append((node.lineno, "a relative import"))
            elif head == "cookbook":
                floor = rest.split(".")[0]
                known = (PACKAGE / floor).is_dir() or (PACKAGE / f"{floor}.py").is_file()
                found.append((node.lineno, floor if floor and known else "__init__"))
    return found


def violations(source: str, floor: str) -> list[str]:
    """Return the imports in the source of a module on `floor` that do not go downwards."""
    below = FLOORS[: FLOORS.index(floor)]
    return [f"line {line} imports {name}" for line, name in imported_floors(source) if name != floor and name not in below]


def banned_calls(source: str) -> list[str]:
    """Return the calls that unpickle, or that silence warnings, and star imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"line {node.lineno}: import *")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        values = [*map(ast.unparse, node.args), *words.values()]
        if (
            (name == "torch.load" and words.get("weights_only") != "True")
            or re.fullmatch(r"(cloud)?pickle\.(loads?|Unpickler)|joblib\.load", name)
            or words.get("allow_pickle") == "True"
            or (re.search(r"(filterwarnings|simplefilter)$", name) and "'ignore'" in values)
        ):
            found.append(f"line {node.lineno}: {name}({', '.join(values)})")
    return found


def project_files() -> Iterator[Path]:
    """Yield every file that is, or is about to be, committed.

    The listing is git's own; outside a checkout there is none, and the test skips.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no git checkout to list: {error}")
    paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    yield from (path for path in paths if path.is_file())


def test_imports_go_downwards() -> None:
    unknown = {floor_of(path) for path in sources("cookbook")} - set(FLOORS)
    assert not unknown, f"give {sorted(unknown)} a place in FLOORS"
    wrong = {str(path): violations(path.read_text("utf-8"), floor_of(path)) for path in sources("cookbook")}
    assert not {path: found for path, found in wrong.items() if found}


@pytest.mark.parametrize(
    ("source", "floor", "allowed"),
    [
        ("from cookbook.errors import UsageError", "files", True),
        ("from cookbook.data.splits import Split", "data", True),
        ("from cookbook import measure", "deploy", True),
        ("import torch", "errors", True),
        ("from cookbook.training import fit", "measure", False),
        ("import cookbook.cli.train", "plots", False),
        ("from cookbook import evidence", "deploy", False),
        ("from cookbook import __version__", "measure", False),
        ("import cookbook", "measure", False),
        ("def late():\n    from cookbook.cli import main", "evidence", False),
        ("from .splits import Split", "data", False),
    ],
)
def test_the_floor_check_tells_up_from_down(source: str, floor: str, allowed: bool) -> None:
    assert (violations(source, floor) == []) is allowed


@pytest.mark.parametrize("path", sources("cookbook"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short_and_say_what_they_hold(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text)), "the module needs a docstring"


def test_nothing_unpickles_and_no_warning_is_silenced() -> None:
    found = {str(path): banned_calls(path.read_text("utf-8")) for path in sources("cookbook", "notebooks")}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    ("source", "banned"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, map_location='cpu', weights_only=True)", False),
        ("pickle.load(file)", True),
        ("pickle.dumps(value)", False),
        ("numpy.load(path, allow_pickle=True)", True),
        ("warnings.filterwarnings('ignore')", True),
        ("warnings.simplefilter(action='ignore')", True),
        ("warnings.simplefilter('error')", False),
        ("from torch import *", True),
    ],
)
def test_the_search_for_banned_calls_finds_them(source: str, banned: bool) -> None:
    assert bool(banned_calls(source)) is banned


# Assembled from pieces, so that this file does not contain what it searches for. Someone called "me" is an example.
LEAKS = re.compile(
    "|".join(
        [
            r"(?<![\w./~-])/(?:ro" + r"ot|wo" + r"rk|opt|srv|mnt|var/folders|tmp/ipykernel)[_/][\w.-]",
            r"(?<![\w./~-])/(?:ho" + r"me|Us" + r"ers)/(?!me\b)[\w.-]",
            r"\b[A-Za-z]:\\+Us" + r"ers\\+(?!me\b)\w",
            r"\.py" + r"env\b",
            r"\bpypi\." + r"org|python" + r"hosted\.org|download\.py" + r"torch\.org|conda\.ana" + r"conda\.org",
            r"registry\.npm" + r"js|deb\.deb" + r"ian\.org|/simp" + r"le/",
        ]
    ).encode()
)


def test_no_machine_path_and_no_registry_address_is_committed() -> None:
    found = {}
    for path in project_files():
        if path.suffix != ".gz":  # compressed images, byte for byte as they were published
            hits = [match.group().decode("utf-8", "replace") for match in LEAKS.finditer(path.read_bytes())]
            if hits:
                found[str(path.relative_to(ROOT))] = hits[:3]
    assert not found


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("/ho" + "me/ada/models", True),
        ("open('/wo" + "rk/main/x')", True),
        ("File /t" + "mp/ipykernel_12/3.py", True),
        ("C:" + "\\Us" + "ers\\ada", True),
        ("C:" + "\\\\Us" + "ers\\\\ada", True),
        ("C:" + "\\Us" + "ers\\me", False),
        ("https://py" + "pi.org/x", True),
        ("~/.cache/optimization-cookbook", False),
        ("https://example.org/ho" + "me/page", False),
        ("frame/wo" + "rk/shop", False),
    ],
)
def test_the_search_for_leaks_finds_them(text: str, leaks: bool) -> None:
    assert bool(LEAKS.search(text.encode())) is leaks


def test_tests_mirror_the_package() -> None:
    for path in sources("tests"):
        folder, *rest = path.relative_to(ROOT / "tests").parts
        assert path.name != "__init__.py", f"{path}: test folders are no packages"
        if rest:
            assert (PACKAGE / folder).is_dir() or folder in MIRRORS_OF_NO_MODULE, f"{path} mirrors no part of cookbook/"
        elif folder not in ("conftest.py", "test_face.py"):  # the face is the package's __init__.py
            name = folder.removeprefix("test_").removesuffix(".py")
            assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), f"{path} mirrors no module"
    names = Counter(path.name for path in sources("tests") if path.name != "conftest.py")
    assert [name for name, times in names.items() if times > 1] == [], "pytest imports test files by their basename"


def test_every_part_of_the_package_is_tested() -> None:
    mirrored = {part.removeprefix("test_") for path in sources("tests") for part in (path.parent.name, path.stem)}
    untested = {floor_of(path) for path in sources("cookbook")} - {"__init__", "errors"} - mirrored  # errors holds no code
    assert untested == set()


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "make test"]
