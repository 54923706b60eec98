"""The report of a compression: one page that needs no other file, in light and in dark (lesson 08)."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from cookbook.deploy import Runtime, kernels
from cookbook.evidence import Table, scoreboard
from cookbook.evidence.tables import MISSING, accuracy_text, quantity
from cookbook.files import atomic_path
from cookbook.measure import Measurement
from cookbook.pipeline.budget import Relative
from cookbook.pipeline.result import Compressed
from cookbook.plots import scoreboard_figure
from cookbook.plots.picture import Theme

STYLE = """:root { color-scheme: light dark; --ink: #222; --ground: #fff; --line: #ddd; --met: #00664d; --missed: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --ground: #16181d; --line: #3a3d45; --met: #4fd1ab; --missed: #ff9a5c; }
}
body { font: 1rem/1.6 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { padding: .2rem .7rem; vertical-align: top; border-bottom: 1px solid var(--line); }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .7rem; }
img { max-width: 100%; height: auto; }
.met { color: var(--met); font-weight: bold; } .missed { color: var(--missed); font-weight: bold; }"""


def write_report(compressed: Compressed) -> Path:
    """Write the page atomically: what was asked and whether it holds, what each stage cost and gave, figure, kernels, use.

    Raises:
        DeploymentError: a file of the compression is missing or damaged.
    """
    with atomic_path(compressed.report) as temporary:
        temporary.write_text(render(compressed), encoding="utf-8")
    return compressed.report


def render(compressed: Compressed) -> str:
    """Return the page as HTML."""
    rows = [compressed.baseline, *(stage.measurement for stage in compressed.stages)]
    word = "met" if compressed.met else "missed"
    sections = [
        f'<p class="{word}">{html.escape(compressed.verdict)}</p>',
        f"<p>Asked: {html.escape(str(compressed.budget))}; accuracy on validation, latency in ONNX Runtime on one thread "
        "with one image.</p>",
        bounds_table(compressed)._repr_html_(),
        "<h2>Stages</h2>",
        stages_table(compressed)._repr_html_(),
        _notes(compressed),
        "<h2>Accuracy against latency</h2>",
        _figure(rows),
        "<h2>All files, measured in turns on validation</h2>",
        scoreboard(rows)._repr_html_(),
        "<h2>On test, looked at once</h2>",
        scoreboard(compressed.test)._repr_html_() if compressed.chosen >= 0 else _unchanged(compressed.test[0]),
        "<h2>Kernels that run</h2>",
        f"<pre>{html.escape(str(kernels(compressed.path)))}</pre>",
        "<h2>Use the file</h2>",
        f"<pre><code>{html.escape(snippet(compressed))}</code></pre>",
    ]
    if compressed.packed is not None:
        sections += ["<h2>Storage</h2>", storage_table(compressed)._repr_html_(),
                     "<p>The packed file gives the plain one back byte for byte: "
                     "<code>cookbook.pipeline.unpack_onnx</code>.</p>"]  # fmt: skip
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Compression report</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>Compression report</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def bounds_table(compressed: Compressed) -> Table:
    """Return each bound, what was measured, and whether it holds."""
    found, budget = compressed.relative, compressed.budget
    broken = {violation.bound: violation for violation in compressed.violations}
    rows = []
    for bound, unit in (("latency", "of the baseline's"), ("accuracy_drop", "points"), ("bytes", "of the baseline's")):
        allowed, value = getattr(budget, bound), getattr(found, bound)
        if allowed is not None:
            word = f"missed by {broken[bound].by:.3f}" if bound in broken else "met"
            rows.append((bound.replace("_", " "), f"{allowed:.3f}", f"{value:.3f}", unit, word))
    return Table(("bound", "at most", "measured", "unit", "verdict"), rows, title="Budget")


def stages_table(compressed: Compressed) -> Table:
    """Return what each stage cost and gave; its accuracy, latency and bytes are those of the file after it."""
    before = compressed.baseline
    rows = [("unchanged", MISSING, MISSING, accuracy_text(before), MISSING, "1.00×", quantity(before.bytes, "B"), "1.00×")]
    for number, stage in enumerate(compressed.stages):
        own = stage.measurement
        whole, step = Relative.of(own, compressed.baseline), Relative.of(own, before)
        rows.append((
            stage.name + (" (shipped)" if number == compressed.chosen else ""), f"{stage.seconds:.1f}",
            f"{stage.training_seconds:.1f}", accuracy_text(own), f"{step.points_gained:+.2f}", f"{1 / whole.latency:.2f}×",
            quantity(own.bytes, "B"), f"{1 / whole.bytes:.2f}×",
        ))  # fmt: skip
        before = own
    columns = ("after", "seconds", "of these training", "accuracy", "points gained", "as fast", "bytes", "as small")
    return Table(columns, rows, title="What each stage cost and gave")


def storage_table(compressed: Compressed) -> Table:
    """Return the sizes of the plain and of the packed file beside the baseline's."""
    assert compressed.packed is not None and compressed.baseline.bytes is not None
    whole = compressed.baseline.bytes
    sizes = {"fp32 ONNX": whole, "file to ship": compressed.path.stat().st_size, "packed": compressed.packed.stat().st_size}
    rows = [(name, f"{size:,}", f"{whole / size:.2f}×") for name, size in sizes.items()]
    return Table(("file", "bytes", "as small"), rows, title="Plain and entropy-coded")


def snippet(compressed: Compressed) -> str:
    """Return the lines of Python that load the file and run it on images of the right shape."""
    _, *sizes = Runtime(compressed.path).input_shape
    return "\n".join([
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession({compressed.path.name!r}, providers=["CPUExecutionProvider"])',
        f"images = np.zeros((1, {', '.join(map(str, sizes))}), np.float32)  # normalized as in training",
        "(logits,) = session.run(None, {session.get_inputs()[0].name: images})",
        "print(logits.argmax(1))",
    ])  # fmt: skip


def _figure(rows: list[Measurement]) -> str:
    """Return the Pareto figure in light and dark, of which the browser shows one; its finding is the alternative text."""
    pictures: dict[Theme, str] = {}
    finding = ""
    for theme in ("light", "dark"):
        picture = scoreboard_figure(rows, theme=theme)
        finding = picture.finding
        pictures[theme] = "data:image/png;base64," + base64.b64encode(picture.png()).decode()
    return (
        f'<picture><source srcset="{pictures["dark"]}" media="(prefers-color-scheme: dark)">'
        f'<img src="{pictures["light"]}" alt="{html.escape(finding)}"></picture>'
    )


def _notes(compressed: Compressed) -> str:
    items = "".join(
        f"<li>{html.escape(stage.name)}: {html.escape(stage.note)}</li>" for stage in compressed.stages if stage.note
    )
    return f"<ul>{items}</ul>" if items else ""


def _unchanged(row: Measurement) -> str:
    return f"<p>No stage came closer to the budget than the unchanged model, which has {html.escape(accuracy_text(row))}.</p>"
