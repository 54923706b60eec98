"""A student in the model's place: another architecture, which learns, is kept, quantized, planned for and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_case import RECIPE, shrink, tiny_data, tiny_net
from torch import nn

from cookbook.data import Augmentation, ResidentLoader
from cookbook.deploy import Runtime, kernels
from cookbook.distillation import student_config
from cookbook.errors import CheckpointError, UsageError
from cookbook.models import PerceptronConfig, ResNetConfig, build
from cookbook.pipeline import Budget, Prune, Quantize, Student, make_plan, training_stages
from cookbook.pipeline.folder import load_weights, read_note, save_weights
from cookbook.pruning import MACs, prune
from cookbook.training import evaluate

LOOSE = Budget(latency=1000.0, accuracy_drop=100.0)
STRIDED = ResNetConfig(depth=8, width=2, classes=3, stem_stride=2)
SLIM = PerceptronConfig(height=8, width=8, classes=3, hidden=(6,))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher-logits"


def test_a_student_of_another_shape_goes_all_the_way_to_integers(tmp_path: Path, cache: Path) -> None:
    stages = (Student(STRIDED, views=2), Quantize(teacher=True))
    found = shrink(tmp_path / "out", stages=stages, budget=LOOSE, augmentation=Augmentation(crop=1))
    assert [stage.name for stage in found.stages] == ["student", "quantize"] and found.chosen == 1
    kept = load_weights(tiny_net(), tmp_path / "out" / "1-student" / "model.safetensors")
    assert kept.config == STRIDED
    images = tiny_data().validation.normalized()
    torch.testing.assert_close(Runtime(found.stages[0].path)(images), kept(images), atol=1e-4, rtol=1e-4)
    assert kernels(found.path).coverage["conv"].share == 1.0
    assert len(list(cache.iterdir())) == 2, "the model answers once for every view"
    assert found.stages[0].note == f"{sum(p.numel() for p in kept.parameters()):,} parameters in another shape."
    assert shrink(tmp_path / "out", stages=stages, budget=LOOSE, augmentation=Augmentation(crop=1)) == found


@pytest.mark.parametrize("views", [None, 8])
def test_it_learns_what_the_model_knows_and_not_from_its_weights(fast: None, tmp_path: Path, views: int | None) -> None:
    model = tiny_net(1)
    shrink(
        tmp_path / "model", model=model, stages=(Student(model.config, replace(RECIPE, epochs=12), alpha=0.0),), budget=LOOSE
    )
    able = load_weights(model, tmp_path / "model" / "1-student" / "model.safetensors")
    stage = Student(SLIM, replace(RECIPE, epochs=12), alpha=1.0, views=views)  # nothing of the labels
    shrink(tmp_path / "slim", model=able, stages=(stage,), budget=LOOSE)
    student = load_weights(able, tmp_path / "slim" / "1-student" / "model.safetensors")
    validation = ResidentLoader(tiny_data().validation, 70)
    assert student.config == SLIM
    assert evaluate(student, validation).accuracy > 0.8 > evaluate(build(SLIM), validation).accuracy


def test_it_can_be_pruned_and_the_course_student_is_the_default(tmp_path: Path) -> None:
    narrower = Prune(MACs(0.6, tolerance=0.2), multiples=(2,))
    found = shrink(tmp_path, stages=(Student(), narrower), budget=LOOSE, recipe=replace(RECIPE, epochs=1))
    whole, cut = (load_weights(tiny_net(), tmp_path / part / "model.safetensors") for part in ("1-student", "2-prune"))
    assert whole.config == student_config(in_channels=1, classes=3)
    before, after = (stage.measurement.macs for stage in found.stages)
    assert before is not None and after is not None and after < 0.8 * before
    assert cut.config != whole.config


def test_an_interrupted_student_ends_as_an_undisturbed_one(fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Student(SLIM, views=2),)
    whole = shrink(tmp_path / "whole", stages=stages, budget=LOOSE)
    with monkeypatch.context() as broken:
        broken.setattr(training_stages, "Outcome", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shrink(tmp_path / "broken", stages=stages, budget=LOOSE)
    assert (tmp_path / "broken" / "1-student" / "training.state").exists()
    resumed = shrink(tmp_path / "broken", stages=stages, budget=LOOSE)
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_the_plan_times_the_student_and_not_the_model() -> None:
    stages = (Student(STRIDED), Quantize(teacher=True))
    plan = make_plan(build(ResNetConfig(depth=14, width=32, classes=3)), tiny_data(), stages=stages,
                     recipe=replace(RECIPE, epochs=20), batch_size=25, device="cpu")  # fmt: skip
    alone = make_plan(build(ResNetConfig(depth=14, width=32, classes=3)), tiny_data(), stages=("distill",),
                      recipe=replace(RECIPE, epochs=20), batch_size=25, device="cpu")  # fmt: skip
    assert [(step.name, step.epochs) for step in plan.steps] == [("student", 20), ("quantize", 4)]
    assert 0 < plan.steps[0].seconds < alone.seconds, "eight answers and a small network, not twenty and a large one"


def test_weights_are_kept_by_configuration_or_by_widths(tmp_path: Path) -> None:
    """A stride is in no tensor: a student of the model's layers with another stride must not come back with the model's."""
    torch.manual_seed(0)
    original = build(ResNetConfig(depth=8, width=4, classes=3))
    student = build(replace(STRIDED, width=4)).eval()
    save_weights(student, original, tmp_path / "student.safetensors", "a note")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_weights(original, tmp_path / "student.safetensors")(images), student(images))
    assert read_note(tmp_path / "student.safetensors") == "a note"
    own = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    own.config = "mine"  # type: ignore[assignment]  # a user's attribute of that name is no configuration of ours
    smaller = prune(own, images, target=MACs(0.5), multiple=1).model.eval()
    save_weights(smaller, own, tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        assert "cookbook.config" not in file.metadata()
    assert torch.equal(load_weights(own, tmp_path / "own.safetensors")(images), smaller(images))
    (tmp_path / "student.safetensors").write_bytes((tmp_path / "student.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="delete its folder to start afresh"):
        load_weights(original, tmp_path / "student.safetensors")


def test_a_student_that_no_family_builds_is_refused(fast: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a model configuration"):
        shrink(tmp_path, stages=(Student("resnet"),), budget=LOOSE)
