"""`cookbook zoo`: the table, the file, and the exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cookbook import zoo
from cookbook.zoo import STEPS, ZOO, Step, ZooRow

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[str], int]]:
    """Replace the zoo by rows of a passing and, for mnasnet0_5, a failing model; return what was asked for."""
    calls: list[tuple[Sequence[str], int]] = []

    def run_zoo(names: Sequence[str], *, size: int) -> list[ZooRow]:
        calls.append((tuple(names), size))
        return [
            ZooRow(name, size, dict.fromkeys(STEPS, Step("fail", "It broke.") if name == "mnasnet0_5" else Step("pass")))
            for name in names
        ]

    monkeypatch.setattr(zoo, "run_zoo", run_zoo)
    return calls


def test_the_table_is_printed_and_written(run: Run, asked: list[tuple[Sequence[str], int]], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    status, printed, err = run("zoo", "resnet18", "swin_t", "--size", 64, "--out", out)
    assert (status, err, asked) == (0, "", [(("resnet18", "swin_t"), 64)])
    assert "swin_t" in printed and f"{out} written." in printed
    assert out.read_text().startswith("| model | logits | export |") and "| swin_t | pass |" in out.read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_without_names_all_are_tried_and_a_failure_is_exit_status_1(
    run: Run, asked: list[tuple[Sequence[str], int]], tmp_path: Path
) -> None:
    status, printed, err = run("zoo", "--out", tmp_path / "table.md")
    assert asked == [(ZOO, 224)]
    assert status == 1 and "13 of 14 models" in printed
    assert err == f"cookbook: {len(STEPS)} steps failed without a known limit, first mnasnet0_5, logits: It broke.\n"
    assert (tmp_path / "table.md").is_file()


def test_wrong_use_is_one_line(run: Run) -> None:
    for arguments, word in [(["resnet81"], "did you mean"), (["resnet18", "--size", "0"], "--size is 0")]:
        status, out, err = run("zoo", *arguments)
        assert (status, out) == (2, "") and word in err and err.count("\n") == 1
