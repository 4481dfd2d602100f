"""The figures of the report: accuracy here and elsewhere, along alpha, and per domain."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tether._alpha import alpha_of
from tether.evaluation._svg import GREY, INK, MARKERS, PALETTE, drawing, logit_array, sigmoid_array, svg
from tether.evaluation.alpha import AlphaChoice, AlphaPoint
from tether.evaluation.effective_robustness import BaselineLine, inside, logit, sigmoid
from tether.evaluation.results import Method, Results

CROWD = 8
"""With more methods than this, only the zero-shot and the highlighted one get intervals in the scatter plot."""


def styles(results: Results) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method: grey for zero-shot, the first hue for the highlighted one.

    Methods that are identical have one mark.
    """
    order = sorted(results.methods, key=lambda method: method.name != results.highlighted)
    others = [method.name for method in order if method.name != results.zero_shot]
    looks = {
        name: (PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)])
        for i, name in enumerate(others)
    }
    looks |= {results.zero_shot: (GREY, "o")} if results.zero_shot else {}
    return {name: looks[names[0]] for name, names in marks(results).items()}


def marks(results: Results) -> dict[str, tuple[str, ...]]:
    """For each method those that share its mark, as they are identical; the one that decides how it looks first."""
    shared = {method.name: (method.name,) for method in results.methods}
    for names in results.identical():
        first = next((name for name in names if name in (results.zero_shot, results.highlighted)), names[0])
        order = (first, *(name for name in names if name != first))
        shared |= dict.fromkeys(names, order)
    return shared


def robustness_figure(results: Results, *, names: bool = False) -> str | None:
    """In-distribution accuracy against the mean over shifted domains; None if no method has both.

    Args:
        names: say beside the axes which mark is which method, for a figure that stands alone.
    """
    placed = [place for method in results.methods if (place := _place(results, method))]
    if not placed:
        return None
    size = (7.8, max(4.4, 0.17 * len(placed) + 0.5)) if names else (5.4, 4.4)
    with drawing(*size) as (figure, axes):
        points = [
            (x + side * across[i][0], y + side * up[i][0])
            for _, x, y, across, up in placed
            for i, side in ((0, -1), (1, 1))
        ]
        points += [(p.in_distribution, p.shifted_mean) for p in results.baseline]
        points += [(p.in_distribution, p.shifted_mean) for m in results.methods for p in m.path]
        points = [_inside(*point) for point in points]
        x_limits, y_limits = _limits([x for x, _ in points]), _limits([y for _, y in points])
        draw_effective_robustness(axes, results, x_limits, y_limits)
        looks = styles(results)
        crowded = len(placed) > CROWD
        zero_shot = next(((x, y) for m, x, y, _, _ in placed if m.name == results.zero_shot), None)
        for method, x, y, across, up in placed:
            colour, marker = looks[method.name]
            strong = method.name in (results.highlighted, results.zero_shot)
            if crowded and not strong:
                across = up = None
            if method.path:
                path = [_inside(p.in_distribution, p.shifted_mean) for p in method.path]
                axes.plot(*zip(*path, strict=True), color=colour, marker=".", markersize=4, linewidth=1.3)
            elif zero_shot and method.name != results.zero_shot and not crowded:
                axes.plot(
                    *zip(zero_shot, (x, y), strict=True), color=colour, linewidth=0.9, linestyle=(0, (4, 3))
                )
            axes.errorbar(
                x,
                y,
                xerr=across,
                yerr=up,
                fmt=marker,
                color=colour,
                markersize=9 if strong else 7,
                markeredgecolor=INK if strong else colour,
                elinewidth=0.9,
                alpha=0.95,
                zorder=3,
            )
        axes.set_xlabel("in-distribution accuracy (%)")
        axes.set_ylabel("mean accuracy on shifted domains (%)")
        if names:
            shared = list(dict.fromkeys(marks(results)[method.name] for method, *_ in placed))
            handles = [
                Line2D([], [], color=looks[first][0], marker=looks[first][1], linestyle="")
                for first, *_ in shared
            ]
            labels = [" = ".join(_short(name, 40) for name in names) for names in shared]
            if results.baseline_line():
                handles += [Line2D([], [], color=INK, alpha=0.6, marker="x")]
                labels += ["ordinary models, 95 % interval"]
            figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        return svg(figure, "robustness")


def draw_effective_robustness(
    axes: Axes, results: Results, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> BaselineLine | None:
    """Set logit axes and draw what methods are compared with: y = x, and the baseline's line with its
    interval.

    Returns the fitted line, or None where there are fewer than three baseline models.
    """
    for axis, scale, limits in (
        (axes.xaxis, axes.set_xscale, x_limits),
        (axes.yaxis, axes.set_yscale, y_limits),
    ):
        scale("function", functions=(logit_array, sigmoid_array))
        axis.set_major_locator(FixedLocator(_ticks(*limits)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_xlim(*x_limits)
    axes.set_ylim(*y_limits)
    low, high = max(x_limits[0], y_limits[0]), min(x_limits[1], y_limits[1])
    if low < high:
        axes.plot([low, high], [low, high], color=INK, alpha=0.35, linewidth=1, linestyle=":")
    line = results.baseline_line()
    if line:
        grid = [
            sigmoid(logit(x_limits[0]) + i / 60 * (logit(x_limits[1]) - logit(x_limits[0])))
            for i in range(61)
        ]
        ends = [line.interval(x) for x in grid]
        low_ends, high_ends = [end.low for end in ends], [end.high for end in ends]
        axes.fill_between(grid, low_ends, high_ends, color=INK, alpha=0.08, linewidth=0)
        axes.plot(grid, [line.predict(x) for x in grid], color=INK, alpha=0.6, linewidth=1)
    for point in results.baseline:
        axes.plot(
            *_inside(point.in_distribution, point.shifted_mean), "x", color=INK, alpha=0.6, markersize=5
        )
    return line


def alpha_figure(choice: AlphaChoice, method: Method | None) -> str | None:
    """Validation and simulated-shift accuracy along alpha (or over the grid of two alphas), the choice
    marked.
    """
    if any(isinstance(point.alpha, Mapping) for point in choice.curve):
        return _alpha_grid(choice)
    curve = sorted(choice.curve, key=lambda point: point.alpha)
    if len(curve) < 2:
        return None
    with drawing(5.4, 4.0) as (figure, axes):
        alphas = [point.alpha for point in curve]
        for first, second in itertools.pairwise(curve):
            if first.allowed and second.allowed and not all(point.allowed for point in curve):
                axes.axvspan(first.alpha, second.alpha, color=PALETTE[2], alpha=0.13, linewidth=0)
        axes.axvline(choice.alpha, color=INK, alpha=0.7, linewidth=1)
        axes.annotate(
            f"chosen: {choice.alpha:g}",
            (choice.alpha, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=9,
        )
        values = [100 * point.in_distribution for point in curve]
        axes.plot(alphas, values, color=PALETTE[0], marker="o", markersize=4)
        if any(point.simulated for point in curve):
            values = [100 * _simulated(point) for point in curve]
            axes.plot(alphas, values, color=PALETTE[1], marker="s", markersize=4)
        path = sorted(method.path, key=lambda point: point.alpha) if method and _plain(method) else []
        for attribute, colour in (("in_distribution", PALETTE[0]), ("shifted_mean", PALETTE[3])):
            values = [100 * getattr(point, attribute) for point in path]
            axes.plot(
                [point.alpha for point in path], values, color=colour, linewidth=1, linestyle=(0, (4, 3))
            )
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_xlabel("alpha  (0 = zero-shot, 1 = fine-tuned)")
        axes.set_ylabel("accuracy (%)")
        return svg(figure, "alpha")


def domains_figure(results: Results, shown: Sequence[str]) -> str | None:
    """Accuracy of a few methods on every domain that is not a corruption, with 95 % intervals."""
    domains = results.shown
    methods = [method for method in results.methods if method.name in shown]
    if not domains or not any(method.measures for method in methods):
        return None
    thickness = 0.8 / len(methods)
    with drawing(5.4, 0.7 + len(domains) * (0.16 + 0.17 * len(methods))) as (figure, axes):
        looks = styles(results)
        ends: list[float] = []
        for row, method in enumerate(methods):
            places = [i for i, domain in enumerate(domains) if domain.name in method.measures]
            measures = [method.measures[domains[i].name] for i in places]
            values = [100 * measure.mean for measure in measures]
            bars = [
                [max(0.0, 100 * (measure.mean - measure.interval.low)) for measure in measures],
                [max(0.0, 100 * (measure.interval.high - measure.mean)) for measure in measures],
            ]
            ends += [measure.interval.high for measure in measures]
            axes.barh(
                [i - 0.4 + thickness * (row + 0.5) for i in places],
                values,
                thickness * 0.88,
                xerr=bars,
                color=looks[method.name][0],
                error_kw={"ecolor": INK, "elinewidth": 0.9, "alpha": 0.75},
            )
        axes.set_yticks(range(len(domains)), [_short(domain.name) for domain in domains])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, min(100, 10 * math.ceil(10 * max(ends) + 0.2)))
        axes.set_xlabel("accuracy (%)")
        return svg(figure, "domains")


def _alpha_grid(choice: AlphaChoice) -> str:
    """Two maps over (image, text): validation accuracy and the mean over simulated shifts."""
    images = sorted({alpha_of(point.alpha, "image") for point in choice.curve})
    texts = sorted({alpha_of(point.alpha, "text") for point in choice.curve})
    shown = [("validation", lambda point: point.in_distribution)]
    if any(point.simulated for point in choice.curve):
        shown.append(("simulated shifts", _simulated))
    with drawing(3.4 * len(shown), 3.6, columns=len(shown)) as (figure, axes):
        for panel, (title, value) in zip([axes] if len(shown) == 1 else axes, shown, strict=True):
            panel.grid(False)
            for point in choice.curve:
                _grid_cell(panel, point, value, images, texts, choice)
            panel.set_xticks(range(len(images)), [f"{image:g}" for image in images])
            panel.set_yticks(range(len(texts)), [f"{text:g}" for text in texts])
            panel.set_xlim(-0.5, len(images) - 0.5)
            panel.set_ylim(-0.5, len(texts) - 0.5)
            panel.set_title(f"{title} (%)")
            panel.set_xlabel("alpha of the image tower")
            panel.set_ylabel("alpha of the text tower")
        return svg(figure, "alpha")


def _simulated(point: AlphaPoint) -> float:
    """NaN, which is not drawn, where no simulated shift was evaluated."""
    return math.nan if point.simulated_mean is None else point.simulated_mean


def _grid_cell(
    panel: Axes,
    point: AlphaPoint,
    value: Callable[[AlphaPoint], float],
    images: list,
    texts: list,
    choice: AlphaChoice,
) -> None:
    if math.isnan(value(point)):
        return
    values = [number for other in choice.curve if not math.isnan(number := value(other))]
    share = (value(point) - min(values)) / (max(values) - min(values) or 1)
    x, y = images.index(alpha_of(point.alpha, "image")), texts.index(alpha_of(point.alpha, "text"))
    edge = (
        {"edgecolor": INK, "linewidth": 2, "zorder": 2} if point.alpha == choice.alpha else {"linewidth": 0}
    )
    panel.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=(*to_rgb(PALETTE[0]), 0.1 + 0.6 * share), **edge)
    )
    size = 8 if len(images) <= 6 else 5.5
    panel.text(x, y, f"{100 * value(point):.1f}", ha="center", va="center", fontsize=size, zorder=3)


def _place(results: Results, method: Method) -> tuple | None:
    """The method, its place in the scatter, and the lengths of its error bars."""
    place = results.place(method)
    if place is None:
        return None
    x, y = place
    measure, mean = method.measures[results.of_kind("in-distribution")[0].name], method.shifted_mean
    across = [[max(0.0, x - measure.interval.low)], [max(0.0, measure.interval.high - x)]]
    return method, x, y, across, [[max(0.0, y - mean.low)], [max(0.0, mean.high - y)]]


def _plain(method: Method) -> bool:
    return all(not isinstance(point.alpha, Mapping) for point in method.path)


def _inside(*values: float) -> tuple[float, ...]:
    return tuple(inside(value, 10_000) for value in values)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A little beyond the outermost values, on the logit scale, and never closer than some points."""
    low, high = logit(min(values)), logit(max(values))
    room = 0.12 * (high - low) + 0.12
    return sigmoid(low - room), sigmoid(high + room)


def _ticks(low: float, high: float) -> list[float]:
    """Round percentages between the limits, about six of them."""
    for step in (1, 2, 5, 10, 20):
        inner = [i / 100 for i in range(step, 100, step) if low <= i / 100 <= high]
        if len(inner) <= 8:
            break
    tails = [value for value in (0.001, 0.01, 0.99, 0.999) if low <= value <= high]
    return sorted({*inner, *tails})


def _short(name: str, length: int = 26) -> str:
    printable = "".join(character if character.isprintable() else " " for character in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"
