"""The detector: every planted read with its line, nothing else, whatever the optimizer."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Split
from cookbook.throughput import SynchronizationReport, count_synchronizations, watch_synchronizations
from cookbook.training import Recipe, fit

DEVICE = torch.device("cpu")


def trained(
    read: Callable[[Tensor, Tensor], object] = lambda loss, logits: None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    steps: int = 3,
    **settings: Any,
) -> SynchronizationReport:
    """Watch a hand-written loop that calls `read` in each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, 3))
    chosen = optimizer(model.parameters(), **{"lr": 1e-3, **settings})
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(steps)]
    with watch_synchronizations(device="cpu") as report:
        for images, labels in batches:
            images, labels = images.to(DEVICE), labels.to(DEVICE)
            chosen.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            chosen.step()
            read(loss.detach(), logits.detach())
    return report


def show(value: object) -> None:
    print(value, file=io.StringIO())


def branch(condition: Any) -> None:
    if condition:
        pass


PLANTED: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "item": (lambda loss, logits: loss.item(), "item()"),
    "cpu": (lambda loss, logits: loss.cpu(), "cpu()"),
    "to cpu": (lambda loss, logits: loss.to("cpu"), "to('cpu')"),
    "numpy": (lambda loss, logits: logits.numpy(), "numpy()"),
    "asarray": (lambda loss, logits: np.asarray(logits), "numpy()"),
    "tolist": (lambda loss, logits: logits.tolist(), "tolist()"),
    "print": (lambda loss, logits: show(loss), "print"),
    "print of many": (lambda loss, logits: show(logits), "print"),
    "f-string": (lambda loss, logits: f"{loss:.3f}", "print"),
    "if": (lambda loss, logits: branch(loss > 1), "boolean test"),
    "assert all": (lambda loss, logits: bool(torch.isfinite(logits).all()), "boolean test"),
    "in": (lambda loss, logits: 3.0 in logits, "boolean test"),
    "equal": (lambda loss, logits: torch.equal(logits, logits + 1), "boolean test"),
    "allclose": (lambda loss, logits: torch.allclose(logits, logits), "boolean test"),
    "float": (lambda loss, logits: float(loss), "float()"),
    "int": (lambda loss, logits: int(logits.argmax()), "int()"),
    "index of a list": (lambda loss, logits: ["a"][loss.long() * 0], "int()"),
    "nonzero": (lambda loss, logits: logits.nonzero(), "nonzero"),
    "where": (lambda loss, logits: torch.where(logits > 0), "nonzero"),
    "masked select": (lambda loss, logits: logits.masked_select(logits > 0), "masked indexing"),
    "mask": (lambda loss, logits: logits[logits > 0], "masked indexing"),
    "mask assigned": (lambda loss, logits: logits.__setitem__(logits[:, 0] > -99, torch.zeros(4, 3)), "masked indexing"),
    "unique": (lambda loss, logits: torch.unique(logits), "unique"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_read_is_found_with_its_line(name: str) -> None:
    read, operation = PLANTED[name]
    report = trained(read, steps=2)
    assert report.count == 2, str(report)  # once a step, however much happens inside
    (found,) = report.places
    source, first = inspect.getsourcelines(show if "print" in name else branch if name == "if" else read)
    assert (found.operation, found.count, found.file, found.inside) == (operation, 2, __file__, "")
    assert first <= found.line < first + len(source)
    assert found.code in {line.strip() for line in source}


OPTIMIZERS = [
    (kind, settings)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    for settings in ({}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"maximize": True})
]
OPTIMIZERS += [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.Adam, {"amsgrad": True, "foreach": False})]
OPTIMIZERS += [
    (torch.optim.AdamW, {"lr": torch.tensor(1e-3), "foreach": False}),
    (torch.optim.RMSprop, {}),
    (torch.optim.NAdam, {}),
]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_no_optimizer_is_accused(kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    assert trained(optimizer=kind, **settings).count == 0
    report = trained(lambda loss, logits: loss.item(), kind, **settings)
    assert [place.operation for place in report.places] == ["item()"] and report.count == 3


def scale_by_host_number(loss: Tensor, logits: Tensor) -> None:
    scale = torch.tensor(2.0)  # a number on the host may meet tensors on the device
    assert (logits * scale).shape == logits.shape
    scale.item()


HARMLESS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "arithmetic": lambda loss, logits: (logits * 2 + loss).sum(),
    "argmax": lambda loss, logits: (logits.argmax(1) == 1).sum(),
    "where": lambda loss, logits: torch.where(logits > 0, logits, 0.0),
    "masked fill": lambda loss, logits: logits.__setitem__(logits > 0, 0.0),
    "index list": lambda loss, logits: logits[torch.tensor([0, 2])],
    "host numbers": lambda loss, logits: (torch.arange(3).tolist(), torch.ones(()).item(), show(torch.ones(2))),
    "host number beside the device": scale_by_host_number,
    "host order": lambda loss, logits: logits[torch.randperm(4)][0],
    "one-hot": lambda loss, logits: F.one_hot(logits.argmax(1), 3),
    "shape": lambda loss, logits: (len(logits), logits.shape, logits.dtype, logits.is_contiguous()),
    "move": lambda loss, logits: logits.to(DEVICE).to(torch.float64),
    "format of a shape": lambda loss, logits: f"{logits.shape}",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    report = trained(HARMLESS[name])
    assert report.count == 0, str(report)


def test_what_was_copied_to_the_host_may_be_read() -> None:
    def read(loss: Tensor, logits: Tensor) -> None:
        on_host = logits.cpu()
        on_host.mean().item()
        on_host.tolist()

    report = trained(read)
    assert [(place.operation, place.count) for place in report.places] == [("cpu()", 3)]


def test_a_batch_counts_from_the_moment_that_it_is_on_the_device() -> None:
    loader, device = [torch.ones(2, 3), torch.ones(2, 3)], torch.device("cpu")
    with watch_synchronizations(device="cpu") as report:
        for images in loader:
            images.sum().item()  # still on the host
            moved = images.to(device)
            moved.sum().item()
    assert [(place.code, place.count) for place in report.places] == [("moved.sum().item()", 2)]
    layer, images = nn.Linear(3, 1), torch.ones(2, 3)
    for known, expected in (([], 0), ([images], 1)):
        assert count_synchronizations(lambda: images.sum().item(), on_device=known, device="cpu").count == expected
    with watch_synchronizations(device="cpu") as report:
        layer(images)  # what is computed together with a parameter lies where the parameter lies
        images.sum().item()
    assert report.count == 1
    buffers = nn.BatchNorm1d(2)
    assert count_synchronizations(lambda: buffers.running_mean.tolist(), on_device=[buffers], device="cpu").count == 1


def test_nothing_is_changed_by_watching() -> None:
    def weights(watch: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters())

        def train() -> None:
            for _ in range(3):
                loss = model(torch.randn(5, 4)).square().mean()
                loss.backward()
                optimizer.step()
                assert loss.cpu().item() > 0

        if watch:
            assert count_synchronizations(train, device="cpu").count == 3
        else:
            train()
        return [parameter.detach() for parameter in model.parameters()]

    for watched, free in zip(weights(True), weights(False), strict=True):
        assert torch.equal(watched, free)


def test_the_watch_ends_with_its_block() -> None:
    parameter = nn.Parameter(torch.ones(1))
    with watch_synchronizations(device="cpu") as report:
        parameter.item()
    parameter.item()
    assert report.count == 1
    with pytest.raises(ZeroDivisionError), watch_synchronizations(device="cpu") as failed:
        parameter.item()
        raise ZeroDivisionError
    parameter.item()
    assert failed.count == 1


def test_fit_waits_only_where_it_means_to() -> None:
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
    loader = ResidentLoader(Split(images, torch.arange(24) % 2, "train", ("a", "b"), (0.4,), (0.3,)), 4)
    for recipe in (
        Recipe(epochs=2, learning_rate=0.01, clip_norm=1.0, ema_decay=0.9),
        Recipe(epochs=2, learning_rate=0.01, optimizer="adamw", precision="bf16", accumulate=2),
    ):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        report = count_synchronizations(lambda: fit(model, loader, recipe, progress=False), device="cpu")  # noqa: B023
        (found,) = report.places  # reading the loss, which costs nothing on a CPU; elsewhere every 50 steps
        assert found.operation in ("item()", "tolist()") and found.inside.startswith("training/")
        assert found.count == 2 * 6 // recipe.accumulate
        assert found.file == __file__ and "count_synchronizations" in found.code


def test_an_objective_of_ones_own_is_blamed_and_not_fit() -> None:
    images = torch.randint(0, 256, (8, 1, 2, 2), dtype=torch.uint8)
    loader = ResidentLoader(Split(images, torch.arange(8) % 2, "train", ("a", "b"), (0.4,), (0.3,)), 4)

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        assert loss.item() > 0
        return loss

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    recipe = Recipe(epochs=1, learning_rate=0.01)
    report = count_synchronizations(lambda: fit(model, loader, recipe, objective=objective, progress=False), device="cpu")
    mine = [place for place in report.places if not place.inside]
    assert [(place.code, place.count) for place in mine] == [("assert loss.item() > 0", 2)]


def test_the_table_shows_file_line_and_code() -> None:
    report = trained(lambda loss, logits: loss.item())
    (place,) = report.places
    assert f"test_synchronizations.py:{place.line}" in str(report)
    assert report.table().rows[0][1:4] == (place.code, "item()", "3")
    assert "<table>" in report._repr_html_()
    assert str(SynchronizationReport()) == "No synchronization was found."
