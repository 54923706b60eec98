"""The trial finds equal gradients where they are equal, and BatchNorm's difference where they are not."""

from __future__ import annotations

import socket

import pytest

from cookbook.distributed import launch
from cookbook.distributed.trial import gradient_trial

pytestmark = pytest.mark.usefixtures("one_thread")


def test_alone_there_is_no_difference() -> None:
    assert gradient_trial() == {"rank": 0, "world": 1, "host": socket.gethostname(), "plain": 0.0, "batch_norm": 0.0}


@pytest.mark.timeout(240)
def test_two_ranks_differ_by_rounding_and_by_what_batch_norm_does() -> None:
    first, second = launch(gradient_trial, ranks=2, threads=1, timeout=200)
    assert (first["rank"], second["rank"], first["world"]) == (0, 1, 2)
    for one in (first, second):
        assert 0 < one["plain"] < 1e-6  # not zero: it was computed in another order
        assert one["batch_norm"] > 1e-2
