"""One speedrun in a process of its own, whose wall time is that of a cold start (lesson 01).

python -m cookbook.accelerator.cold full cuda
"""

from __future__ import annotations

import json
import sys

import torch

from cookbook.accelerator.setting import SCALES, Setting
from cookbook.accelerator.speedrun import Track


def main(scale: str, device: str) -> None:
    """Train once without a warm-up and print the result as one line of JSON."""
    setting = Setting(torch.device(device), SCALES[scale])
    run = Track(setting.scale.speedrun, setting.splits.train, setting.device).run(0, setting.splits.test)
    print(json.dumps({"cold_training_seconds": run.seconds, "cold_accuracy_percent": 100 * run.evaluation.accuracy}))


if __name__ == "__main__":
    main(*sys.argv[1:])
