"""Started by test_hosts.py on every host, by torchrun or by itself: exchanges between all ranks until the cable is cut."""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cookbook.distributed import joined, launch
from cookbook.errors import CookbookError

SAMPLES = 8  # of one rank


def model_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    """Return the same small model and the same batch of two ranks everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    return model, torch.randn(2 * SAMPLES, 6), torch.randint(3, (2 * SAMPLES,))


def main(folder: Path, patience: float) -> None:
    """Leave the gradients in ``gradients.pt``, then exchange until an exchange takes longer than `patience` seconds."""
    torch.set_num_threads(1)
    with joined(device="cpu", timeout=60) as context:
        model, inputs, labels = model_and_batch()
        replica = DistributedDataParallel(model)
        mine = slice(context.rank * SAMPLES, (context.rank + 1) * SAMPLES)
        nn.functional.cross_entropy(replica(inputs[mine]), labels[mine]).backward()
        hosts: list[str | None] = [None] * context.world
        dist.all_gather_object(hosts, socket.gethostname())
        quick = dist.new_group(timeout=timedelta(seconds=patience))
        if context.first:
            found = {name: parameter.grad for name, parameter in model.named_parameters()}
            torch.save({"hosts": hosts, "gradients": found}, folder / "unfinished.pt")
            (folder / "unfinished.pt").rename(folder / "gradients.pt")
        while not (folder / "stop").exists():
            dist.all_reduce(torch.ones(1), group=quick)
            time.sleep(0.05)


def exchange(folder: str) -> None:
    """Exchange for ever, with the patience that is ordinary, and leave ``met`` when it goes well."""
    with joined(device="cpu") as context:
        while True:
            dist.all_reduce(torch.ones(1))
            if context.first:
                (Path(folder) / "met").touch()
            time.sleep(0.05)


if __name__ == "__main__":
    try:
        if len(sys.argv) > 2:
            main(Path(sys.argv[1]), float(sys.argv[2]))
        from hosts_worker import exchange as imported_exchange  # a rank imports it, too

        launch(imported_exchange, sys.argv[1], ranks=1, hosts=2, endpoint="host-a:29511", threads=1)
    except CookbookError as error:
        raise SystemExit(f"ERROR: {error}") from error
