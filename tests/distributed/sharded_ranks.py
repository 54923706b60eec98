"""What the ranks of test_sharded.py do; spawned, hence in a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.distributed.sharded import shard
from cookbook.distributed.sharded_checkpoint import load_sharded, save_sharded
from cookbook.errors import CookbookError
from cookbook.models import build
from cookbook.models.transformer import VisionTransformerConfig

BATCH = 8  # images of one rank
STEPS = 5
CONFIG = VisionTransformerConfig(image_size=8, embedding=6, layers=2, heads=2, head_dim=3, hidden=7, classes=3)


def fresh_model(seed: int = 0, config: VisionTransformerConfig = CONFIG) -> nn.Module:
    """Return the same small transformer for the same seed; its sizes do not divide by the number of ranks."""
    torch.manual_seed(seed)
    return build(config)


def fresh_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    # the keys' biases have no gradient but rounding errors, which a smaller eps would turn into steps
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3)


def batch(step: int, ranks: int = 2) -> tuple[Tensor, Tensor]:
    """Return the images and labels of all ranks in one step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(ranks * BATCH, 1, 8, 8, generator=generator)
    return images, torch.randint(3, (ranks * BATCH,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int | None = None) -> None:
    """Take steps on one rank's half of each batch, or on the whole batches."""
    for step in steps:
        images, labels = batch(step)
        mine = slice(None) if rank is None else slice(rank * BATCH, (rank + 1) * BATCH)
        F.cross_entropy(model(images[mine]), labels[mine]).backward()
        optimizer.step()
        optimizer.zero_grad()


def gathered(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Return whole tensors for sharded ones."""
    return {name: tensor.full_tensor() for name, tensor in tensors.items()}


def run(rank: int, world: int, folder: str) -> None:
    """Compute and be refused as one rank."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    results = two_ranks(rank, Path(folder)) | {"said": refusals(rank, Path(folder))}
    if rank == 0:
        torch.save(results, Path(folder, "results.pt"))
    dist.destroy_process_group()


def two_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """Train, save, go on; go on from a checkpoint of one process; compute in bfloat16."""
    results: dict[str, Any] = {}
    model = shard(fresh_model(seed=10 * rank))  # rank 0's weights must win
    results["elements"] = sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[operator]
    images, labels = batch(0)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    F.cross_entropy(model(images[mine]), labels[mine]).backward()
    results["gradients"] = gathered({name: parameter.grad for name, parameter in model.named_parameters()})
    model.zero_grad()
    optimizer = fresh_optimizer(model)
    train(model, optimizer, range(STEPS), rank)
    save_sharded(folder / "by_two", model, optimizer, notes={"step": 1})
    optimizer.param_groups[0]["lr"] = 0.02
    save_sharded(folder / "by_two", model, optimizer, notes={"step": STEPS})
    results["weights"] = gathered(dict(model.named_parameters()))

    with torch.device("meta"):
        model = build(CONFIG)
    shard(model, device="cpu")
    results["unfilled"] = gathered(dict(model.named_parameters()))
    optimizer = fresh_optimizer(model)
    results["notes"] = load_sharded(folder / "by_one", model, optimizer)
    train(model, optimizer, range(STEPS, 2 * STEPS), rank)
    results["continued"] = gathered(dict(model.named_parameters()))

    half = shard(fresh_model(), precision="bf16")
    logits = half(images[mine])
    F.cross_entropy(logits.float(), labels[mine]).backward()
    results["bf16 logits"] = logits.detach()
    results["bf16 gradients"] = gathered({name: parameter.grad for name, parameter in half.named_parameters()})
    return results


def refusals(rank: int, folder: Path) -> dict[str, Any]:
    """Return what every refusal says on each of the two ranks."""
    model = shard(fresh_model())
    save_sharded(folder / "good", model)

    def cut_share() -> None:
        save_sharded(folder / "cut", model)
        if rank == 0:
            share = sorted((folder / "cut" / "shares-1").iterdir())[1]
            share.write_bytes(share.read_bytes()[:-4])
        dist.barrier()
        load_sharded(folder / "cut", model)

    def lost_share() -> None:
        save_sharded(folder / "lost", model)
        if rank == 0:
            sorted((folder / "lost" / "shares-1").iterdir())[1].unlink()
        dist.barrier()
        load_sharded(folder / "lost", model)

    def unwritable() -> None:
        (folder / "file").write_text("")
        save_sharded(folder / "file" / "below", model)

    wider = VisionTransformerConfig(image_size=8, embedding=6, layers=2, heads=2, head_dim=3, hidden=9, classes=3)
    attempts: dict[str, Callable[[], object]] = {
        "sharded twice": lambda: shard(model),
        "fp16": lambda: shard(fresh_model(), precision="fp16"),
        "missing": lambda: load_sharded(folder / "missing", model),
        "seen by one": lambda: load_sharded(folder / ("good" if rank else "missing"), model),
        "another model": lambda: load_sharded(folder / "good", shard(fresh_model(config=wider))),
        "no optimizer": lambda: load_sharded(folder / "good", model, fresh_optimizer(model)),
        "cut share": cut_share,
        "lost share": lost_share,
        "apart": lambda: save_sharded(folder / f"rank{rank}", model),
        "unwritable": unwritable,
        "notes": lambda: save_sharded(folder / "good", model, notes={"loss": float("nan")}),
    }
    said: dict[str, str] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            said[name] = "nothing"
        except CookbookError as error:
            said[name] = f"{type(error).__name__}: {error}"
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, said)
    load_sharded(folder / "good", model)  # the group still works
    return {name: [words[name] for words in everyone] for name in said}
