import gc
import math

import numpy as np
import pytest
import scipy.stats
import torch

from cookbook.errors import UsageError
from cookbook.measure import Ratio, Timing, interleave, latency, pinned_threads, speedup


class Clock:
    """A clock that only moves when a candidate, or the wait for a device, moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.pending = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds

    def launch(self, seconds: float) -> None:
        self.pending += seconds

    def synchronize(self, device: torch.device) -> None:
        self.now += self.pending
        self.pending = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def timing(samples, threads=1, batch=1) -> Timing:
    return Timing(tuple(samples), threads, batch)


def test_candidates_take_turns_and_the_start_rotates():
    order: list[str] = []
    interleave({name: lambda name=name: order.append(name) for name in "ABC"}, rounds=4, warmup=2, repeats=1)
    assert "".join(order) == "AABBCC" + "ABC" + "BCA" + "CAB" + "ABC"


def test_samples_are_means_of_as_many_calls_as_fill_two_milliseconds(clock):
    calls = {"quick": 0, "slow": 0}

    def quick():
        calls["quick"] += 1
        clock.work(0.0003)

    def slow():
        calls["slow"] += 1
        clock.work(0.005)

    timings = interleave({"quick": quick, "slow": slow}, rounds=3, warmup=2, batch=8)
    assert calls == {"quick": 2 + 3 * 7, "slow": 2 + 3 * 1}  # 7 · 0.3 ms is the first multiple above 2 ms
    assert timings["quick"].samples == pytest.approx([0.0003] * 3)
    assert timings["slow"].samples == pytest.approx([0.005] * 3)
    assert timings["slow"].throughput == pytest.approx(8 / 0.005)
    calls["quick"] = 0
    interleave({"quick": quick}, rounds=3, warmup=1, repeats=2)
    assert calls["quick"] == 1 + 3 * 2


def test_repeats_follow_the_fastest_warm_up_call(clock):
    durations = iter([0.5, 0.001, 0.001] + [0.001] * 4)
    interleave({"first call is slow": lambda: clock.work(next(durations))}, rounds=2, warmup=3)
    assert next(durations, None) is None


def test_an_accelerator_is_waited_for_before_each_reading_of_the_clock(clock, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", clock.synchronize)
    clock.launch(7.0)  # left over from work before
    calls = []

    def asynchronous():
        calls.append(0)
        clock.launch(0.0005)

    timings = interleave({"asynchronous": asynchronous}, rounds=3, warmup=1, device="cuda")
    assert timings["asynchronous"].samples == pytest.approx([0.0005] * 3)
    assert len(calls) in (1 + 3 * 4, 1 + 3 * 5)  # 2 ms, or one more call where 0.0005 is rounded down


def test_the_garbage_collector_rests_while_candidates_run():
    seen = []
    interleave({"candidate": lambda: seen.append(gc.isenabled())}, rounds=2, repeats=1)
    assert not any(seen) and gc.isenabled()
    gc.disable()
    try:
        interleave({"candidate": lambda: None}, rounds=2, repeats=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_are_pinned_inside_and_restored_after_an_error():
    before = torch.get_num_threads()
    other = before + 1
    seen = []
    timings = interleave({"candidate": lambda: seen.append(torch.get_num_threads())}, rounds=2, threads=other, repeats=1)
    assert set(seen) == {other} and timings["candidate"].threads == other
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), pinned_threads(other) as pinned:
        assert pinned == torch.get_num_threads() == other
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with pinned_threads(None) as pinned:
        assert pinned == before


@pytest.mark.parametrize("failing_call", [0, 6])
def test_a_candidate_that_raises_is_named(failing_call):
    calls = iter(range(100))

    def fragile():
        if next(calls) == failing_call:
            raise RuntimeError("no such kernel.\nand a long tail")

    threads = torch.get_num_threads()
    with pytest.raises(UsageError, match=r"'fragile' failed .*\(RuntimeError: no such kernel\)") as caught:
        interleave({"solid": lambda: None, "fragile": fragile}, rounds=5, warmup=3, threads=threads + 1, repeats=1)
    assert isinstance(caught.value.__cause__, RuntimeError) and "\n" not in str(caught.value)
    assert gc.isenabled() and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"rounds": 0}, "rounds is 0"), ({"warmup": 0}, "warmup is 0"), ({"repeats": 0}, "repeats is 0"),
     ({"batch": 0}, "batch is 0"), ({"threads": 0}, "threads is 0")],
)  # fmt: skip
def test_wrong_counts_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        interleave({"candidate": lambda: None}, **arguments)
    with pytest.raises(UsageError, match="nothing to time"):
        interleave({})


def test_percentiles_are_numpys_and_survive_json():
    samples = [0.004, 0.001, 0.0033333333333, 0.002, 0.009]
    original = timing(samples, threads=2, batch=64)
    expected = np.quantile(samples, [0.5, 0.1, 0.9])
    assert (original.median, original.p10, original.p90) == pytest.approx(tuple(expected), abs=1e-9)
    assert original.samples[2] == 0.003333333
    fields = original.to_dict()
    assert set(fields) == {"median", "p10", "p90", "samples", "threads", "batch"}
    assert Timing.from_dict(fields) == original
    assert Timing.from_dict({**fields, "median": 99.0}).median == original.median


@pytest.mark.parametrize(
    "arguments",
    [((), 1, 1), ((0.0,), 1, 1), ((-1.0,), 1, 1), ((math.nan,), 1, 1), ((math.inf,), 1, 1), ((1.0,), 0, 1), ((1.0,), 1, 0)],
)
def test_what_is_no_timing_is_refused(arguments):
    with pytest.raises(UsageError):
        Timing(*arguments)


def test_a_speed_up_cancels_what_slows_both_sides_of_a_round():
    drift = np.geomspace(0.001, 0.1, 30)
    ratio = speedup(timing(2 * drift), timing(drift))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2), rel=1e-5)


def test_a_speed_up_is_scipys_paired_bootstrap():
    generator = np.random.default_rng(1)
    slow, fast = generator.lognormal(-6, 0.1, 30), generator.lognormal(-6.5, 0.1, 30)
    result = speedup(timing(slow), timing(fast), resamples=20_000)
    expected = scipy.stats.bootstrap(
        (slow, fast), lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert result.value == pytest.approx(np.median(slow) / np.median(fast), rel=1e-5)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=0.003)


def test_a_speed_up_covers_the_true_ratio():
    generator = np.random.default_rng(8)
    covered = 0
    for _ in range(400):
        noise = generator.normal(0, 0.05, 30)  # common to a round
        slow = 0.003 * np.exp(noise + generator.normal(0, 0.1, 30))
        fast = 0.002 * np.exp(noise + generator.normal(0, 0.1, 30))
        result = speedup(timing(slow), timing(fast), resamples=400)
        covered += result.low <= 1.5 <= result.high
    assert 0.92 <= covered / 400 <= 0.99


def test_a_speed_up_depends_on_nothing_but_samples_and_seed():
    generator = np.random.default_rng(4)
    slow, fast = timing(generator.lognormal(-6, 0.1, 20)), timing(generator.lognormal(-7, 0.1, 20))
    assert speedup(slow, fast, seed=3) == speedup(slow, fast, seed=3) != speedup(slow, fast, seed=4)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [(timing([0.001] * 4), "4 rounds, the baseline with 3"), (timing([0.001] * 3, threads=2), "2 threads, the baseline with 1"),
     (timing([0.001] * 3, batch=64), "64 images a batch, the baseline with 1")],
)  # fmt: skip
def test_timings_that_do_not_belong_together_are_refused(candidate, words):
    with pytest.raises(UsageError, match=words):
        speedup(timing([0.002] * 3), candidate)


def test_too_few_rounds_are_refused():
    with pytest.raises(UsageError, match="2 rounds"):
        speedup(timing([0.002] * 2), timing([0.001] * 2))


def test_a_ratio_is_printed_and_judged_with_its_interval():
    assert str(Ratio(2.412, 2.351, 2.468)) == "2.41× [2.35, 2.47]"
    assert Ratio(1.05, 1.01, 1.09).verdict() == "better"
    assert Ratio(1.05, 1.01, 1.09).verdict(margin=0.02) == "no difference"
    assert Ratio(1.05, 1.03, 1.09).verdict(margin=0.02) == "better"
    assert Ratio(0.95, 0.91, 0.99).verdict() == "worse"
    assert Ratio(0.95, 0.91, 0.99).verdict(margin=0.02) == "no difference"
    assert Ratio(1.0, 0.98, 1.02).verdict() == "no difference"
    with pytest.raises(UsageError, match="negative"):
        Ratio(1.0, 1.0, 1.0).verdict(margin=-0.1)
