"""Training on CUDA: the CPU's results, skipped steps, TF32 put back, resumption bit for bit, data on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split
from cookbook.precision import Precision
from cookbook.training import EpochRecord, Recipe, evaluate, fit

pytestmark = pytest.mark.gpu


def pictures(count: int = 48) -> Split:
    """Return grey 8×8 images of two classes that differ in brightness."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 128, (count, 1, 8, 8), generator=torch.Generator().manual_seed(7))
    return Split((noise + 100 * labels.view(-1, 1, 1, 1)).byte(), labels, "train", ("dark", "bright"), (0.4,), (0.25,))


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(512, 2)
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_fit_ends_where_the_cpu_does(cuda: torch.device, channels_last: bool) -> None:
    recipe = Recipe(epochs=2, learning_rate=0.02, ema_decay=0.9, channels_last=channels_last)
    ends, losses = [], []
    for device in (torch.device("cpu"), cuda):
        model = network().to(device)
        history = fit(model, ResidentLoader(pictures(), 8, device=device, seed=1), recipe)
        ends.append(model.cpu().state_dict())
        losses.append([record.train_loss for record in history])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_step_that_overflows_does_not_advance_the_schedule(cuda: torch.device) -> None:
    calls = 0

    def overflowing_once(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(model(images), labels) * (1e6 if calls == 2 else 1e-3)

    recipe = Recipe(epochs=1, learning_rate=0.01, schedule="cosine", precision="fp16")
    loader = ResidentLoader(pictures(), 8, device=cuda)
    (record,) = fit(network().to(cuda), loader, recipe, objective=overflowing_once)
    steps = len(loader)
    assert record.skipped_steps == 1
    assert record.learning_rate == recipe.learning_rate_at(steps - 2, steps) != recipe.learning_rate_at(steps - 1, steps)
    assert record.loss_scales[-1][1] < record.loss_scales[0][1]


def test_tf32_is_allowed_inside_only(cuda: torch.device) -> None:
    def modes() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = modes()
    with pytest.raises(KeyError), Precision("tf32", "cuda").matmul_mode():
        assert modes() == ("high", True)
        with Precision("fp32", "cuda").matmul_mode():
            assert modes() == ("highest", False)
        assert modes() == ("high", True)
        raise KeyError
    assert modes() == before


def test_tf32_rounds_more_than_fp32(cuda: torch.device) -> None:
    if torch.cuda.get_device_capability(cuda) < (8, 0) or torch.version.hip:
        pytest.skip("needs TF32: an NVIDIA GPU of compute capability 8.0 or newer")
    torch.manual_seed(0)
    left, right = torch.randn(2, 512, 512, dtype=torch.float64, device=cuda).unbind()
    errors = {}
    for name in ("fp32", "tf32"):
        with Precision(name, "cuda").matmul_mode():  # type: ignore[arg-type]
            product = left.float() @ right.float()
        errors[name] = float((product.double() - left @ right).norm() / (left @ right).norm())
    assert errors["fp32"] < 1e-5 < errors["tf32"] < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_ends_bit_for_bit_alike(cuda: torch.device, precision: str, tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=3, learning_rate=0.01, optimizer="adamw", clip_norm=1.0, ema_decay=0.9, precision=precision, seed=5  # type: ignore[arg-type]
    )  # fmt: skip
    augmentation = Augmentation(crop=1, flip=True, erase=0.5)

    class Stopped(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        if record.epoch == 1:
            raise Stopped

    def run(checkpoint: Path | None, interrupt: bool = False) -> dict[str, Tensor]:
        model = network(dropout=0.3).to(cuda)
        loader = ResidentLoader(pictures(), 8, augmentation=augmentation, device=cuda, seed=2)
        fit(model, loader, recipe, checkpoint=checkpoint, on_epoch=stop if interrupt else None)
        return model.state_dict()

    undisturbed = run(None)
    with pytest.raises(Stopped):
        run(tmp_path / "state", interrupt=True)
    torch.cuda.manual_seed(999)  # a new process would not have the old random numbers either
    resumed = run(tmp_path / "state")
    assert [name for name, value in undisturbed.items() if not torch.equal(value, resumed[name])] == []


def test_a_resident_loader_keeps_everything_on_the_device(cuda: torch.device) -> None:
    there, here = (ResidentLoader(pictures(), 8, device=device, seed=4) for device in (cuda, torch.device("cpu")))
    for (images, labels), (expected, numbers) in zip(there.batches(3), here.batches(3), strict=True):
        assert images.device.type == labels.device.type == "cuda"
        torch.testing.assert_close(images.cpu(), expected)
        assert torch.equal(labels.cpu(), numbers)


def test_augmentation_on_the_device_depends_on_epoch_and_step_alone(cuda: torch.device) -> None:
    loader = ResidentLoader(pictures(), 8, augmentation=Augmentation(crop=2, flip=True, erase=0.5), device=cuda, seed=4)
    whole = [images for images, _ in loader.batches(1)]
    torch.cuda.manual_seed(1)
    rest = [images for images, _ in loader.batches(1, 3)]
    assert all(torch.equal(one, other) for one, other in zip(whole[3:], rest, strict=True))
    assert not torch.equal(whole[0], next(loader.batches(2))[0])


def test_evaluation_on_cuda_predicts_what_the_cpu_predicts(cuda: torch.device) -> None:
    model, split = network().eval(), pictures()
    here = evaluate(model, ResidentLoader(split, 10, shuffle=False))
    with Precision("fp32", "cuda").matmul_mode():  # outside of `fit` cuDNN may round to TF32
        there = evaluate(model.to(cuda), ResidentLoader(split, 10, shuffle=False, device=cuda))
    assert torch.equal(there.predictions, here.predictions)
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
