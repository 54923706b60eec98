"""Figures of speed: drawn in both themes, with a title that says what the numbers say."""

from __future__ import annotations

import pytest
import torch

from cookbook.environment import Provenance
from cookbook.errors import UsageError
from cookbook.evidence import Measurement
from cookbook.plots import gradient_figure, stack_figure
from cookbook.speed import SpeedStack


def row(subject: str, speedup: float) -> Measurement:
    origin = Provenance("quick", "cpu", "a processor", (), 1, "3.11.0", {}, None)
    values = {"speedup": speedup, "speedup_low": speedup - 0.1, "speedup_high": speedup + 0.2, "images_per_second": 1.0}
    return Measurement(subject=subject, lesson="02", runtime="torch eager", values=values, provenance=origin)


def made(*changes: tuple[str, float, float]) -> SpeedStack:
    rows = [row("unchanged", 1.0)]
    rows += [row(f"{name} alone", alone) for name, alone, _ in changes] + [row(f"+ {name}", both) for name, _, both in changes]
    return SpeedStack(tuple(rows), {"tf32": "no"}, ("tf32", *(name for name, _, _ in changes)))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_stack_names_its_fastest_and_draws_what_was_measured(theme) -> None:
    picture = stack_figure(made(("resident data", 1.5, 1.5), ("bf16", 0.2, 0.3)), theme=theme)
    assert picture.finding == "On cpu the fastest, 'resident data alone', trains 1.50 times as many images a second"
    axes = picture.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["resident data", "bf16"]
    drawn = [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "None"]
    assert [1.5, 0.2] in drawn and [1.5, 0.3] in drawn
    assert picture.png().startswith(b"\x89PNG")


def test_nothing_measured_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="No change was measured"):
        stack_figure(made())
    with pytest.raises(UsageError, match="no gradient to draw"):
        gradient_figure(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_share_that_rounds_to_zero_is_that_of_the_cast(scale: float) -> None:
    """Against torch's own cast to float16, with values on both sides of the edge at 2**-25."""
    gradients = torch.cat([10 ** torch.linspace(-12, 0, 1001), torch.zeros(7), torch.tensor([2.0**-25, 2.0**-25 * 1.001])])
    present = gradients[gradients != 0]
    lost = (present.half() == 0).float().mean().item()
    finding = gradient_figure(gradients, scale=scale).finding
    assert finding.startswith(f"{lost:.1%} of the gradients round to zero in float16")
    if scale != 1:
        kept = ((scale * present).half() == 0).float().mean().item()
        assert finding.endswith(f"{kept:.1%} of them when the loss is multiplied by 1,024")
    assert gradient_figure(gradients, scale=scale, theme="dark").png().startswith(b"\x89PNG")
