"""The whole benchmark: which comparisons it makes, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cookbook import bench


def test_every_comparison_is_made_at_both_batches_with_the_threads_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    def one(*arguments: Any) -> str:
        made.append((*arguments[1:-1], torch.get_num_threads()))
        return "a row"

    def several(*arguments: Any, **settings: Any) -> Iterator[str]:
        made.append((*arguments[1:5], *settings.values()))
        yield "a row"

    for name in ("fit_against_bare_loop", "resident_against_dataloader", "two_ranks_against_one"):
        monkeypatch.setattr(bench, name, one)
    for name in ("cost_per_step", "runtimes_against_eager", "quantizers_against_float"):
        monkeypatch.setattr(bench, name, several)
    assert len(list(bench.run_bench(threads=2, rounds=7))) == 8
    networks = [bench.ResNetConfig(), bench.SMALL]
    assert [call[0] for call in made[:2]] == networks
    assert [call[-3:] for call in made[:2]] == [(2, 7, 2)] * 2
    assert made[2][:2] == ({}, 7)
    assert [call[:4] for call in made[4:6]] == [(networks[0], batch, 2, 7) for batch in (1, 64)]
    assert made[6][:4] == (networks[0], (1, 64), 2, 7)
