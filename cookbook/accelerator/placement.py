"""What happens when the parts of a training step lie on different devices: gpu-02 (lesson 01)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from cookbook.accelerator.setting import Setting
from cookbook.evidence import ClaimEvidence

LESSON = "01"


def record_mismatches(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge gpu-02: count the mixtures of devices that raise, and those that go through in silence."""
    elsewhere = setting.device if setting.device.type != "cpu" else torch.device("meta")  # a CPU alone has no second device
    raised = {name: raises(case) for name, case in mismatches(elsewhere).items()}
    silent = {name: not raises(case) for name, case in exceptions(elsewhere).items()}
    values = {
        "cases_raised_share": sum(raised.values()) / len(raised),
        "cases": len(raised),
        "documented_exceptions_silent": sum(silent.values()),
    }
    values |= {f"raised_{name}": float(flag) for name, flag in raised.items()}
    values |= {f"silent_{name}": float(flag) for name, flag in silent.items()}
    yield setting.evidence("gpu-02", LESSON, values, "model, data, loss and metrics, each left behind on the CPU")


def mismatches(device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the mistakes of a training loop: one thing stayed on the CPU, the others are on `device`."""
    model = nn.Linear(4, 3).to(device)
    images, labels = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    logits, there = torch.zeros(2, 3, device=device), labels.to(device)
    collected = torch.zeros(2, 3)
    return {
        "model_and_images": lambda: model(images),
        "logits_and_labels": lambda: F.cross_entropy(logits, labels),
        "logits_and_class_weights": lambda: F.cross_entropy(logits, there, weight=torch.ones(3)),
        "images_and_mean": lambda: images.to(device) - torch.zeros(4),
        "metric_and_labels": lambda: logits.argmax(1) == labels,
        "collected_outputs": lambda: torch.cat([collected, logits]),
    }


def exceptions(device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the mixtures that torch allows: a CPU tensor of no dimension stands for a number, and CPU indices are moved."""
    table = torch.zeros(3, 4, device=device)
    return {
        "number_on_the_cpu": lambda: table * torch.tensor(2.0),
        "indices_on_the_cpu": lambda: table[torch.tensor([0, 2])],
    }


def raises(case: Callable[[], object]) -> bool:
    """Say whether the case ends in torch's error."""
    try:
        case()
    except RuntimeError:
        return True
    return False
