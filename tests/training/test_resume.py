"""An interrupted run ends with the very weights of an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import RICH_RECIPE, small_loader, small_model, small_split
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.errors import CheckpointError
from cookbook.training import CrossEntropy, Recipe, fit

pytestmark = pytest.mark.usefixtures("one_thread")


def undisturbed(recipe: Recipe = RICH_RECIPE) -> dict[str, Tensor]:
    model = small_model()
    fit(model, small_loader(), recipe, progress=False)
    return model.state_dict()


def assert_bitwise_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{name} differs by {(value - other[name]).abs().max()}"


class InterruptAt:
    """An objective that raises in the middle of a given step, as a crash would."""

    def __init__(self, call: int, action) -> None:
        self.calls, self.call, self.action = 0, call, action
        self.inner = CrossEntropy(RICH_RECIPE.label_smoothing)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            self.action()
        return self.inner(model, images, labels)


def crash() -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("call", [1, 2, 5, 7, 12, 18])
def test_resume_after_a_crash_in_any_batch(tmp_path: Path, call: int) -> None:
    state = tmp_path / "run.state"
    with pytest.raises(RuntimeError, match="planted"):
        fit(small_model(), small_loader(), RICH_RECIPE, objective=InterruptAt(call, crash), checkpoint=state,
            checkpoint_every=1, progress=False)  # fmt: skip
    resumed = small_model(seed=99)  # the weights come from the state, not from this initialization
    fit(resumed, small_loader(), RICH_RECIPE, checkpoint=state, checkpoint_every=1, progress=False)
    if call <= RICH_RECIPE.accumulate:  # nothing was saved yet, so the run started afresh from the other weights
        assert not torch.equal(resumed.state_dict()["0.weight"], undisturbed()["0.weight"])
    else:
        assert_bitwise_equal(resumed.state_dict(), undisturbed())


@pytest.mark.parametrize("recipe", [
    RICH_RECIPE,
    Recipe(epochs=3, learning_rate=0.05, channels_last=True),
    Recipe(epochs=3, learning_rate=0.05, schedule="step", precision="bf16"),
    replace(RICH_RECIPE, precision="bf16"),
    replace(RICH_RECIPE, precision="fp16", fused=True),
], ids=["rich", "channels-last", "bf16", "rich-bf16", "rich-fp16"])  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_at_the_next_step_and_the_same_call_resumes(tmp_path: Path, recipe: Recipe, number: int) -> None:
    state = tmp_path / "run.state"
    interrupting = InterruptAt(4 * recipe.accumulate, lambda: signal.raise_signal(number))
    interrupting.inner = CrossEntropy(recipe.label_smoothing)
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as left:
        fit(
            small_model(),
            small_loader(),
            recipe,
            objective=interrupting,
            checkpoint=state,
            checkpoint_every=10**6,
            progress=False,
        )
    if number == signal.SIGTERM:
        assert left.value.code == 143
    assert signal.getsignal(number) is handler
    saved = torch.load(state, weights_only=True)
    steps_per_epoch = 6 // recipe.accumulate
    assert saved["at"]["epoch"] * steps_per_epoch + saved["at"]["step"] == 4
    resumed = small_model(seed=99)
    fit(resumed, small_loader(), recipe, checkpoint=state, progress=False)
    assert_bitwise_equal(resumed.state_dict(), undisturbed(recipe))


@pytest.mark.parametrize("epoch", [1, RICH_RECIPE.epochs])
def test_a_signal_during_validation_is_obeyed_after_the_epoch_was_saved(tmp_path: Path, epoch: int) -> None:
    class Interrupting(ResidentLoader):
        passes = 0

        def batches(self, number: int, first: int = 0):
            self.passes += 1
            if self.passes == epoch:
                signal.raise_signal(signal.SIGTERM)
            return super().batches(number, first)

    state = tmp_path / "run.state"
    validation = Interrupting(small_split(16, "validation", seed=8), 8)
    with pytest.raises(SystemExit):
        fit(small_model(), small_loader(), RICH_RECIPE, validation=validation, checkpoint=state, progress=False)
    assert torch.load(state, weights_only=True)["at"]["epoch"] == epoch
    resumed = small_model(seed=99)
    fit(resumed, small_loader(), RICH_RECIPE, checkpoint=state, progress=False)
    assert_bitwise_equal(resumed.state_dict(), undisturbed())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL and fork exist on POSIX systems only")
def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run([sys.executable, script, tmp_path, "12"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "finished after" in done.stdout
    assert int(done.stdout.split()[2]) >= 3, "too few kills hit a running attempt to show anything"
    assert_bitwise_equal(torch.load(tmp_path / "final.pt", weights_only=True), undisturbed())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final.pt", "run.state"], "an unfinished write was left"


def test_a_kill_during_the_write_keeps_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "run.state"
    monkeypatch.setattr(Path, "replace", lambda self, target: crash())
    with pytest.raises(RuntimeError, match="planted"):
        fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=state, checkpoint_every=1, progress=False)
    assert not state.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    state = tmp_path / "run.state"
    first = small_model()
    history = fit(first, small_loader(), RICH_RECIPE, checkpoint=state, progress=False)
    again = small_model(seed=99)

    def must_not_run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("a finished run took another step")

    assert fit(again, small_loader(), RICH_RECIPE, objective=must_not_run, checkpoint=state, progress=False) == history
    assert_bitwise_equal(again.state_dict(), first.state_dict())


def test_history_and_losses_survive_the_interruption(tmp_path: Path) -> None:
    straight = fit(small_model(), small_loader(), RICH_RECIPE, progress=False)
    state = tmp_path / "run.state"
    with pytest.raises(RuntimeError, match="planted"):
        fit(small_model(), small_loader(), RICH_RECIPE, objective=InterruptAt(9, crash), checkpoint=state,
            checkpoint_every=1, progress=False)  # fmt: skip
    resumed = fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=state, progress=False)
    assert [record.train_loss for record in resumed] == [record.train_loss for record in straight]
    assert [record.learning_rate for record in resumed] == [record.learning_rate for record in straight]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    state = tmp_path / "run.state"
    fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=state, progress=False)
    return state


def test_another_recipe_model_or_data_is_refused(finished: Path) -> None:
    other_recipe = Recipe(epochs=4, learning_rate=0.05)
    with pytest.raises(CheckpointError, match="another recipe"):
        fit(small_model(), small_loader(), other_recipe, checkpoint=finished, progress=False)
    with pytest.raises(CheckpointError, match="another data"):
        fit(small_model(), small_loader(small_split(seed=8)), RICH_RECIPE, checkpoint=finished, progress=False)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(CheckpointError, match="another model"):
        fit(wider, small_loader(), RICH_RECIPE, checkpoint=finished, progress=False)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_state_is_one_sentence_and_is_left_alone(finished: Path, keep: float) -> None:
    whole = finished.read_bytes()
    finished.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    damaged = finished.read_bytes()
    with pytest.raises(CheckpointError, match="not a readable training state") as error:
        fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=finished, progress=False)
    assert "\n" not in str(error.value)
    assert finished.read_bytes() == damaged


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "weights.pt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    with pytest.raises(CheckpointError, match="not a training state"):
        fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=foreign, progress=False)
    with pytest.raises(CheckpointError, match="is a folder"):
        fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=tmp_path, progress=False)


def test_outside_the_main_thread_fit_leaves_the_signals_alone(tmp_path: Path) -> None:
    finished: list[int] = []
    worker = threading.Thread(
        target=lambda: finished.append(
            len(fit(small_model(), small_loader(), RICH_RECIPE, checkpoint=tmp_path / "run.state", progress=False))
        )
    )
    worker.start()
    worker.join(timeout=60)
    assert finished == [RICH_RECIPE.epochs]
