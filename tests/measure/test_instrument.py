from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cookbook.data import ResidentLoader, Split
from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import Candidate, Measurement, count_macs, instrument, measure_candidates

CLASSES = 4


@pytest.fixture(autouse=True)
def short_energy_runs(monkeypatch):
    monkeypatch.setattr(instrument, "ENERGY_SECONDS", 1e-3)


@pytest.fixture
def split() -> Split:
    """Forty images of 6×6 whose first pixel is the label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 6, 6), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % CLASSES
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    return Split(images, labels, "test", tuple("abcd"), (0.0,), (1 / 255,))  # pixels stay 0 to 255


def reader(wrong_below: int = 0, seen: list[torch.Tensor] | None = None):
    """Return a predictor that reads the label, and errs on images whose second pixel is below `wrong_below`."""

    def predict(images):
        if seen is not None:
            seen.append(images.clone())
        label = images[:, 0, 0, 0].round().long() + (images[:, 0, 0, 1].round() < wrong_below)
        return torch.eye(CLASSES)[label % CLASSES]

    return predict


def test_a_measurement_holds_what_is_known_and_what_was_seen(split, tmp_path):
    artefact = tmp_path / "model.bin"
    artefact.write_bytes(b"x" * 123)
    seen: list[torch.Tensor] = []
    candidates = [
        Candidate("perfect", "python", reader(seen=seen), 7, 9, (artefact,), seed=3),
        Candidate("half", "python", reader(wrong_below=128)),
    ]
    perfect, half = measure_candidates(candidates, ResidentLoader(split, 16), lesson="00", batches=(24, 1), rounds=4)
    assert (perfect.subject, perfect.lesson, perfect.runtime, perfect.split) == ("perfect", "00", "python", "test")
    assert (perfect.parameters, perfect.macs, perfect.bytes, perfect.seed) == (7, 9, 123, 3)
    assert (half.parameters, half.macs, half.bytes, half.seed) == (None, None, None, None)
    assert (perfect.correct, perfect.images) == (40, 40)
    assert (half.correct, half.images) == (int((split.images[:, 0, 0, 1] >= 128).sum()), 40)
    for record in (perfect, half):
        assert list(record.latency) == [1, 24]
        assert all((len(t.samples), t.threads, t.batch) == (4, 1, batch) for batch, t in record.latency.items())
        assert record.provenance.threads == 1
        assert record.peak_memory >= 0 and record.values["cpu_seconds_per_image"] > 0
        assert Measurement.from_dict(record.to_dict()) == record
    real = {tuple(pixels) for pixels in split.images.flatten(1).tolist()}
    assert all(tuple(pixels) in real for batch in seen for pixels in batch.round().int().flatten(1).tolist())
    assert {len(batch) for batch in seen} == {1, 24, 16, 8}


def test_the_number_of_threads_is_the_one_asked_for(split):
    before, seen = torch.get_num_threads(), set()

    def predict(images):
        seen.add(torch.get_num_threads())
        return reader()(images)

    candidates, loader = [Candidate("a", "python", predict)], ResidentLoader(split, 16)
    (record,) = measure_candidates(candidates, loader, lesson="00", batches=(2,), threads=before + 1, rounds=3)
    assert seen == {before + 1} == {record.provenance.threads} == {record.latency[2].threads}
    assert torch.get_num_threads() == before


def test_peak_memory_is_that_of_the_largest_batch(split):
    def hungry(images):
        np.ones(len(images) * 2_000_000, np.uint8).sum()
        return reader()(images)

    candidates = [Candidate("hungry", "python", hungry), Candidate("modest", "python", reader())]
    hungry_record, modest = measure_candidates(candidates, ResidentLoader(split, 16), lesson="00", batches=(1, 32), rounds=3)
    assert 60e6 < hungry_record.peak_memory < 85e6
    assert modest.peak_memory < 15e6


def test_energy_is_that_of_one_image(split, monkeypatch):
    calls = []

    def energy_of(function, **_):
        function()
        return instrument.Energy(5.0, 10.0, "a test")

    monkeypatch.setattr(instrument, "energy_of", energy_of)
    monkeypatch.setattr(instrument, "_latencies", lambda *_: {"a": instrument.Timing((0.3e-3,) * 3, 1, 8)})

    def predict(images):
        calls.append(len(images))
        return reader()(images)

    (record,) = measure_candidates([Candidate("a", "python", predict)], ResidentLoader(split, 40), lesson="00", batches=(8,))
    assert calls[-4:] == [8, 8, 8, 8] and calls[-5] == 40  # four calls of 0.3 ms fill 1 ms
    assert record.energy_joules == pytest.approx(5.0 / 32)
    assert record.values["cpu_seconds_per_image"] == pytest.approx(10.0 / 32)


def test_rows_of_one_call_are_known_as_one_run_however_long_it_takes(split, monkeypatch):
    seconds = iter(range(60))
    monkeypatch.setattr(instrument, "now", lambda: f"2026-01-01T00:00:{next(seconds):02d}+00:00")
    candidates = [Candidate(name, "python", reader()) for name in ("one", "other")]
    rows = measure_candidates(candidates, ResidentLoader(split, 16), lesson="00", batches=(1,), rounds=2)
    assert rows[0].recorded == rows[1].recorded


def test_without_images_only_what_needs_none_is_recorded(tmp_path):
    artefact = tmp_path / "model.bin"
    artefact.write_bytes(b"x" * 5)
    candidate = Candidate.from_torch("linear", nn.Linear(3, 2), torch.zeros(1, 3), artefacts=[str(artefact)])
    (record,) = measure_candidates([candidate], None, lesson="00")
    assert (record.parameters, record.macs, record.bytes, record.runtime) == (8, 6, 5, "torch eager")
    assert record.split is record.correct is record.accuracy is record.peak_memory is record.energy_joules is None
    assert record.latency == {} and record.values == {}


def test_a_torch_model_predicts_in_eval_mode_and_without_gradients(split):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, CLASSES)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = split.images.float()
    candidate = Candidate.from_torch("cnn", model, images[:5], artefacts=["model.bin"], seed=2)
    assert (candidate.macs, candidate.parameters) == (count_macs(model, images), 30 + 6 + 196)
    assert (candidate.artefacts, candidate.device, candidate.seed) == ((Path("model.bin"),), torch.device("cpu"), 2)
    logits = candidate.predict(images)
    assert not logits.requires_grad and torch.equal(logits, model.eval()(images))
    model.train()
    assert torch.equal(candidate.predict(images), logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("good_calls", [0, 3, 6])
def test_a_candidate_that_fails_is_named(split, good_calls):
    calls = []

    def fragile(images):
        calls.append(len(images))
        if len(calls) > good_calls:
            raise RuntimeError("out of luck")
        return reader()(images)

    candidates = [Candidate("solid", "python", reader()), Candidate("fragile", "python", fragile)]
    with pytest.raises(UsageError, match=r"'fragile' failed .*RuntimeError: out of luck"):
        measure_candidates(candidates, ResidentLoader(split, 20), lesson="00", batches=(1, 4), rounds=3)
    assert len(calls) == good_calls + 1  # in the peak's call, the count's or the timing's


@pytest.mark.parametrize(
    ("names", "batches", "words"),
    [
        ([], (1,), "nothing to measure"),
        (["a", "b", "a"], (1,), "2 candidates are called 'a'"),
        (["a"], (), "batch sizes are"),
        (["a"], (0, 4), "batch sizes are"),
        (["a"], (1, 41), "has 40 images, but the largest batch takes 41"),
    ],
)
def test_what_cannot_be_measured_is_refused(split, names, batches, words):
    candidates = [Candidate(name, "python", reader()) for name in names]
    with pytest.raises(UsageError, match=words):
        measure_candidates(candidates, ResidentLoader(split, 16), lesson="00", batches=batches)


def test_two_accelerators_are_refused():
    candidates = [Candidate(name, "torch eager", reader(), device=torch.device(name)) for name in ("cuda:0", "cuda:1")]
    with pytest.raises(UsageError, match="cuda:0 and cuda:1"):
        measure_candidates(candidates, None, lesson="00")


def test_logits_of_another_shape_are_refused(split):
    candidate = Candidate("labels only", "python", lambda images: images[:, 0, 0, 0])
    with pytest.raises(UsageError, match=r"'labels only' returns \(16,\) for 16 images"):
        measure_candidates([candidate], ResidentLoader(split, 16), lesson="00", batches=(1,))


def test_a_missing_artefact_stops_before_anything_runs(split):
    ran = []
    candidate = Candidate("a", "python", ran.append, artefacts=(Path("/nonexistent/model.onnx"),))
    with pytest.raises(DeploymentError, match="does not exist"):
        measure_candidates([candidate], ResidentLoader(split, 16), lesson="00")
    assert not ran
