"""A load's figures follow from its samples and counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cookbook.errors import UsageError
from cookbook.serving import ServingResult, serving_table

RESULT = ServingResult(
    latencies=tuple(number / 1000 for number in range(1, 201)), rejected=50, seconds=4.0, cpu_seconds=2.5, joules=None,
    batches=40, max_batch=8, max_wait=0.001, queue_size=16, workers=1, concurrency=16,
)  # fmt: skip


def test_the_figures_are_what_their_names_say() -> None:
    assert (RESULT.answered, RESULT.throughput, RESULT.mean_batch, RESULT.requests_per_cpu_second) == (200, 50, 5, 80)
    assert RESULT.median == pytest.approx(0.1005)
    # 199 steps between 200 sorted samples: 99 % of the way is at 197.01 steps after the first
    assert RESULT.p99 == pytest.approx(0.19801)
    assert str(RESULT) == (
        "16 clients, batches of up to 8: 50 requests/s, latency 100 ms median, 198 ms at the 99th percentile, "
        "50 rejected, 5.0 images a batch, 80 requests per CPU second"
    )


def test_the_table_has_a_row_for_each_load() -> None:
    table = serving_table([replace(RESULT, concurrency=1), replace(RESULT, concurrency=None, rate=1234.5)], note="a note")
    assert [row[:2] for row in table.rows] == [("1 client", "8"), ("1,234 requests/s", "8")]
    assert table.rows[0][2:] == ("5.0", "50", "100.50", "198.01", "50", "80")
    assert table.note == "a note"


@pytest.mark.parametrize("changes", [{"latencies": ()}, {"batches": 0}])
def test_a_load_without_an_answer_has_no_figures(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="No request was answered"):
        replace(RESULT, **changes)  # type: ignore[arg-type]
