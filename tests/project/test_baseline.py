"""What the project ships is what its record says, to the last image."""

from __future__ import annotations

import json

import pytest
from house import ROOT

from cookbook.data import Augmentation, ResidentLoader, Splits
from cookbook.measure import count_parameters
from cookbook.models import ResNetConfig, load
from cookbook.training import Recipe, evaluate

CHECKPOINT = ROOT / "data" / "checkpoints" / "baseline.safetensors"


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(CHECKPOINT.with_suffix(".json").read_text())


def test_the_checkpoint_evaluates_to_its_record(fashion_mnist: Splits, record: dict) -> None:
    model = load(CHECKPOINT)
    for part in ("validation", "test"):
        result = evaluate(model, ResidentLoader(getattr(fashion_mnist, part), 500))
        assert (result.hits, len(result.labels)) == (record[part]["correct"], record[part]["of"])
        assert result.loss == pytest.approx(record[part]["loss"], rel=1e-5)


def test_it_is_the_running_model(record: dict) -> None:
    model = load(CHECKPOINT)
    assert model.config == ResNetConfig(depth=20, width=32, in_channels=1, classes=10)
    assert count_parameters(model) == 1_084_010


def test_the_record_holds_what_repeats_it(record: dict) -> None:
    assert record["command"].startswith("cookbook train ")
    recipe = Recipe(**record["recipe"])
    assert Augmentation(**record["augmentation"])
    assert len(record["history"]) == recipe.epochs
    assert record["provenance"]["profile"] == "full"
    assert record["provenance"]["commit"]
