"""The speed stack: what each change does to a setup, the same weights in the end, and what is told about it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split, TorchvisionLoader
from cookbook.environment import current_profile
from cookbook.errors import UsageError
from cookbook.measure import Timing
from cookbook.models import ResNetConfig, build
from cookbook.speed import (
    CHANNELS_LAST,
    COMPILED,
    CUDA_GRAPHS,
    FUSED,
    RESIDENT,
    SpeedChange,
    SpeedStack,
    TrainingSetup,
    changes,
    in_precision,
    measure_stack,
    with_accumulation,
    with_larger_batch,
    with_recomputation,
)
from cookbook.speed import stack as stacks
from cookbook.training import Recipe, checkpoint_activations, fit

CPU = torch.device("cpu")


def split(size: int = 64) -> Split:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (size, 1, 8, 8), generator=generator).to(torch.uint8)
    return Split(images, torch.arange(size) % 2, "train", ("a", "b"), (0.4,), (0.25,))


def start(**changes: object) -> TrainingSetup:
    recipe = Recipe(epochs=1, learning_rate=0.01, schedule="constant")
    return TrainingSetup(recipe=recipe, split=split(), batch_size=16, augmentation=Augmentation(), **changes)  # type: ignore[arg-type]


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(ResNetConfig(depth=8, width=16, classes=2, stem_stride=2))


def plain() -> nn.Module:
    """Return a network without BatchNorm, whose gradient is a mean over images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def trained(setup: TrainingSetup, model: nn.Module) -> list[Tensor]:
    if setup.recomputed is not None:
        checkpoint_activations(model, setup.recomputed(model))
    fit(model, setup.loader(), setup.recipe, progress=False)
    return list(model.state_dict().values())


@pytest.mark.parametrize(
    ("change", "factory", "bitwise"),
    [
        (RESIDENT, network, False),
        (CHANNELS_LAST, network, False),
        (FUSED, network, False),
        (with_accumulation(4), plain, False),
        (with_recomputation(lambda model: model.blocks), network, True),
    ],
    ids=lambda value: value.name if isinstance(value, SpeedChange) else "",
)
def test_a_change_of_speed_is_no_change_of_the_result(change: SpeedChange, factory, bitwise: bool) -> None:
    before, after = trained(start(), factory()), trained(change.apply(start()), factory())
    for one, other in zip(before, after, strict=True):
        if bitwise:
            assert torch.equal(one, other)
        else:
            # another order of summation rounds differently, with the number of threads too, and BatchNorm carries it on
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_changes_of_the_arithmetic_change_the_weights() -> None:
    """So that the comparison above can fail."""
    reference = trained(start(), plain())
    for change in (in_precision("bf16"), with_larger_batch(2)):
        result = trained(change.apply(start()), plain())
        assert not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(reference, result, strict=True)), change.name


def test_what_each_change_changes() -> None:
    setup = start()
    larger = with_larger_batch(4).apply(setup)
    assert (larger.batch_size, larger.recipe.learning_rate, larger.images_per_step) == (64, 0.04, 64)
    parts = with_accumulation(4).apply(setup)
    assert (parts.batch_size, parts.recipe.accumulate, parts.images_per_step) == (4, 4, 16)
    assert isinstance(setup.loader(), TorchvisionLoader) and isinstance(RESIDENT.apply(setup).loader(), ResidentLoader)
    assert CUDA_GRAPHS.apply(COMPILED.apply(setup)).recipe.compile == "reduce-overhead"
    assert in_precision("bf16").apply(setup).recipe == replace(setup.recipe, precision="bf16")
    with pytest.raises(UsageError, match="16 cannot be cut into 5"):
        with_accumulation(5).apply(setup)


def test_what_a_device_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_precision("tf32").missing(CPU) == "tf32 products need an NVIDIA GPU"
    assert in_precision("bf16").missing(CPU) is None
    assert CUDA_GRAPHS.missing(CPU) == "CUDA graphs need an NVIDIA GPU"
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(changes.shutil, "which", lambda name: None)
    assert COMPILED.missing(CPU) == "torch.compile needs a C++ compiler"
    monkeypatch.setattr(changes.shutil, "which", lambda name: sys.executable if name == "c++" else None)
    assert COMPILED.missing(CPU) is None
    monkeypatch.setattr(changes.importlib.util, "find_spec", lambda name: None)
    assert COMPILED.missing(torch.device("cuda")) == "torch.compile needs the package triton here"


@pytest.fixture(scope="module")
def stack() -> SpeedStack:
    sequence = [
        RESIDENT, in_precision("tf32"), CHANNELS_LAST, with_larger_batch(2), with_accumulation(2),
        with_recomputation(lambda model: model.blocks),
    ]  # fmt: skip
    return measure_stack(sequence, start(), lambda: build(ResNetConfig(depth=8, width=4, classes=2)), rounds=3)


def test_each_change_is_measured_alone_and_stacked(stack: SpeedStack) -> None:
    """Channels-last is refused for a model this narrow, and is left out of the stack with the reason."""
    larger, parts, twice = "batch × 2, learning rate × 2", "accumulation, 2 parts", "activation checkpointing"
    assert [row.subject for row in stack.measurements] == [
        "unchanged", "resident data alone", f"{larger} alone", f"{parts} alone", f"{twice} alone",
        "+ resident data", f"+ {larger}",
    ]  # fmt: skip
    assert stack.missing["tf32"] == "tf32 products need an NVIDIA GPU"
    assert "strided 1×1 convolution" in stack.missing["channels-last"]
    by_name = {row.subject: row for row in stack.measurements}
    assert by_name["unchanged"].values["speedup"] == 1.0
    for row in stack.measurements:
        seconds, rate = row.step_seconds, row.values["images_per_second"]
        assert seconds is not None and row.values["images_per_step"] / seconds == pytest.approx(rate)
        assert row.values["speedup"] == pytest.approx(rate / by_name["unchanged"].values["images_per_second"])
        assert row.values["speedup_low"] <= row.values["speedup"] <= row.values["speedup_high"]
        assert row.peak_memory is not None and row.peak_memory > 0
    assert by_name[f"+ {larger}"].values["images_per_step"] == 32
    assert {row.provenance.threads for row in stack.measurements} == {1}


def test_the_table_has_a_row_for_every_change(stack: SpeedStack) -> None:
    table = stack.table()
    assert len(table.rows) == 1 + len(stack.changes)
    assert table.rows[0][0] == "unchanged"
    assert table.rows[2][0] == "tf32: tf32 products need an NVIDIA GPU" and set(table.rows[2][1:]) == {"—"}
    assert table.rows[-1][3:] == ("—", "—"), "what pays with time is not stacked"
    assert ("Quick profile: not evidence." in str(stack)) is (current_profile() == "quick")
    assert stack._repr_html_().startswith("<table>")


def test_every_side_trains_on_the_same_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, int] = {}

    def interleave(runs, *, batch: int, rounds: int, **_: object) -> dict[str, Timing]:
        for name, run in runs.items():
            seen.clear()
            run()
            counted[name] = sum(seen)
        return {name: Timing((0.1,) * rounds, 1, batch) for name in runs}

    seen: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return self.head(x.flatten(1))

    monkeypatch.setattr(stacks, "interleave", interleave)
    measure_stack([with_larger_batch(3), with_accumulation(4)], replace(start(), resident=True), Counting, rounds=3)
    assert set(counted.values()) == {48} and len(counted) == 4


def test_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 changes are called 'resident data'"):
        measure_stack([RESIDENT, RESIDENT], start(), plain)
