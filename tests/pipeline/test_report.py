"""The report: one page that needs nothing else, and code in it that runs."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_case import Scale, shrink

from cookbook.pipeline import Budget, Compressed, Quantize

VOID = {"meta", "img", "source", "br", "hr"}


class Checker(HTMLParser):
    """Collects what a page loads, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.texts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.texts[tag] = self.texts.get(tag, 0) + 1
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    budget = Budget(latency=100.0, accuracy_drop=100.0, bytes=1e-3)
    stages = (Scale(0.5, name="<b>bold</b>"), Quantize("ptq"))
    return shrink(tmp_path_factory.mktemp("report"), stages=stages, budget=budget, entropy_coded=True)


def test_the_page_is_whole_and_loads_nothing(compressed: Compressed) -> None:
    page = compressed.report.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.texts["html"] == 1 and "script" not in checker.texts and "link" not in checker.texts
    assert len(checker.loads) == 2 and all(load.startswith("data:image/png;base64,") for load in checker.loads)
    assert "@import" not in page and "url(" not in page and "prefers-color-scheme: dark" in page


def test_it_says_what_was_asked_and_what_came_out(compressed: Compressed) -> None:
    page = html.unescape(compressed.report.read_text(encoding="utf-8"))
    assert compressed.verdict in page and str(compressed.budget) in page
    assert page.count(">met<") == 2 and page.count(">missed by") == 1
    assert "Times 0.5, after nothing." in page and "quantize (shipped)" in page
    assert compressed.packed is not None
    for file in (compressed.path, compressed.packed):
        assert f"{file.stat().st_size:,}" in page
    assert "QGemm" in page or "MatMulInteger" in page or "QLinearMatMul" in page


def test_names_cannot_bring_elements_into_the_page(compressed: Compressed) -> None:
    assert "<b>" not in compressed.report.read_text(encoding="utf-8")


def test_the_code_in_it_loads_the_file(compressed: Compressed) -> None:
    (code,) = re.findall(r"<code>(import.*?)</code>", compressed.report.read_text(encoding="utf-8"), re.DOTALL)
    folder: Path = compressed.path.parent
    done = subprocess.run(
        [sys.executable, "-c", html.unescape(code)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) in [(0, f"[{label}]") for label in range(3)], done.stderr
