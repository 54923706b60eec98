"""The pipeline: stages in any order under one budget, measured one by one, resumable (lesson 08)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from cookbook.data import Augmentation, Splits, require_role
from cookbook.environment import pick_device
from cookbook.evidence import Ledger
from cookbook.pipeline.budget import Budget
from cookbook.pipeline.folder import Folder
from cookbook.pipeline.result import Compressed
from cookbook.pipeline.runner import Compression
from cookbook.pipeline.settings import Settings, build_stages, default_recipe
from cookbook.pipeline.stage import Stage
from cookbook.training import Recipe


def compress(
    model: nn.Module,
    data: Splits,
    *,
    budget: Budget | None = None,
    folder: str | os.PathLike[str],
    stages: Sequence[str | Stage] = ("prune", "distill", "quantize"),
    recipe: Recipe | None = None,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    device: torch.device | str | None = None,
    ledger: Ledger | None = None,
    entropy_coded: bool = False,
    rounds: int = 30,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
) -> Compressed:
    """Make `model` fast and small under a budget, and write one ONNX file and a report; the model is left as it is.

    Every stage's file is measured on validation, in turns with the fp32 model's. Of the files that keep the budget the
    last stage's is taken; when none does, the one that breaks it least, and the result says which bound fails and by how
    much. Test is looked at once, at the end.

    The run can be interrupted at any moment, by SIGKILL too: the same call goes on where it was, and inside a training
    at its last step. What a measurement decided, such as the widths to prune to, is kept once it is decided. On the same
    machine with the same number of threads the file then comes out the same, byte for byte.

    Args:
        model: trained; maps float32 images (B, C, H, W), normalized as `data` says, to logits (B, classes).
        data: trains, chooses and reports by its three splits.
        budget: what the file may take; None: `Budget()`.
        folder: for everything that is written; made when it is missing.
        stages: names, or objects such as ``Prune(target=MACs(0.3))`` or your own `Stage`, in the order in which they
            run. The export is always last.
        recipe: of the trainings; None: `default_recipe()`.
        batch_size: images a training step.
        augmentation: of the training images.
        device: where trainings run; None: `pick_device()`. Files are measured on the CPU.
        ledger: where measurements go; None: ``ledger.jsonl`` in the folder.
        entropy_coded: also write the file packed, as `pack_onnx` does.
        rounds: samples of every latency.
        progress: show bars; None decides by terminal, JupyterLab and CI.
        announce: is told, in a line each, what begins.

    Raises:
        UsageError: a value is out of range, a stage is unknown, or the model cannot be pruned or trained so.
        CheckpointError: the folder belongs to a compression of another model, with other data, budget or stages.
        DataError: a split is too small.
        DeploymentError: the model cannot be exported.
        KeyboardInterrupt: Ctrl-C, after the state was saved. (SIGTERM: SystemExit with 143.)
    """
    for split, role in ((data.train, "train"), (data.validation, "validation"), (data.test, "test")):
        require_role(split.role, (role,), f"{role} in a compression")  # type: ignore[arg-type]
    original = copy.deepcopy(model).cpu().eval()
    settings = Settings(
        budget or Budget(), build_stages(stages), recipe or default_recipe(), batch_size, augmentation, entropy_coded
    )
    kept = Folder(folder, settings.identity(original, data))
    run = Compression(
        original, data, settings, kept, pick_device(None if device is None else str(device)),
        ledger or Ledger(kept.path / "ledger.jsonl"), rounds, progress, announce or (lambda line: None),
    )  # fmt: skip
    return run.finish()
