"""The picture of a comparison on several data sets: every method in distribution and under shift, by its name."""

from collections.abc import Collection, Sequence

from tether._text import printable
from tether.evaluation._svg import GREY, INK, PALETTE, drawing, standing_alone, svg
from tether.evaluation.overall import PLACES, Row

_WIDTH, _HEIGHT = 7.6, 4.6
_LINE = 0.043
"""Height of a label, in heights of the axes."""
_LETTER = 0.0125
"""Width of a letter, in widths of the axes."""


def overall_figure(
    rows: Sequence[Row], reference: str, highlighted: str = "", zero_shot: Collection[str] = ()
) -> str:
    """Accuracy in distribution (across) against the mean over shifts (up), an SVG that stands alone, on white.

    Two lines go through the reference: what lies above and right of them is better in both.

    Args:
        zero_shot: rows of models as they were loaded, in grey.
    """
    places = {row.method: tuple(100 * row.values[place] for place in PLACES) for row in rows}
    low, high = zip(*(_limits([place[axis] for place in places.values()]) for axis in (0, 1)), strict=True)
    with drawing(_WIDTH, _HEIGHT) as (figure, axes):
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        across, up = places[reference]
        axes.axvline(across, color=INK, alpha=0.35, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.axhline(up, color=INK, alpha=0.35, linewidth=0.9, linestyle=(0, (4, 3)))
        inside = {
            name: tuple((place[axis] - low[axis]) / (high[axis] - low[axis]) for axis in (0, 1))
            for name, place in places.items()
        }
        for name, (x, y) in label_places(inside).items():
            strong = name == highlighted
            colour = GREY if name in zero_shot else PALETTE[0] if strong else PALETTE[1]
            axes.plot(
                *places[name],
                "o",
                color=colour,
                markersize=10 if strong else 7,
                markeredgecolor=INK if strong else colour,
                zorder=3,
            )
            axes.annotate(
                printable(name),
                places[name],
                xytext=(x, y),
                textcoords="axes fraction",
                va="center",
                fontsize=9,
                fontweight="bold" if strong else "normal",
                arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.3, "linewidth": 0.6, "shrinkB": 3},
            )
        axes.set_xlabel("in distribution (%)")
        axes.set_ylabel("mean of the shifts (%)")
        return standing_alone(svg(figure, "overall"))


def label_places(points: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Where labels begin, in shares of the axes, so that none lies on another or on a point.

    They are right of their points, or left of them where the axes end, and moved up as far as is needed.
    """
    taken = [(x - 0.012, y, 0.024) for x, y in points.values()]
    places = {}
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        width = _LETTER * len(name)
        start = x + 0.02 if x + 0.02 + width <= 1 else x - 0.02 - width
        while any(
            start < other + long and other < start + width and abs(y - height) < _LINE
            for other, height, long in taken
        ):
            y += _LINE / 4
        taken.append((start, y, width))
        places[name] = (start, y)
    return places


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A little beyond the outermost values, two points apart at least."""
    room = max(0.12 * (max(values) - min(values)), 1.0)
    return min(values) - room, max(values) + room
