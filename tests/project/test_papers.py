"""README, CONTRIBUTING, the data's paper and the citation say what is true of the project."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from house import FLOORS, ROOT, floor_of, sources

from cookbook.evidence import Table

PAPERS = ["README.md", "CONTRIBUTING.md", "data/README.md"]


def read(name: str) -> str:
    """Return the text of a file of the project."""
    return (ROOT / name).read_text("utf-8")


def make_targets() -> set[str]:
    """Return the targets that `make` alone prints."""
    return set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE)) - {"help"}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_name_targets_that_exist(paper: str) -> None:
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", read(paper), re.MULTILINE)) <= make_targets()


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_link_to_files_that_exist(paper: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", read(paper)) if "://" not in link]
    assert [link for link in links if not ((ROOT / paper).parent / link).exists()] == []


def test_contributors_are_sent_to_files_that_exist() -> None:
    paths = re.findall(r"`([a-z]+(?:/[\w.]+)+|[\w-]+\.(?:toml|yml|lock))`", read("CONTRIBUTING.md"))
    assert len(paths) > 5
    assert [path for path in paths if "NN_" not in path and not (ROOT / path).exists()] == []


def test_the_readme_explains_every_target() -> None:
    assert {target for target in make_targets() if f"`make {target}`" not in read("README.md")} == set()


def test_the_readme_explains_every_setting() -> None:
    code = "".join(path.read_text("utf-8") for path in sources("cookbook"))
    settings = set(re.findall(r"\"(COOKBOOK_[A-Z]+)\"", code))
    assert "COOKBOOK_PROFILE" in settings
    assert {name for name in settings if f"| `{name}` |" not in read("README.md")} == set()


def test_the_readme_links_every_lesson() -> None:
    lessons = [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [lesson for lesson in lessons if f"]({lesson})" not in read("README.md")] == []


def test_the_readme_draws_the_house_from_the_ground_up() -> None:
    drawn = re.findall(r"^  ([a-z_]+)(?:/|\.py)  ", read("README.md"), re.MULTILINE)
    assert drawn == [name for name in FLOORS if name in {floor_of(path) for path in sources("cookbook")} - {"__init__"}]


def test_the_readme_keeps_a_place_for_the_numbers() -> None:
    text = read("README.md")
    assert [text.count(f"<!-- scoreboard:{word} -->") for word in ("begin", "end")] == [1, 1]
    assert text.index("scoreboard:begin") < text.index("scoreboard:end")


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.+?)```", read("README.md"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shown: list[Table] = []
    exec(compile(example.replace("print(scoreboard(", "shown.append(scoreboard("), "README.md", "exec"), {"shown": shown})
    assert [row[:2] for row in shown[0].rows] == [("mine (quick)", "torch eager"), ("mine, exported (quick)", "ONNX Runtime")]
    assert "same class on 100.00%" in capsys.readouterr().out
    assert (tmp_path / "my_model.onnx").stat().st_size > 4 * 784 * 64


def test_the_checksums_in_the_data_paper_are_those_of_the_files() -> None:
    rows = re.findall(r"^\| `(.+)` \| ([\d,]+) \| `(\w+)` \| `(\w+)` \|$", read("data/README.md"), re.MULTILINE)
    files = {path.name: path.read_bytes() for path in (ROOT / "data" / "FashionMNIST" / "raw").glob("*.gz")}
    assert len(files) == 4
    assert {name: (int(size.replace(",", "")), md5, sha) for name, size, md5, sha in rows} == {
        name: (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }


def test_citation_and_package_agree() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    (version,) = re.findall(r'^__version__ = "(.+)"$', read("cookbook/__init__.py"), re.MULTILINE)
    assert {"cff-version", "message", "title", "authors"} <= citation.keys(), "the format requires these"
    assert str(citation["version"]) == project["version"] == version
    assert citation["license"] == project["license"]
    assert citation["keywords"] == project["keywords"]
