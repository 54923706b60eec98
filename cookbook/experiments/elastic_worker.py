"""The training that `cookbook.experiments.elastic` kills, as every rank runs it (lesson 03)."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from cookbook.data import Augmentation, ResidentLoader, load_fashion_mnist
from cookbook.distributed import joined
from cookbook.environment import seed_everything
from cookbook.files import atomic_path
from cookbook.models import ResNetConfig, build
from cookbook.training import Recipe, fit


def train(folder: str, images: int, epochs: int, kill_rank: int, kill_after: float) -> dict[str, Any]:
    """Train with everything in it that a resumed run could get wrong; die on the way if this rank is chosen.

    Args:
        folder: for the state, and for the ids of all processes that took part.
        images: of Fashion-MNIST.
        epochs: passes over them.
        kill_rank: the rank that is killed in the first attempt; −1: none.
        kill_after: seconds after that process began, its imports included.

    Returns:
        The weights' digest, the restarts, and how many seconds this process took from its beginning.
    """
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    Path(folder, f"process-{os.getpid()}").touch()
    began = psutil.Process().create_time()
    if attempt == 0 and rank == kill_rank:
        threading.Timer(max(began + kill_after - time.time(), 0), os.kill, (os.getpid(), signal.SIGKILL)).start()
    with joined(device="cpu", timeout=60) as context:
        seed_everything(0)
        model = nn.Sequential(build(ResNetConfig(depth=8, width=4)), nn.Dropout(0.1))
        loader = ResidentLoader(load_fashion_mnist().train.subset(images), 32, augmentation=Augmentation(crop=2, flip=True))
        recipe = Recipe(epochs=epochs, learning_rate=0.1, accumulate=2, clip_norm=1.0, ema_decay=0.9, label_smoothing=0.1)
        fit(model, loader, recipe, checkpoint=Path(folder, "run.state"), checkpoint_every=1, progress=False)
        if context.first:
            with atomic_path(Path(folder, "end.pt")) as temporary:
                torch.save(model.state_dict(), temporary)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    return {"weights": digest, "restarts": attempt, "seconds": time.time() - began}
