"""One style for every figure, and a figure that shows itself once in JupyterLab (lesson 00)."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cookbook.errors import UsageError

Theme = Literal["light", "dark"]

# Okabe and Ito, Color Universal Design (2008), without yellow and black, which vanish on one of the two grounds
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = {"light": "#222222", "dark": "#E6E6E6"}
GROUND = {"light": "#FFFFFF", "dark": "#16181D"}
GRID = {"light": "#DDDDDD", "dark": "#3A3D45"}
SIZE = (9.0, 5.2)  # inches
DOTS_PER_INCH = 110


def style(theme: Theme = "light") -> dict[Any, Any]:
    """Return matplotlib's settings for the course's figures, for `matplotlib.rc_context`.

    Each series gets its own colour and its own marker, so that no figure rests on colour alone.

    Raises:
        UsageError: there is no such theme.
    """
    if theme not in INK:
        raise UsageError(f"The theme is {theme!r}: use 'light' or 'dark'.")
    ink, ground = INK[theme], GROUND[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    return {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), ground),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.prop_cycle": cycler(color=OKABE_ITO) + cycler(marker=MARKERS[: len(OKABE_ITO)]),
        "figure.dpi": DOTS_PER_INCH,
        "figure.figsize": SIZE,
        "font.size": 10,
        "grid.color": GRID[theme],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }


class Picture(Figure):
    """A figure with the sentence that states what it shows; JupyterLab displays it once, with that sentence as its text.

    Attributes:
        finding: the sentence.
    """

    finding: str = ""

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the figure as Jupyter displays it; a printer of figures that matplotlib registers replaces the PNG."""
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.finding or repr(self)}
        return data, {"image/png": {"alt": self.finding}}


def new_picture(finding: str, *, theme: Theme = "light", size: tuple[float, float] = SIZE) -> tuple[Picture, Axes]:
    """Return an empty picture in the course's style, titled with its finding, and its axes.

    Args:
        finding: one sentence, computed from what is drawn.
        theme: ``light`` or ``dark``.
        size: width and height in inches.
    """
    with matplotlib.rc_context(style(theme)):
        picture = Picture(figsize=size, layout="constrained")
        FigureCanvasAgg(picture)
        axes = picture.add_subplot()
        axes.set_title(finding.replace(" ms", "\N{NO-BREAK SPACE}ms"), wrap=True, parse_math=False)
    picture.finding = finding
    return picture, axes
