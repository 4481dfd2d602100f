"""How figures are drawn and turned into text for a page, by matplotlib without its global state.

Text stays text (searchable, read aloud, in the page's font). What is drawn in `INK` takes the colour of the
page's own text, so one figure suits light and dark pages.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"
GREY = "#8a8f98"
# Eight hues that can be told apart on white and on near-black, also by most colour-blind readers.
PALETTE = ("#3b7ddd", "#e07b39", "#2f9e6e", "#a86bd1", "#d9534f", "#22a3b5", "#b08d2e", "#d864a9")
MARKERS = ("o", "s", "^", "D", "v", "P")


@contextmanager
def drawing(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style; its size is in inches of 72 px."""
    style = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.12,
        "grid.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.8,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns)


def svg(figure: Figure, name: str) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # Names may hold any script; the reader's browser has glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures on one page must not share ids.
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor")


def standing_alone(drawing: str) -> str:
    """A figure outside of a page: in the ink of a light one, on white."""
    drawing = drawing.replace("<svg", '<svg color="#1a1d21"', 1)
    return drawing.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)


def logit_array(values: np.ndarray) -> np.ndarray:
    clipped = values.clip(1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid_array(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
