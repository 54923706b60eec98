"""The compressors' benchmark: every way that is installed here computes the model, and what fails is a row with its reason."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cookbook.bench import compressors, peers, recipes
from cookbook.bench.compressors import LINES, REHEARSAL, Sizes, baseline_given, named_artefacts, peers_table, run_compressors
from cookbook.bench.recipes import FLOAT, WAYS, Given, Way, statements
from cookbook.data import Splits
from cookbook.deploy.openvino_format import TELEMETRY
from cookbook.deploy.torchscript import load_torchscript
from cookbook.errors import UsageError
from cookbook.evidence import Ledger, Measurement
from cookbook.measure import count_macs
from cookbook.models import ResNetConfig, build

SMALL = Sizes(calibrated=64, trained=100, tested=200, predicted=100, rounds=3)
NAMED = {way.name: way for way in WAYS}


def counted(first: int) -> int:
    """A docstring, which is not counted."""
    import math

    if first:
        return math.floor(first)
    return first  # fmt: skip


def broken(given: Given, file: Path) -> Path:
    raise RuntimeError("this library\nis broken")


def missing(given: Given, file: Path) -> Path:
    module = importlib.import_module("a_package_that_nobody_has")
    return Path(module.compress(given, file))


@pytest.fixture(scope="module")
def given(fashion_mnist: Splits) -> Given:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=16, stem_stride=2)).eval()
    from_baseline = baseline_given(fashion_mnist, SMALL)
    assert from_baseline.train.role == from_baseline.calibration.role == "train"
    return replace(from_baseline, model=model, tuning=replace(from_baseline.tuning, channels_last=False))


@pytest.fixture(scope="module")
def plain(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """Return the way that writes the float model, exported once for all tests that only need some file."""
    exported = recipes.in_float(given, tmp_path_factory.mktemp("half") / "model.onnx")
    return Way(FLOAT, lambda given, file: Path(shutil.copyfile(exported, file)))


def test_statements_are_counted_whatever_their_layout() -> None:
    assert statements(counted) == 4
    assert NAMED["this cookbook: prune, quantize"].lines_of_code == statements(recipes.by_cookbook_pruned) + statements(
        recipes.by_cookbook
    )


def test_all_that_is_installed_runs_and_what_fails_says_why(given: Given, plain: Way, fashion_mnist: Splits) -> None:
    weights = {name: value.clone() for name, value in given.model.state_dict().items()}
    chosen = (
        "ONNX Runtime's tool",
        "eager mode",
        "Torch-Pruning, ONNX Runtime's tool",
        "this cookbook: prune, quantize",
    )
    ways = [plain, *(NAMED[name] for name in chosen), Way("broken", broken), Way("missing", missing)]
    said: list[str] = []
    rows = run_compressors(given, fashion_mnist, sizes=SMALL, ways=ways, say=said.append)
    assert [row.subject for row in rows] == [way.name for way in ways]
    wide, tool, eager, peer, ours = rows[:5]
    assert wide.bytes and all(0.2 < (row.bytes or 0) / wide.bytes < 0.75 for row in (tool, eager))
    assert all((row.bytes or 0) < (tool.bytes or 0) for row in (peer, ours))
    for row in rows[:5]:
        assert (row.split, row.images, set(row.latency)) == ("test", 200, {1, 64}), row.runtime
    for row in rows[5:]:
        assert row.correct is None and not row.latency and row.recorded == wide.recorded
    assert rows[5].runtime == "not run: RuntimeError: this library"
    assert "a_package_that_nobody_has" in rows[6].runtime and "make bench-peers" in rows[6].runtime
    assert "torch-pruning" in peer.provenance.libraries and "torch-pruning" not in tool.provenance.libraries
    assert all(row.values[LINES] == way.lines_of_code for row, way in zip(rows, ways, strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in given.model.state_dict().items())
    text = peers_table([replace(wide, recorded="2000-01-01T00:00:00+00:00"), *rows]).to_markdown()
    assert peers_table(rows[1:]).to_markdown().count("×") == 0  # a damaged ledger without float32 has nothing to divide by
    assert text.count("1.00× [1.00, 1.00]") == 2 and "this library" in text


def test_quantized_files_compute_the_model_on_images_that_no_calibration_saw(
    given: Given, fashion_mnist: Splits, tmp_path: Path
) -> None:
    images = fashion_mnist.validation.subset(64).normalized()
    with torch.no_grad():
        expected = given.model(images)
        script = load_torchscript(compressors._made(NAMED["eager mode"], given, tmp_path / "m.pt"))(images)
        program = torch.export.load(compressors._made(NAMED["torchao"], given, tmp_path / "m.pt2"))
        found = {"eager mode": script, "torchao": program.module()(images)}
    for name, logits in found.items():
        assert (logits - expected).abs().mean() < 0.1 * expected.std(), name
        assert not torch.equal(logits, expected), name
    kernels = [value.dtype for value in program.state_dict.values() if value.ndim == 4]
    assert kernels and set(kernels) == {torch.int8}  # the float weights do not travel with the integers


def test_pruning_leaves_both_sides_as_many_multiplications(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []

    def note(model: torch.nn.Module, *rest: Any) -> None:
        left.append(count_macs(model, given.images[:1]) / count_macs(given.model, given.images[:1]))

    monkeypatch.setattr(recipes, "fine_tune", note)
    monkeypatch.setattr(recipes, "by_cookbook", lambda given, file: file)
    monkeypatch.setattr(recipes, "by_onnxruntime", lambda given, file: file)
    for make in (recipes.by_cookbook_pruned, recipes.by_torch_pruning):
        make(given, tmp_path / "model.onnx")
    assert len(left) == 2 and all(abs(share / given.share - 1) < 0.1 for share in left)


def test_telemetry_cannot_be_imported_while_a_recipe_runs(given: Given, tmp_path: Path) -> None:
    seen: list[object] = []

    def look(given: Given, file: Path) -> Path:
        seen.append(sys.modules[TELEMETRY])
        return file

    before = sys.modules.get(TELEMETRY)
    compressors._made(Way("look", look), given, tmp_path / "nothing.onnx")
    assert seen == [None] and sys.modules.get(TELEMETRY) is before


def test_wrong_uses_are_one_sentence(given: Given, plain: Way, fashion_mnist: Splits, tmp_path: Path) -> None:
    quiet = functools.partial(run_compressors, given, fashion_mnist, say=lambda text: None)
    with pytest.raises(UsageError, match="2 rounds"):
        quiet(sizes=replace(SMALL, rounds=2))
    with pytest.raises(UsageError, match="without it there is no comparison"):
        quiet(sizes=SMALL, ways=[Way("broken", broken)])
    with pytest.raises(UsageError, match="rename the folder of one"):
        named_artefacts([tmp_path / "a" / "same" / "model.onnx", tmp_path / "b" / "same" / "model.onnx"])
    with pytest.raises(UsageError, match="called student"):
        named_artefacts([tmp_path / "student" / "model.onnx"])


def test_nncf_writes_integers_for_openvino(given: Given, fashion_mnist: Splits) -> None:
    pytest.importorskip("nncf", reason="NNCF is installed by 'make bench-peers' alone")
    rows = run_compressors(given, fashion_mnist, sizes=SMALL, ways=[NAMED[FLOAT], NAMED["NNCF"]], say=lambda text: None)
    assert rows[1].runtime == "OpenVINO" and (rows[1].bytes or 0) < (rows[0].bytes or 0)


def test_the_table_without_rows_says_how_to_get_them() -> None:
    assert "make bench-peers" in str(peers_table([Measurement(subject=FLOAT, lesson="08", runtime="ONNX Runtime")]))


def test_the_command_measures_an_artefact_and_keeps_the_rows(
    given: Given, plain: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COOKBOOK_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.delenv("COOKBOOK_PROFILE", raising=False)
    monkeypatch.setattr(peers, "baseline_given", lambda splits, sizes: given)
    monkeypatch.setattr(peers, "run_compressors", functools.partial(run_compressors, ways=[plain]))
    (tmp_path / "half").mkdir()
    file = plain.make(given, tmp_path / "half" / "model.onnx")
    peers.main(["--only", "compressors", "--rehearse", "--artefact", str(file)])
    rows = Ledger.local().measurements()
    assert [row.subject for row in rows] == [FLOAT, *(f"this cookbook: compress, {name}" for name in ("student", "half"))]
    assert rows[0].images == REHEARSAL.tested and rows[0].correct == rows[2].correct != rows[1].correct
    assert "float32 (quick)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="full profile only"):
        peers.main(["--record"])
