"""Training with rounding: what is trained is what is written, on a schedule, resumable, and without a look at validation."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_models import blob_loader, blobs, lively
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.deploy import kernels
from cookbook.errors import CheckpointError, UsageError
from cookbook.quantization.graphs import BATCH_NORM, QuantizableGraph
from cookbook.quantization.lsq import LearnedStepQuantize, is_weight_quantizer
from cookbook.quantization.prepare import convert
from cookbook.quantization.pt2e import FakeQuantizeBase
from cookbook.quantization.qat import quantize_aware_training, train_quantized
from cookbook.quantization.scheme import Scheme
from cookbook.training import EpochRecord, Recipe, evaluate

RECIPE = Recipe(epochs=2, learning_rate=0.05)
IMAGES = blobs(24, seed=3).normalized()

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Module:
    """A BatchNorm that stands alone, one that folds, with an epsilon and a momentum of its own, and a dropout."""
    torch.manual_seed(0)
    return lively(nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-2, momentum=0.3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 3),
    ))  # fmt: skip


def trained(recipe: Recipe = RECIPE, model: nn.Module | None = None, **settings: Any) -> QuantizableGraph:
    settings = {"train": blob_loader(), "progress": False} | settings
    return train_quantized(model or net(), settings.pop("train"), recipe, **settings)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IMAGES)


def differences(one: nn.Module, other: nn.Module) -> list[str]:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("learned_steps", [False, True])
def test_the_scale_trained_on_is_the_scale_written(bits: int, learned_steps: bool) -> None:
    graph = trained(scheme=Scheme(weight_bits=bits), learned_steps=learned_steps)
    used = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        units = arguments[1].abs().flatten() if len(arguments) > 1 else 1.0
        used[module] = module.scale * units

    quantizers = [module for module in graph.modules() if is_weight_quantizer(module)]
    hooks = [module.register_forward_pre_hook(note) for module in quantizers]
    simulated = outputs(graph)
    for hook in hooks:
        hook.remove()
    assert len(used) == 3
    converted = convert(graph)
    torch.testing.assert_close(outputs(converted), simulated, atol=1e-5, rtol=1e-5)
    written = [
        converted.get_buffer(node.args[1].target).float()
        for node in converted.graph.nodes
        if "dequantize_per_channel" in str(node.target)
    ]
    for scale in used.values():
        assert any(scale.shape == found.shape and torch.equal(scale, found) for found in written)
    integers = [value for value in converted.state_dict().values() if value.dtype is torch.int8]
    assert len(integers) == 3
    assert all(int(value.abs().max()) <= 2 ** (bits - 1) - 1 for value in integers)


def test_ranges_of_the_last_weights_are_written_not_those_of_the_last_forward_pass() -> None:
    graph = trained(Recipe(epochs=1, learning_rate=1.0), scheme=Scheme(weight_bits=8))
    quantizer = next(
        module for name, module in graph.named_modules() if is_weight_quantizer(module) and module.scale.numel() == 3
    )
    head = next(value for value in graph.parameters() if value.shape == (3, 54))
    torch.testing.assert_close(quantizer.scale, head.detach().abs().amax(1) / 127)


def test_learned_steps_are_the_default_for_four_bits_and_fewer() -> None:
    for bits, expected in ((4, True), (6, False)):
        graph = trained(Recipe(epochs=1, learning_rate=0.01), scheme=Scheme(weight_bits=bits))
        assert any(isinstance(module, LearnedStepQuantize) for module in graph.modules()) == expected


def test_two_bits_learn_with_a_batchnorm_that_stands_alone() -> None:
    float_model = net()
    recipe, loader = Recipe(epochs=12, learning_rate=0.05), blob_loader(96, 24)
    graph = trained(recipe, float_model, train=loader, scheme=Scheme(weight_bits=2))
    held_out = blob_loader(60, 60, role="validation", seed=9)
    assert sum(node.target is BATCH_NORM for node in graph.graph.nodes) == 2
    converted = convert(graph)
    assert not any(node.target is BATCH_NORM for node in converted.graph.nodes)
    assert evaluate(converted, held_out).accuracy > 0.9
    assert evaluate(float_model, held_out).accuracy < 0.7, "there was nothing to learn"


def snapshots(which: str, epochs: int = 3, **settings: Any) -> list[dict[str, Tensor]]:
    """Return, after every epoch, the buffers with that name."""
    taken: list[dict[str, Tensor]] = []
    loader = blob_loader()
    found: list[nn.Module] = []

    def objective_sees(record: object) -> None:
        taken.append({name: value.clone() for name, value in found[0].named_buffers() if which in name})

    original = train_quantized.__globals__["prepare"]

    def remembering(*arguments: Any, **keywords: Any) -> QuantizableGraph:
        found.append(original(*arguments, **keywords))
        return found[0]  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train_quantized.__globals__, "prepare", remembering)
        trained(Recipe(epochs=epochs, learning_rate=0.05), train=loader, on_epoch=objective_sees, **settings)
    assert len(taken) == epochs
    assert taken[0]
    return taken


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("after", [0, 1, 2])
def test_batchnorm_statistics_move_until_they_are_frozen(after: int) -> None:
    taken = snapshots("running_mean", freeze_batchnorm_after=after)
    expected = [number < after for number in (1, 2)]
    assert [moved(taken[number - 1], taken[number]) for number in (1, 2)] == expected


@pytest.mark.parametrize(("epochs", "expected"), [(3, [True, True]), (4, [True, True, False])])
def test_by_default_the_last_quarter_is_frozen_and_fewer_than_four_epochs_never(epochs: int, expected: list[bool]) -> None:
    taken = snapshots("running_mean", epochs)
    assert [moved(before, after) for before, after in itertools.pairwise(taken)] == expected


def test_ranges_of_activations_move_until_they_are_frozen() -> None:
    taken = snapshots("min_val", freeze_observers_after=2, scheme=Scheme(weight_bits=4))
    assert [moved(taken[number - 1], taken[number]) for number in (1, 2)] == [True, False]


def test_validation_is_only_looked_at() -> None:
    loud = ResidentLoader(blobs(30, role="validation", seed=5), 10)
    loud.split.images.mul_(2)  # ranges that the training images do not have
    records = []
    with_validation = trained(validation=loud, on_epoch=records.append)
    assert [record.validation_accuracy is not None for record in records] == [True, True]
    assert differences(with_validation, trained()) == []
    assert evaluate(with_validation, loud).accuracy == records[-1].validation_accuracy


class Failing(ResidentLoader):
    """Breaks off before the batch of that number, counted over all epochs."""

    def __init__(self, at: int) -> None:
        super().__init__(blobs(48), 12)
        self.at, self.seen, self.armed = at, 0, False

    def describe(self) -> dict[str, object]:
        self.armed = True  # fit asks once the ranges are set
        return {**super().describe(), "loader": "ResidentLoader"}

    def batches(self, epoch: int, first: int = 0):
        for batch in super().batches(epoch, first):
            if self.armed and self.seen == self.at:
                raise RuntimeError("planted")
            self.seen += self.armed
            yield batch


@pytest.mark.parametrize("at", [2, 4, 6, 9])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    recipe = Recipe(epochs=3, learning_rate=0.05)
    settings: dict[str, Any] = {"scheme": Scheme(weight_bits=3), "checkpoint": tmp_path / "run.state", "checkpoint_every": 1}
    with pytest.raises(RuntimeError, match="planted"):
        trained(recipe, train=Failing(at), freeze_batchnorm_after=1, freeze_observers_after=2, **settings)
    assert settings["checkpoint"].exists()
    resumed = trained(recipe, freeze_batchnorm_after=1, freeze_observers_after=2, **settings)
    settings.pop("checkpoint")
    whole = trained(recipe, freeze_batchnorm_after=1, freeze_observers_after=2, **settings)
    assert differences(resumed, whole) == []
    assert torch.equal(outputs(resumed), outputs(whole))


def test_a_checkpoint_of_another_scheme_or_schedule_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "run.state"
    recipe = Recipe(epochs=1, learning_rate=0.05)
    trained(recipe, scheme=Scheme(weight_bits=6), checkpoint=state)
    for settings in ({"scheme": Scheme(weight_bits=8)}, {"scheme": Scheme(weight_bits=6), "freeze_batchnorm_after": 0}):
        with pytest.raises(CheckpointError, match="another data"):
            trained(recipe, checkpoint=state, **settings)


def test_the_model_and_a_teacher_are_left_alone_and_a_teacher_counts() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(epochs=1, learning_rate=0.05)
    taught = trained(recipe, model, teacher=model, alpha=0.9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = trained(recipe)
    assert differences(trained(recipe, teacher=net(), alpha=0.0), plain) == []
    assert differences(taught, plain) != []


@pytest.mark.parametrize(("change", "message"), [
    ({"precision": "bf16"}, "autocast to bf16"), ({"precision": "fp16"}, "autocast to fp16"),
    ({"ema_decay": 0.9}, "set ema_decay=None"), ({"compile": True}, "set compile=False"),
])  # fmt: skip
def test_recipes_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(Recipe(epochs=1, learning_rate=0.1, **change))


def test_what_a_user_can_get_wrong() -> None:
    with pytest.raises(UsageError, match="test split must not be used to train"):
        trained(train=blob_loader(role="test"))
    with pytest.raises(UsageError, match="freeze_observers_after is -1"):
        trained(freeze_observers_after=-1)
    strided = nn.Sequential(nn.Conv2d(1, 3, 1, stride=2), nn.Flatten(), nn.Linear(27, 3))
    with pytest.raises(UsageError, match="strided 1×1 convolution"):
        trained(Recipe(epochs=1, learning_rate=0.1, channels_last=True), strided)


def test_the_whole_way_to_a_file_that_runs_in_integers(tmp_path: Path) -> None:
    records: list[EpochRecord] = []
    validation = blob_loader(60, 60, role="validation", seed=9)
    recipe = Recipe(epochs=2, learning_rate=0.05)
    done = quantize_aware_training(net(), blob_loader(), recipe, validation=validation, on_epoch=records.append, progress=False)
    assert evaluate(done.module, validation).accuracy == records[-1].validation_accuracy
    assert (done.method, done.scheme) == ("training", Scheme())
    assert done.report.integers
    report = kernels(done.export(tmp_path / "net.onnx"))
    assert {name: report.coverage[name].share for name in ("conv", "linear")} == {"conv": 1.0, "linear": 1.0}


def test_every_quantizer_is_at_rest_afterwards() -> None:
    graph = trained(Recipe(epochs=1, learning_rate=0.05))
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    with torch.no_grad():
        graph(100 * IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    quantizers = [module for module in graph.modules() if isinstance(module, FakeQuantizeBase)]
    assert quantizers
    assert not any(bool(module.observer_enabled[0]) for module in quantizers)
