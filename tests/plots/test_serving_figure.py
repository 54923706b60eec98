"""The serving figure shows every load at its place, and its title says what its points say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Annotation

from cookbook.errors import EvidenceError
from cookbook.plots import serving_figure
from cookbook.serving import ServingResult


def served(limit: int, clients: int, throughput: float, latency: float, rejected: int = 0) -> ServingResult:
    return ServingResult(
        latencies=(latency,) * 100, rejected=rejected, seconds=100 / throughput, cpu_seconds=1.0, joules=None, batches=50,
        max_batch=limit, max_wait=0.0, queue_size=8, workers=1, concurrency=clients,
    )  # fmt: skip


RESULTS = [served(16, 8, 400.0, 0.02), served(1, 8, 100.0, 0.08), served(1, 1, 90.0, 0.01), served(16, 16, 500.0, 0.03, 7)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_load_is_a_labelled_point_on_the_line_of_its_batch_limit(theme: str) -> None:
    picture = serving_figure(RESULTS, theme=theme)  # type: ignore[arg-type]
    (axes,) = picture.axes
    drawn = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    assert drawn["one image a call"] == pytest.approx(np.array([[10, 90], [80, 100]]))
    assert drawn["batches of up to 16"] == pytest.approx(np.array([[20, 400], [30, 500]]))
    labels = [text.get_text() for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    assert sorted(labels) == ["1 client", "16 clients, 7 rejected", "8 clients", "8 clients"]
    assert picture.png().startswith(b"\x89PNG")


def test_the_title_compares_the_best_of_the_largest_and_the_smallest_batches() -> None:
    finding = serving_figure(RESULTS).finding
    assert "Batches of up to 16 serve 5.00 times as many requests as batches of up to 1" in finding
    assert "500 requests/s with 16 clients and 30 ms" in finding
    assert "100 requests/s with 8 clients and 80 ms" in finding
    alone = serving_figure(RESULTS[1:3]).finding
    assert alone == "Batches of up to 1 serve at most 100 requests/s with 8 clients and 80 ms at the 99th percentile."


def test_without_a_result_there_is_no_figure() -> None:
    with pytest.raises(EvidenceError, match="no result to draw"):
        serving_figure([])
