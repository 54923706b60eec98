"""What users would pick instead, beside this cookbook: one model compressed by each, in one run (`make bench-peers`)."""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cookbook.bench.recipes import FLOAT, WAYS, Given, Way
from cookbook.data import Augmentation, ResidentLoader, Splits
from cookbook.deploy import Runtime
from cookbook.deploy.deprecations import expected_deprecations
from cookbook.deploy.openvino_format import TELEMETRY, OpenVinoRuntime
from cookbook.deploy.sessions import first_line
from cookbook.deploy.torchscript import load_torchscript
from cookbook.environment import Provenance, provenance
from cookbook.errors import UsageError
from cookbook.evidence import Measurement, Table
from cookbook.evidence.tables import MISSING, accuracy_text, quantity, together
from cookbook.files import data_directory
from cookbook.measure import Candidate, measure_candidates, pinned_threads, speedup
from cookbook.models import load
from cookbook.probe.software import installed_version
from cookbook.quantization.dynamic import without_advice
from cookbook.training import Recipe

LESSON = "08"
LINES = "lines_of_code"  # every row of this benchmark has it among its values, and no other row has
NOT_RUN = "not run: "  # begins the runtime of a row without figures; the reason follows
BATCHES = (1, 64)
OLD = "torch.ao.quantization is deprecated|`torch.jit"  # eager mode, which is here to be compared with, says so of itself


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed.

    Attributes:
        calibrated: training images that every quantizer sees.
        trained: training images that fine-tuning sees; None: all.
        tested: images of the test split; None: all. A multiple of `predicted`.
        predicted: images in a batch of them.
        epochs: of the fine-tuning after pruning.
        rounds: samples of every latency.
    """

    calibrated: int = 512
    trained: int | None = None
    tested: int | None = None
    predicted: int = 250
    epochs: int = 1
    rounds: int = 30


REHEARSAL = Sizes(calibrated=64, trained=100, tested=200, predicted=100, rounds=3)


def baseline_given(splits: Splits, sizes: Sizes) -> Given:
    """Return the shipped baseline with the images and the recipe that all ways share.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    calibrated = splits.train.subset(sizes.calibrated)
    train = splits.train if sizes.trained is None else splits.train.subset(sizes.trained)
    return Given(
        model=load(data_directory() / "checkpoints" / "baseline.safetensors").eval(),
        images=calibrated.normalized(),
        calibration=ResidentLoader(calibrated, 64, shuffle=False),
        train=ResidentLoader(train, min(128, len(train)), augmentation=Augmentation(crop=2, flip=True)),
        tuning=Recipe(epochs=sizes.epochs, learning_rate=0.05, label_smoothing=0.1, channels_last=True),
    )


def named_artefacts(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the file that the course ships and those of a user, by what the table calls them.

    Args:
        paths: ONNX files that `cookbook compress` wrote, each in a folder of its own.

    Raises:
        UsageError: two folders have the same name.
    """
    named = {"this cookbook: compress, student": data_directory() / "checkpoints" / "compressed.onnx"}
    for path in paths:
        folder = path.resolve().parent.name
        if named.setdefault(f"this cookbook: compress, {folder}", path) is not path:
            raise UsageError(f"Two artefacts are called {folder}: rename the folder of one.")
    return named


def run_compressors(
    given: Given,
    splits: Splits,
    *,
    sizes: Sizes | None = None,
    ways: Sequence[Way] = WAYS,
    artefacts: Mapping[str, Path] | None = None,
    threads: int = 1,
    say: Callable[[str], object] = print,
) -> list[Measurement]:
    """Compress one model in every way, and return a row each from one interleaved run on the test split.

    What fails, at whatever step, is a row too: its runtime says why.

    Args:
        given: what the recipes start from; `baseline_given`.
        splits: of which the test images are predicted.
        sizes: None: `Sizes()`.
        ways: the first is what the others' speed is divided by.
        artefacts: ONNX files that `cookbook compress` wrote from the same model, by their names in the table, to be
            measured in the same run; `named_artefacts`.
        threads: of every runtime. Training uses torch's own number.
        say: takes a sentence on what is done.

    Raises:
        UsageError: there are fewer than three rounds, or the first way fails.
        DeploymentError: an artefact is missing or cannot be loaded.
    """
    sizes = sizes or Sizes()
    if sizes.rounds < 3:
        raise UsageError(f"{sizes.rounds} rounds give no interval: use 3 or more.")
    test = splits.test if sizes.tested is None else splits.test.subset(sizes.tested)
    images = test.normalized()[: max(*BATCHES, sizes.predicted)]
    with tempfile.TemporaryDirectory(prefix="cookbook-") as folder:
        served: dict[str, Candidate] = {}
        failed: dict[str, str] = {}
        for number, way in enumerate(ways):
            say(f"{way.name} …")
            file = Path(folder) / f"way-{number}" / f"model{way.suffix}"
            file.parent.mkdir()
            try:
                served[way.name] = _serve(way.name, _made(way, given, file), images, (*BATCHES, sizes.predicted), threads)
            except Exception as error:  # each of these libraries has kinds of its own; the row keeps the reason
                failed[way.name] = _reason(error)
                say(f"{way.name} is not run: {failed[way.name]}.")
        if ways[0].name in failed:
            raise UsageError(f"{ways[0].name} cannot be run ({failed[ways[0].name]}), and without it there is no comparison.")
        for name, path in (artefacts or {}).items():
            served[name] = _serve(name, path, images, (*BATCHES, sizes.predicted), threads)
        loader = ResidentLoader(test, sizes.predicted, shuffle=False)
        with torch.no_grad():
            measured = measure_candidates(
                list(served.values()), loader, lesson=LESSON, batches=BATCHES, threads=threads, rounds=sizes.rounds
            )
    known = {way.name: way for way in ways}
    rows = {row.subject: _described(row, known.get(row.subject)) for row in measured}
    for name, reason in failed.items():
        row = Measurement(
            subject=name,
            lesson=LESSON,
            runtime=f"{NOT_RUN}{reason}",
            provenance=provenance("cpu"),
            recorded=measured[0].recorded,
        )
        rows[name] = _described(row, known[name])
    return [rows[name] for name in dict.fromkeys((*known, *rows))]


def peers_table(measurements: Iterable[Measurement]) -> Table:
    """Return the newest run of this benchmark among the rows, as a table; all its numbers come from one run.

    Accuracy is on the test split with Wilson's 95 % interval; speed is a ratio to float32 in ONNX Runtime, timed in
    turns; lines of code are the statements that a user writes.
    """
    ours = [row for row in measurements if LINES in row.values]
    columns = (
        "compressed by",
        "runs in",
        "accuracy",
        "bytes",
        *(f"speed, batch {batch}" for batch in BATCHES),
        "lines of code",
    )
    title = "The same model, compressed in the ways that users would pick"
    if not ours:
        return Table(columns, (), "Nothing was measured yet: run 'make bench-peers'.", title)
    newest = max(ours, key=lambda row: row.recorded)
    run = [row for row in ours if together(row, newest)]
    plain = next((row for row in run if row.subject == FLOAT), None)  # None: its line in the ledger is damaged
    cells = [
        (
            row.subject + (" (quick)" if row.provenance.profile == "quick" else ""), row.runtime, accuracy_text(row),
            quantity(row.bytes, "B"), *(_speed(plain, row, batch) for batch in BATCHES), f"{row.values[LINES]:.0f}",
        )
        for row in run
    ]  # fmt: skip
    threads = ", ".join(sorted({str(timing.threads) for row in run for timing in row.latency.values()}))
    note = f"Measured on {newest.provenance.processor}; threads: {threads}; speed against {FLOAT} in ONNX Runtime."
    return Table(columns, cells, note, title)


def _speed(plain: Measurement | None, row: Measurement, batch: int) -> str:
    if plain is None or batch not in row.latency:
        return MISSING
    return str(speedup(plain.latency[batch], row.latency[batch]))


def _made(way: Way, given: Given, file: Path) -> Path:
    """Follow the recipe on a copy of the model, without what its libraries say or report by themselves."""
    torch.manual_seed(0)
    own = replace(given, model=copy.deepcopy(given.model))
    with _without_telemetry(), without_advice(), expected_deprecations(OLD):
        return way.make(own, file)


def _serve(name: str, file: Path, images: Tensor, batches: Iterable[int], threads: int) -> Candidate:
    """Load a file in the runtime of its suffix, and run it once with every batch that will be asked of it."""
    if file.suffix == ".xml":
        candidate = OpenVinoRuntime(file, threads=threads).candidate(name)
    elif file.suffix == ".onnx":
        candidate = Runtime(file, threads=threads).candidate(name)
    elif file.suffix == ".pt":
        candidate = Candidate(name, "TorchScript", load_torchscript(file), artefacts=(file,))
    else:
        candidate = Candidate(name, "torch.compile", _compiled(file, images, batches, threads), artefacts=(file,))
    with pinned_threads(threads), torch.no_grad():
        for batch in batches:
            candidate.predict(images[:batch])
    return candidate


def _compiled(file: Path, images: Tensor, batches: Iterable[int], threads: int) -> Callable[[Tensor], Tensor]:
    """Return the model of a ``.pt2`` file, compiled for each batch; its weights are constants, or no integer kernel fuses."""
    fast = torch.compile(torch.export.load(file).module(), dynamic=False)
    with pinned_threads(threads), torch.no_grad(), torch._inductor.config.patch(freezing=True):
        for batch in batches:
            fast(images[:batch].contiguous())
    return fast


def _described(row: Measurement, way: Way | None) -> Measurement:
    """Add the lines of code, which are one command for an artefact, and the versions of the packages."""
    lines = 1 if way is None else way.lines_of_code
    return replace(
        row, values={**row.values, LINES: float(lines)}, provenance=_with_versions(row.provenance, way.packages if way else ())
    )


def _with_versions(origin: Provenance, packages: Iterable[str]) -> Provenance:
    found = {name: version for name in packages if (version := installed_version(name))}
    return replace(origin, libraries={**origin.libraries, **found})


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{first_line(error).rstrip('.')}; 'make bench-peers' installs what is missing"
    return f"{type(error).__name__}: {first_line(error)}".rstrip(".: ")


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO and NNCF from importing what reports their use, as `cookbook.deploy.openvino_format` explains."""
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(TELEMETRY, None)
        if before is not None:
            sys.modules[TELEMETRY] = before
