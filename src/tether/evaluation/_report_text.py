"""The words of the report: captions, legends, terms, and how its numbers are written."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tether.evaluation._svg import PALETTE
from tether.evaluation.alpha import AlphaChoice
from tether.evaluation.figures import CROWD, marks, styles
from tether.evaluation.results import Method, Results
from tether.evaluation.tables import count

_MEANINGS = {
    "top1": "Share of pictures whose first answer is right.",
    "recall": "Share of captions that find their picture first, and of pictures that find a caption of theirs "
    "first; the mean of both.",
    "miou": "Of each class the pixels that are of it and are answered so, out of all that are either (intersection "
    "over union), over all pictures together; the mean over the classes that occur.",
}

_SHAPES = {
    "o": '<circle cx="11" cy="7" r="4.5"/>',
    "s": '<rect x="7" y="3" width="8" height="8"/>',
    "^": '<path d="M11 2 L16 11.5 L6 11.5 Z"/>',
    "D": '<path d="M11 1.5 L16.5 7 L11 12.5 L5.5 7 Z"/>',
    "v": '<path d="M11 12 L16 2.5 L6 2.5 Z"/>',
    "P": '<path d="M9 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "line": "",
    "dash": "",
}


def percent(value: float) -> str:
    """A fraction in percent with one decimal."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def key_methods(results: Results, most: int = 4) -> list[str]:
    """The methods that a crowded figure shows: zero-shot, the highlighted one, then the others in order."""
    names = [method.name for method in results.methods]
    first = [name for name in (results.zero_shot, results.highlighted) if name]
    chosen = list(dict.fromkeys(first + names))[:most]
    return [name for name in names if name in chosen]


def robustness_caption(results: Results) -> str:
    """What the scatter plot shows, and each method's effective robustness where there is a baseline."""
    text = (
        "<p>Each point is a method: further right is better on pictures like those it was tuned on, further "
        "up is better on pictures that look different. The crossed bars are 95&nbsp;% intervals"
        f"{' of the two main methods' if len(results.methods) > CROWD else ''}. On the dotted line both are "
        "equal.</p><p>Lines lead from the zero-shot model to what tuning made of it; one with small dots "
        "passes the models between, at other alphas.</p><p>The axes are logit-scaled: on them, ordinary "
        "models lie near a straight line.</p>"
    )
    line = results.baseline_line()
    if line is None:
        return text
    rows = []
    for method in results.methods:
        if found := results.effective_robustness(method):
            value, ends = found
            rows.append(
                f"<tr><td>{escape(method.name)}</td><td>{points(value)}</td>"
                f"<td>{points(ends.low)} to {points(ends.high)}</td></tr>"
            )
    ordinary = escape(", ".join(point.name for point in results.baseline))
    return (
        f"{text}<p>Here that line goes through {line.points} ordinary models (crosses: {ordinary}); the grey "
        "band is its 95 % interval. Height above it is <em>effective robustness</em> (Taori et al. 2020): accuracy on "
        "shifted pictures beyond what accuracy on ordinary ones "
        "explains.</p><table><thead><tr><th>method</th><th>points</th><th>95 % "
        f"interval</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def alpha_caption(choice: AlphaChoice, method: Method | None) -> str:
    """What the curve shows and what was not used."""
    altered = [point for point in choice.curve if point.simulated]
    text = (
        f"Alpha weighs what was learned against the zero-shot model. It was chosen on {choice.pictures:,} "
        f"validation pictures{' and altered copies of them' if altered else ''}, never on a test set."
    )
    if altered and len(altered) < len(choice.curve):
        text += " The copies were looked at only where they decide."
    if any(isinstance(point.alpha, Mapping) for point in choice.curve):
        return f"{text} Each cell is one pair of alphas; the framed one was chosen."
    text += " The vertical line is the choice"
    if not all(point.allowed for point in choice.curve):
        text += "; in the shaded range validation accuracy is as good as the best, within the stated bound"
    text += "."
    if method and method.path:
        text += " The dashed lines are the test sets, drawn afterwards to see how good the choice was."
    return text


def domains_caption(results: Results) -> str:
    """What the bars show, and which methods were left out of them."""
    left_out = len(results.methods) - len(key_methods(results))
    more = f" The table has {count(left_out, 'further method')}." if left_out > 0 else ""
    return f"Share of right answers on each test set, with 95&nbsp;% intervals over pictures.{more}"


def legend(results: Results, only: Sequence[str] | None = None) -> str:
    """Colour, shape and name of every method in a figure."""
    looks, shared = styles(results), marks(results)
    names = [method.name for method in results.methods if only is None or method.name in only]
    groups = dict.fromkeys(tuple(name for name in shared[name] if name in names) for name in names)
    return _legend(
        (looks[group[0]][0], "s" if only is not None else looks[group[0]][1], " = ".join(group))
        for group in groups
    )


def alpha_legend(choice: AlphaChoice, method: Method | None) -> str:
    """Names of the lines along alpha."""
    if any(isinstance(point.alpha, Mapping) for point in choice.curve):
        return ""
    entries = [(PALETTE[0], "o", "validation")]
    if shifts := max(len(point.simulated) for point in choice.curve):
        entries.append((PALETTE[1], "s", f"mean of {shifts} simulated shifts of it"))
    if method and method.path:
        entries += [
            (PALETTE[0], "dash", "in-distribution test"),
            (PALETTE[3], "dash", "mean of shifted tests"),
        ]
    return _legend(entries)


def changes_text(results: Results) -> str:
    """Whose answers are compared with whose."""
    after, before = (
        escape(results.highlighted or "the method"),
        escape(results.zero_shot or "the zero-shot model"),
    )
    return (
        f"<p>Answers of {after}, compared with {before}. The pictures shown are those answered with most "
        "confidence, of varied classes.</p>"
    )


def terms(results: Results) -> str:
    """What the words on this page mean."""
    entries = {
        "zero-shot": "The model as pre-trained; it compares the picture with the class names in words.",
        "in-distribution": "Test pictures that look like the training pictures. None of them was trained on.",
        "shifted": "Test pictures of the same classes that look different: other artists, media, places.",
        "alpha": "Weights = zero-shot + alpha · (fine-tuned − zero-shot): 0 is the zero-shot model.",
        "simulated shift": "A validation picture, altered: greyscale, other hues, drawn as lines, and so on.",
        "95 % interval": "A range that contains the true value for 95 % of test sets of this size and kind.",
        results.metrics[0].title: _MEANINGS.get(results.metrics[0].name, "The first metric of the task."),
    }
    if results.of_kind("other classes"):
        entries["other classes"] = (
            "Test pictures of classes that nothing was trained on, told apart by their names; not part of the mean "
            "over shifted domains."
        )
    if results.of_kind("corruption"):
        entries["corruption"] = (
            "In-distribution test pictures with noise, blur, weather or digital damage; not part of the mean "
            "over shifted domains."
        )
    if any(method.tuning for method in results.methods):
        entries["trial"] = "A training run with one setting of a method, judged on validation pictures only."
    return definitions(entries)


def definitions(entries: Mapping[str, str]) -> str:
    """A list of terms, each with what it means or is."""
    items = (f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in entries.items())
    return f"<dl>{''.join(items)}</dl>"


def _legend(entries: Iterable[tuple[str, str, str]]) -> str:
    items = []
    for colour, shape, name in entries:
        dash = ' stroke-dasharray="4 3"' if shape == "dash" else ""
        mark = _SHAPES[shape] or f'<path d="M1 7 H21" stroke-width="2" fill="none" stroke="{colour}"{dash}/>'
        items.append(
            f'<li><svg viewBox="0 0 22 14" fill="{colour}" aria-hidden="true">{mark}</svg>{escape(name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'
