"""A teacher's answers computed once: several teachers as one, logits on disk, fixed augmented views (lesson 06)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cookbook.data import Augmentation, Batch, ResidentLoader, Split, require_role
from cookbook.environment import derive_seed
from cookbook.errors import CheckpointError, UsageError
from cookbook.files import atomic_path, cache_directory
from cookbook.models import eval_mode
from cookbook.precision import Precision, PrecisionName
from cookbook.progress import progress_bar

Averaging = Literal["probabilities", "logits"]
METADATA_KEY = "cookbook.teacher-logits"
TEACHER_BATCH = 250


class Ensemble(nn.Module):
    """Several teachers that answer as one.

    Averaged probabilities are returned as their logarithms, which are logits of the same probabilities
    (Hinton, Vinyals and Dean, arXiv 1503.02531, section 5, for the arithmetic and the geometric mean; the
    mean of the logits is the geometric one).

    Args:
        teachers: one or more, with the same classes.
        weights: positive, one a teacher, scaled to the sum 1; equal by default.
        averaging: ``probabilities`` or ``logits``.

    Raises:
        UsageError: no teacher, a wrong number of weights, one that is not positive, or another averaging.
    """

    share: Tensor

    def __init__(
        self, teachers: Sequence[nn.Module], *, weights: Sequence[float] | None = None, averaging: Averaging = "probabilities"
    ) -> None:
        super().__init__()
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if not teachers or len(weights) != len(teachers) or not all(0 < weight < float("inf") for weight in weights):
            raise UsageError(f"{len(teachers)} teachers have the weights {weights}: give one positive weight for each teacher.")
        if averaging not in get_args(Averaging):
            raise UsageError(f"averaging is {averaging!r}: use {' or '.join(get_args(Averaging))}.")
        self.teachers = nn.ModuleList(teachers)
        self.averaging = averaging
        self.register_buffer("share", torch.tensor(weights, dtype=torch.float64).div(sum(weights)).float())

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes).

        Raises:
            UsageError: the teachers differ in their classes.
        """
        answers = [teacher(images).float() for teacher in self.teachers]
        if len({answer.shape for answer in answers}) > 1:
            raise UsageError(f"The teachers give {[tuple(a.shape) for a in answers]}: use teachers of the same classes.")
        share = self.share.to(answers[0].device).view(-1, 1, 1)
        if self.averaging == "logits":
            return (share * torch.stack(answers)).sum(0)
        return torch.logsumexp(share.log() + torch.stack(answers).log_softmax(2), 0)

    def extra_repr(self) -> str:
        """Name the averaging, so that it is part of the fingerprint."""
        return f"averaging={self.averaging}"


def fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with the architecture as printed, and with any weight or statistic."""
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def teacher_logits(
    teacher: nn.Module, split: Split, *, path: str | os.PathLike[str] | None = None, refresh: bool = False,
    device: torch.device | str | None = None, precision: PrecisionName = "fp32",
) -> Tensor:  # fmt: skip
    """Return the teacher's logits of every image, from disk when they were computed before.

    The file is named by the weights of the teacher, the pixels and the precision, and says in its header what it belongs
    to. Another teacher or other images therefore never meet it; a file that was named by hand, moved or
    damaged is refused.

    Args:
        teacher: answers in eval mode, without gradients; its modes are restored.
        split: train or validation images; they are shown as they are, without augmentation.
        path: another place than ``teacher-logits/`` in `cache_directory()`.
        refresh: compute and write again, whatever the file holds.
        device: where the images are shown; the teacher's by default.
        precision: in which the teacher computes, as a teacher that is asked during training computes in the training's.

    Returns:
        float32 (N, classes) on the CPU, in the order of the split.

    Raises:
        UsageError: the split is the test split, the device cannot follow the precision, or the teacher does not
            return (B, classes).
        CheckpointError: the file belongs to another teacher, other images or another precision, is damaged, or
            cannot be written.
    """
    require_role(split.role, ("train", "validation"), "distill")
    identity = {
        "format": 2, "teacher": fingerprint(teacher), "data": split.fingerprint(), "mean": split.mean, "std": split.std,
        "precision": precision,
    }  # fmt: skip
    text = json.dumps(identity, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    file = Path(path) if path is not None else cache_directory() / "teacher-logits" / f"{name}.safetensors"
    if file.exists() and not refresh:
        return _read_logits(file, text, len(split))
    logits = _ask(teacher, split, device, precision)
    try:
        with atomic_path(file) as temporary:
            save_file({"logits": logits}, temporary, metadata={METADATA_KEY: text})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be written ({error}): check the folder, its rights and the free space."
        ) from error
    return logits


def _read_logits(file: Path, identity: str, images: int) -> Tensor:
    advice = "pass refresh=True to compute it again, or name another file"
    try:
        with safe_open(file, framework="pt") as content:
            found, logits = (content.metadata() or {}).get(METADATA_KEY), content.get_tensor("logits")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} does not hold a teacher's logits ({error}): {advice}.") from error
    if found != identity or len(logits) != images:
        raise CheckpointError(f"{file} holds the logits of another teacher, of other images or in another precision: {advice}.")
    return logits


def _ask(teacher: nn.Module, split: Split, device: torch.device | str | None, precision: PrecisionName) -> Tensor:
    own = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    loader = ResidentLoader(split, TEACHER_BATCH, device=device or own, shuffle=False)
    policy = Precision(precision, loader.device.type)
    answers = []
    with eval_mode(teacher), torch.inference_mode(), policy.matmul_mode(), \
         progress_bar("asking the teacher", len(loader)) as advance:  # fmt: skip
        for images, _ in loader:
            with policy.autocast():
                logits = teacher(images)
            if logits.ndim != 2:
                raise UsageError(f"The teacher returns {tuple(logits.shape)}: logits of shape (B, classes) were expected.")
            answers.append(logits.float().cpu())
            advance()
    return torch.cat(answers)


def augmented_views(split: Split, augmentation: Augmentation, views: int, *, seed: int = 0) -> list[Split]:
    """Return `views` augmented copies of a split, as bytes, fixed for good: the same crop for every model and every run.

    Showing student and teacher the same crops is what Beyer et al. (arXiv 2106.05237) call function matching;
    here the crops come from a finite set, so that the teacher need answer only once for each.

    Args:
        split: train images.
        augmentation: crop, flip and erase; erased pixels get the mean, rounded to a byte.
        views: copies, each as large as the split in memory.
        seed: of the augmentation.

    Raises:
        UsageError: fewer than 1 view, or the augmentation changes the resolution.
    """
    if views < 1:
        raise UsageError(f"views is {views}: use 1 or more.")
    if augmentation.resolutions:
        raise UsageError("Views have one size: use an augmentation without resolutions.")
    loader = ResidentLoader(split, TEACHER_BATCH, augmentation=augmentation, shuffle=False, seed=seed)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (split.mean, split.std))
    copies = []
    for view in range(views):
        shown = [((images * std + mean) * 255).round().to(torch.uint8) for images, _ in loader.batches(view)]
        copies.append(replace(split, images=torch.cat(shown)))
    return copies


class ViewLoader(ResidentLoader):
    """Batches from fixed views of the same images; with the teacher's logits beside the labels when they are known.

    Each epoch shows every image once, in one of its views; over as many epochs as there are views each
    image is seen in all of them. Order and choice depend on seed and epoch alone, so that a student
    with hard labels and a distilled one see the very same pictures.

    Args:
        views: from `augmented_views`, or the split alone.
        batch_size: images per step; an incomplete last batch is dropped.
        logits: (views, N, classes), from `teacher_logits` of each view. With them the second part of a batch
            is float32 (B, 1 + classes), the label and the logits, which only `distill` can read; without
            them it is the labels, int64 (B,).
        device: where the images live.
        seed: of order and choice.

    Raises:
        UsageError: no view, views of different images, or logits of another shape.
        DataError: the images do not fill one batch.
    """

    def __init__(
        self, views: Sequence[Split], batch_size: int, *, logits: Tensor | None = None,
        device: torch.device | str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        if not views or any(not torch.equal(view.labels, views[0].labels) for view in views):
            raise UsageError(f"These {len(views)} views do not show the same images: pass what augmented_views returned.")
        super().__init__(views[0], batch_size, device=device, shuffle=True, seed=seed)
        if logits is not None and (logits.ndim != 3 or logits.shape[:2] != (len(views), len(views[0]))):
            raise UsageError(
                f"The logits have the shape {tuple(logits.shape)}: ({len(views)}, {len(views[0])}, classes) was expected, "
                "one row for each view of each image."
            )
        self.views = list(views)
        self.logits = None if logits is None else logits.float().to(self.device)
        self._images = torch.stack([view.images for view in views]).to(self.device)
        generator = torch.Generator().manual_seed(derive_seed(seed, 0, 0, 1))
        self._first_view = torch.randint(len(views), (len(views[0]),), generator=generator).to(self.device)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `first` on."""
        for index in self._index_batches(epoch, first):
            index = index.to(self.device, non_blocking=True)
            view = (self._first_view[index] + epoch) % len(self.views)
            images = torch.addcmul(self._shift, self._images[view, index], self._scale)
            labels = self._labels[index]
            if self.logits is not None:
                labels = torch.cat([labels[:, None].float(), self.logits[view, index]], dim=1)
            yield images, labels

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the views, the logits and their order."""
        known = None if self.logits is None else hashlib.sha256(self.logits.cpu().numpy().tobytes()).hexdigest()[:16]
        return {**super().describe(), "views": [view.fingerprint() for view in self.views], "logits": known}
