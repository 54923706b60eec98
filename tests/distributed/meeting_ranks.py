"""What two processes meet with in test_context.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from cookbook.distributed import joined


def meet(number: int, variables: dict[str, str], folder: str, timeout: float, leaves: bool) -> None:
    """Join the group, exchange something, and write down what came of it.

    Args:
        number: of this process, which its rank may contradict.
        leaves: end without a word before the exchange.
    """
    torch.set_num_threads(1)
    os.environ.update(variables)
    try:
        with joined(timeout=timeout) as context:
            if leaves:
                os._exit(0)
            total = torch.tensor(context.rank + 1)
            dist.all_reduce(total)
            said = f"{context} {dist.get_backend()} {total.item()}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    Path(folder, str(number)).write_text(f"{said} {dist.is_initialized()}")
