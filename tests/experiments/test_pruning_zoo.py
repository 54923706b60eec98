"""The table of pruned torchvision models: one real row, and rows that must fail."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cookbook.errors import CookbookError, UsageError
from cookbook.evidence import Ledger
from cookbook.experiments import pruning_zoo
from cookbook.experiments.pruning_zoo import STEPS, ZooRow, bench_ratios, main, prune_model, recorded_table, zoo_table
from cookbook.models import ResNetConfig, build

SIZE = 64


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small network stand in for every model of the zoo, and itself for its exported file."""
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=4, in_channels=3, classes=pruning_zoo.CLASSES, stem_stride=2)).eval()
    monkeypatch.setattr(pruning_zoo, "random_model", lambda name, size, classes: model)
    monkeypatch.setattr(pruning_zoo, "export", lambda model, images, path: model)
    monkeypatch.setattr(pruning_zoo, "Runtime", lambda model, threads: model)


def attempt(**arguments: Any) -> ZooRow:
    return prune_model("resnet18", size=16, multiple=1, rounds=3, **arguments)


def test_a_real_model_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row = prune_model("squeezenet1_1", size=SIZE, rounds=3)
    assert (row.stopped, row.steps) == ("", STEPS)
    assert row.macs == pytest.approx(0.5, rel=0.1)
    assert row.parameters is not None and 0 < row.parameters < 1
    assert row.narrowed is not None and 0 < row.narrowed[0] < row.narrowed[1] == 26
    assert row.speed is not None and row.speed.value > 0
    assert list(tmp_path.iterdir()) == []


def test_another_share_is_met(tiny: None) -> None:
    assert attempt(share=0.3).macs == pytest.approx(0.3, rel=0.1)


def test_a_file_that_computes_something_else_fails_at_parity(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def export_clipped(model: nn.Module, images: Tensor, path: Path) -> nn.Module:
        return nn.Sequential(model, nn.Hardtanh(-0.01, 0.01))

    monkeypatch.setattr(pruning_zoo, "export", export_clipped)
    row = attempt()
    assert row.stopped.startswith("parity: The logits differ by") and row.steps == STEPS[:-2]
    assert row.speed is None and bench_ratios([row]) == []


def test_a_model_that_answers_every_image_alike_fails_before_anything_is_compared(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning_zoo, "_logits", lambda model, images: torch.arange(100.0).repeat(len(images), 1))
    row = attempt()
    assert row.stopped.startswith("forward: Logits of shape (7, 100)") and row.steps == ("prune",)


def test_a_stored_model_that_answers_otherwise_fails(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_other(path: Path) -> nn.Module:
        return Shifted()

    monkeypatch.setattr(pruning_zoo, "load", load_other)
    assert attempt().stopped.startswith("store: The model that was loaded answers otherwise")


class Shifted(nn.Module):
    """Answers, and wrongly."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 100)


def test_what_cannot_be_pruned_so_far_is_a_row_and_the_next_has_its_turn(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = pruning_zoo.prune_model

    def try_one(name: str, **arguments: Any) -> ZooRow:
        if name == "resnet50":
            arguments["share"] = 0.001
        return real(name, **{**arguments, "multiple": 1})

    monkeypatch.setattr(pruning_zoo, "prune_model", try_one)
    out = tmp_path / "table.md"
    with pytest.raises(CookbookError, match="1 of 2 models failed, first resnet50, prune: MACs"):
        main(["--models", "resnet50", "resnet18", "--size", "16", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "1 of 2 models passed" in printed and "Failure: resnet50, prune: MACs(share=0.001" in printed
    assert "resnet50" in out.read_text()
    main(["--models", "resnet18", "--size", "16"])
    assert "1 of 1 models passed" in capsys.readouterr().out


def test_what_is_recorded_is_what_the_lesson_shows(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    ledger = Ledger.recorded()
    assert "Nothing was recorded yet." in str(recorded_table(ledger))
    small = ["--models", "resnet18", "--size", "16", "--multiple", "1", "--rounds", "3"]
    main(small)
    assert not ledger.bench()
    for _ in range(2):
        main([*small, "--record"])
    _, newest = ledger.bench()
    (shown,) = recorded_table(ledger).rows
    values = newest.values
    assert shown == ("resnet18", f"{values['macs_ratio']:.2f}", f"{values['parameters_ratio']:.2f}", str(newest.ratio))


def test_the_quick_profile_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    monkeypatch.setattr(pruning_zoo, "prune_model", lambda *_, **__: pytest.fail("a model ran"))
    with pytest.raises(UsageError, match="full profile only"):
        main(["--record"])


def test_an_error_of_a_library_names_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> nn.Module:
        raise ZeroDivisionError("the planted\nfault")

    monkeypatch.setattr(pruning_zoo, "random_model", fail)
    row = attempt()
    assert row.stopped == "prune: ZeroDivisionError: the planted fault"
    cells = zoo_table([row]).rows[0]
    assert cells == ("resnet18", "—", "—", "—", "—", "fail", *5 * ("—",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "resnet81"], "did you mean resnet18"),
        (["--size", "0"], "--size is 0"),
        (["--share", "1.5"], "use a share between 0 and 1"),
    ],
)
def test_arguments_are_checked_before_anything_runs(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_zoo, "prune_model", lambda *_, **__: pytest.fail("a model ran"))
    with pytest.raises(UsageError, match=words):
        main(arguments)


def test_the_ten_models_are_those_of_the_issue() -> None:
    assert len(set(pruning_zoo.MODELS)) == len(pruning_zoo.MODELS) == 10
