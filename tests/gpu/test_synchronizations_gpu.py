"""The detector against CUDA's own debug mode: what the CPU's pretended accelerator finds is what a GPU waits for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cookbook.data import ResidentLoader, Split
from cookbook.throughput import SynchronizationReport, count_synchronizations
from cookbook.throughput.pretend_accelerator import PretendAccelerator
from cookbook.training import Recipe, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: CUDA's debug mode is the reference here"),
]

STEPS = 3


def careless(device: torch.device) -> Callable[[], None]:
    """Return a loop with one read a line; the last reads nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    images = torch.randn(8, 1, 8, 8).to(device)
    labels = (torch.arange(8) % 3).to(device)
    sink = io.StringIO()

    def loop() -> None:
        for _ in range(STEPS):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept = loss.detach()
            kept.item()
            kept.cpu()
            logits.detach().cpu().numpy()
            logits.tolist()
            print(kept, file=sink)
            assert kept >= 0
            float(kept)
            logits.detach().nonzero()
            logits[labels > 0]
            torch.equal(labels, labels)
            (logits.argmax(1) == labels).sum()

    return loop


def lines(report: SynchronizationReport) -> set[str]:
    return {place.code for place in report.places}


def test_both_ways_name_the_same_lines() -> None:
    on_gpu = count_synchronizations(careless(torch.device("cuda")), device="cuda")
    on_cpu = count_synchronizations(careless(torch.device("cpu")), device="cpu")
    assert lines(on_gpu) == lines(on_cpu)
    assert {place.file for place in on_gpu.places} == {__file__}
    assert all(place.count >= STEPS for place in on_gpu.places)  # printing a tensor waits more than once
    assert torch.cuda.get_sync_debug_mode() == 0


def test_the_modes_of_torch_agree_on_a_real_device() -> None:
    report = SynchronizationReport()
    with PretendAccelerator("cuda", (), report.note):
        careless(torch.device("cuda"))()
    assert lines(report) == lines(count_synchronizations(careless(torch.device("cuda")), device="cuda"))


VARIANTS: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True}]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_no_optimizer_is_accused(kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    if kind is torch.optim.SGD and "capturable" in settings:
        pytest.skip("SGD has no capturable variant")
    model = nn.Linear(4, 2).to("cuda")
    optimizer = kind(model.parameters(), lr=1e-3, **settings)
    images = torch.randn(8, 4, device="cuda")

    def loop() -> None:
        for _ in range(STEPS):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    loop()  # the optimizer makes its state
    assert count_synchronizations(loop, device="cuda").count == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fit_waits_once_in_50_steps_and_for_the_scaler_of_fp16(precision: Any) -> None:
    images = torch.randint(0, 256, (800, 1, 8, 8), dtype=torch.uint8)
    loader = ResidentLoader(Split(images, torch.arange(800) % 2, "train", ("a", "b"), (0.4,), (0.3,)), 8, device="cuda")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).to("cuda")
    recipe = Recipe(epochs=1, learning_rate=0.01, precision=precision)
    report = count_synchronizations(lambda: fit(model, loader, recipe, progress=False), device="cuda")
    assert all(place.inside.startswith("training/") for place in report.places)
    assert report.count <= 100 / 50 + 1 if precision != "fp16" else report.count <= 4 * 100
