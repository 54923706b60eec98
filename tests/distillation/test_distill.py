"""The distilling fit: its limits, the teacher left alone, resumed runs, precision, and what is refused."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_students import AUGMENTATION, same_weights, small_loader, small_net, small_split, small_teacher, weights_of
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.distillation import (
    Distillation,
    Ensemble,
    Feature,
    ViewLoader,
    augmented_views,
    decoupled,
    distill,
    logit_mse,
    soft_targets,
    student_config,
)  # fmt: skip
from cookbook.errors import CheckpointError, UsageError
from cookbook.measure import count_parameters
from cookbook.models import build
from cookbook.training import Recipe, fit

RECIPE = Recipe(epochs=2, learning_rate=0.05, label_smoothing=0.1, ema_decay=0.9, seed=11)
HINT = Feature(student="1", teacher="1", loss="hint", weight=0.5)
ATTENTION = Feature(student="2", teacher="2", loss="attention", weight=2.0)
RELATIONAL = Feature(student="4", teacher="4", loss="relational", weight=1.0)
IMAGES, LABELS = small_split(12).normalized(), small_split(12).labels


pytestmark = pytest.mark.usefixtures("one_thread")


def trained(teacher: nn.Module | None = None, recipe: Recipe = RECIPE, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    student = small_net(seed)
    loader = settings.pop("train", None) or small_loader()
    distill(student, teacher or small_teacher(), loader, recipe, progress=False, **settings)
    return student.state_dict()


def answers_of(teacher: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(teacher).eval()(images)


def test_alpha_zero_is_cross_entropy_bit_for_bit() -> None:
    control = small_net()
    fit(control, small_loader(), RECIPE, progress=False)
    assert same_weights(trained(alpha=0.0), control.state_dict())
    assert not same_weights(trained(alpha=0.5), control.state_dict())


@pytest.mark.parametrize("method", ["soft-targets", "logit-mse", "decoupled"])
def test_the_objective_mixes_hard_and_soft_by_alpha(method: Any) -> None:
    student, teacher = small_net().eval(), small_teacher()
    objective = Distillation(teacher, method=method, alpha=0.3, temperature=2.0, beta=5.0, label_smoothing=0.1)
    logits, answers = student(IMAGES), answers_of(teacher)
    soft = {
        "soft-targets": soft_targets(logits, answers, 2.0), "logit-mse": logit_mse(logits, answers),
        "decoupled": decoupled(logits, answers, LABELS, 2.0, beta=5.0),
    }[method]  # fmt: skip
    expected = 0.7 * F.cross_entropy(logits, LABELS, label_smoothing=0.1) + 0.3 * soft
    torch.testing.assert_close(objective(student, IMAGES, LABELS), expected)


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = small_teacher()
    teacher[0].weight.requires_grad_(False)
    teacher[3].eval()
    before, modes = weights_of(teacher), [module.training for module in teacher.modules()]
    trained(teacher, features=(HINT, ATTENTION), method="decoupled")
    assert same_weights(before, teacher.state_dict())
    assert [module.training for module in teacher.modules()] == modes
    assert [weight.requires_grad for weight in teacher.parameters()] == [False, *[True] * 5]
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_student_and_teacher_see_the_very_same_crop() -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    student, teacher = small_net(), small_teacher()
    for name, net in (("student", student), ("teacher", teacher)):
        net.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].clone()))
    distill(student, teacher, small_loader(), Recipe(epochs=1, learning_rate=0.05), mixup=0.5, progress=False)
    assert len(seen["student"]) == len(seen["teacher"]) == 6
    assert all(torch.equal(one, other) for one, other in zip(seen["student"], seen["teacher"], strict=True))
    plain = torch.cat([images for images, _ in small_loader().batches(0)])
    assert not torch.equal(torch.cat(seen["teacher"]), plain), "nothing was mixed"


def test_mixup_mixes_images_and_hard_labels_alike() -> None:
    student, teacher = small_net().eval(), small_teacher()
    torch.manual_seed(4)
    share = torch.distributions.Beta(0.5, 0.5).sample().item()
    second = torch.randperm(len(IMAGES))
    mixed = share * IMAGES + (1 - share) * IMAGES[second]
    logits = student(mixed)
    hard = share * F.cross_entropy(logits, LABELS) + (1 - share) * F.cross_entropy(logits, LABELS[second])
    expected = 0.1 * hard + 0.9 * soft_targets(logits, answers_of(teacher, mixed))
    torch.manual_seed(4)
    torch.testing.assert_close(Distillation(teacher, mixup=0.5)(student, IMAGES, LABELS), expected)


def test_the_cached_teacher_teaches_what_the_live_one_does() -> None:
    views = augmented_views(small_split(), AUGMENTATION, 2)
    logits = torch.stack([answers_of(small_teacher(), view.normalized()) for view in views])
    recipe = Recipe(epochs=2, learning_rate=0.05)
    cached, live = small_net(), small_net()
    distill(cached, None, ViewLoader(views, 8, logits=logits), recipe, method="decoupled", progress=False)
    distill(live, small_teacher(), ViewLoader(views, 8), recipe, method="decoupled", progress=False)
    for name, value in cached.state_dict().items():
        torch.testing.assert_close(value, live.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_distilled_student_comes_closer_to_its_teacher() -> None:
    teacher = small_teacher()
    fit(teacher, small_loader(), Recipe(epochs=8, learning_rate=0.05), progress=False)
    student, recipe = small_net(), Recipe(epochs=12, learning_rate=0.05)
    before = soft_targets(answers_of(student), answers_of(teacher)).item()
    distill(student, teacher, small_loader(), recipe, alpha=1.0, features=(HINT, ATTENTION, RELATIONAL), progress=False)
    assert soft_targets(answers_of(student), answers_of(teacher)).item() < before / 4


class Interrupting(ResidentLoader):
    """Sends SIGTERM before the batch number `at` that a run asks for."""

    at = -1

    def batches(self, epoch: int, first: int = 0):
        for step, batch in enumerate(super().batches(epoch, first), first):
            if epoch * len(self) + step == self.at:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "loader": "ResidentLoader"}


@pytest.mark.parametrize("settings", [
    {"mixup": 0.4}, {"features": (HINT, ATTENTION)}, {"method": "decoupled"},
], ids=["mixup", "features", "decoupled"])  # fmt: skip
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, settings: dict[str, Any]) -> None:
    train = Interrupting(small_split(), 8, augmentation=AUGMENTATION, seed=3)
    train.at = 8
    with pytest.raises(SystemExit):
        trained(train=train, checkpoint=tmp_path / "state", **settings)
    resumed = trained(seed=99, checkpoint=tmp_path / "state", **settings)
    assert same_weights(resumed, trained(**settings))


def test_a_checkpoint_belongs_to_its_teacher_and_settings(tmp_path: Path) -> None:
    trained(checkpoint=tmp_path / "state", alpha=0.5)
    trained(checkpoint=tmp_path / "state", alpha=0.5)
    for other in ({"alpha": 0.6}, {"alpha": 0.5, "teacher": small_net(2)}, {"alpha": 0.5, "temperature": 2.0}):
        with pytest.raises(CheckpointError, match="another data"):
            trained(checkpoint=tmp_path / "state", **other)


@pytest.mark.parametrize("recipe", [
    Recipe(epochs=2, learning_rate=0.05, precision="bf16"), Recipe(epochs=2, learning_rate=0.05, channels_last=True),
    Recipe(epochs=2, learning_rate=0.05, accumulate=2, clip_norm=1.0), Recipe(epochs=2, learning_rate=0.05, precision="fp16"),
], ids=["bf16", "channels-last", "accumulate", "fp16"])  # fmt: skip
def test_it_works_with_the_recipes_of_fit(recipe: Recipe) -> None:
    student = small_net()
    history = distill(
        student, small_teacher(), small_loader(), recipe, features=(HINT,), validation=small_loader(), progress=False
    )
    assert len(history) == 2
    assert history[0].validation_accuracy is not None
    assert all(value.dtype == torch.float32 for name, value in student.state_dict().items() if "num_batches" not in name)


def test_a_wrapped_student_and_several_teachers_are_taken() -> None:
    student, teachers = small_net(), Ensemble([small_teacher(), small_net(8)])
    objective = Distillation(teachers, features=(Feature(student="1", teacher="teachers.0.1", loss="attention", weight=1.0),))
    fit(nn.DataParallel(student), small_loader(), Recipe(epochs=1, learning_rate=0.05), objective=objective, progress=False)
    assert not same_weights(student.state_dict(), small_net().state_dict())


def test_a_copy_of_the_student_may_teach_it_but_not_itself() -> None:
    born = small_net()
    distill(born, copy.deepcopy(born), small_loader(), RECIPE, progress=False)
    part = nn.Sequential(born[0], *small_net()[1:])
    for student in (born, part):
        with pytest.raises(UsageError, match=r"shares weights.*copy\.deepcopy"):
            distill(student, born, small_loader(), RECIPE)


class Adapting(nn.Module):
    """A teacher that insists on gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_teacher()

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.net(images)


@pytest.mark.parametrize(("settings", "words"), [
    ({"temperature": 0.0}, "temperature is 0.0: use a positive"),
    ({"alpha": 1.5}, "alpha is 1.5: use a share"),
    ({"alpha": -0.1}, "alpha is -0.1"),
    ({"beta": -1.0}, "beta is -1.0"),
    ({"mixup": -1.0}, "mixup is -1.0"),
    ({"method": "crd"}, "method is 'crd': use soft-targets, logit-mse, decoupled"),
    ({"mixup": 0.2, "method": "decoupled"}, "no single labelled class"),
    ({"teacher": small_net(classes=4)}, r"\(8, 3\) and the teacher \(8, 4\).*same classes"),
    ({"teacher": Adapting()}, r"carries gradients.*no_grad"),
    ({"teacher": nn.DataParallel(small_net())}, "wrapped in DataParallel: pass the module inside"),
    ({"features": (Feature(student="9", teacher="1", loss="hint", weight=1.0),)}, "student has no module '9'"),
    ({"features": (Feature(student="1", teacher="x", loss="attention", weight=1.0),)}, "teacher has no module 'x'"),
    ({"features": (ATTENTION,), "recipe": Recipe(epochs=1, learning_rate=0.1, compile=True)}, "runs no hooks"),
    ({"train": ViewLoader([small_split()], 8, logits=torch.zeros(1, 48, 3))}, "brings a teacher's logits already"),
])  # fmt: skip
def test_what_cannot_work_is_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        trained(**settings)
    assert "\n" not in str(error.value)


def test_without_a_teacher_there_must_be_logits() -> None:
    with pytest.raises(UsageError, match="There is no teacher"):
        distill(small_net(), None, small_loader(), RECIPE)
    with pytest.raises(UsageError, match="bring no logits"):
        Distillation(None)(small_net(), IMAGES, LABELS)
    for settings in ({"mixup": 0.2}, {"features": (ATTENTION,)}):
        with pytest.raises(UsageError, match="Cached logits know neither"):
            Distillation(None, **settings)


def test_the_student_is_small_and_its_widths_are_aligned() -> None:
    config = student_config()
    assert count_parameters(build(config)) < 100_000
    assert all(width % 16 == 0 for width in config.stage_channels)
    assert build(student_config(in_channels=3, classes=7))(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
