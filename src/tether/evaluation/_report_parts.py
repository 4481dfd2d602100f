"""The pieces of the report: tiles, tables, pictures, as HTML with every text from outside escaped."""

from collections.abc import Sequence
from html import escape

from tether.evaluation._report_text import definitions, percent, points
from tether.evaluation.drawing import Drawn
from tether.evaluation.results import ChangedPicture, Changes, Domain, Found, Method, Results
from tether.evaluation.significance import Estimate, standard_deviation
from tether.evaluation.summary import MEAN_OF_SHIFTED
from tether.evaluation.tables import (
    bytes_text,
    chosen_text,
    corruption_title,
    count,
    count_text,
    explain_cells,
    identical_text,
    p_text,
    seconds_text,
    tuning_text,
)


def summary(results: Results) -> str:
    """What was compared, and the main numbers of the highlighted method."""
    inner, shifted = results.of_kind("in-distribution"), results.of_kind("shifted")
    text = f'<p class="soft">{escape(results.data_set)}</p>'
    text += "".join(f'<p class="warning">{escape(note)}</p>' for note in results.notes)
    if not results.methods:
        return text + '<p class="lead">No method was evaluated yet, so there is nothing to compare.</p>'
    pictures = f"{sum(domain.n for domain in results.domains):,} test pictures"
    shifts = f" and {len(shifted)} that look different" if shifted else ""
    if others := results.of_kind("other classes"):
        shifts += f" and {len(others)} of other classes"
    text += (
        f"<p>{count(len(results.methods), 'method')} compared on {count(len(inner), 'test set')} that "
        f"{'looks' if len(inner) == 1 else 'look'} like the training pictures{shifts}, {pictures} in all.</p>"
    )
    method = results.method(results.highlighted)
    if method is None:
        return text
    text += f'<p class="lead">{_finding(results, method)}</p>'
    tiles = []
    if inner and inner[0].name in method.measures:
        measure = method.measures[inner[0].name]
        tiles.append((f"{percent(measure.mean)} %", f"right on {escape(inner[0].name)} (in-distribution)"))
    if method.shifted_mean:
        tiles.append((f"{percent(method.shifted_mean.value)} %", "right on shifted domains, on average"))
    if method.alpha:
        how, _, value = method.alpha.rpartition(": ")
        chosen = f", chosen {escape(how)}" if how else ""
        tiles.append((escape(value), f"alpha, the weight of what was learned{chosen}"))
    if method.trained_parameters is not None:
        tiles.append((count_text(method.trained_parameters), "parameters trained"))
    if method.file_bytes is not None:
        tiles.append((bytes_text(method.file_bytes), "to store beside the base model"))
    if method.seconds is not None:
        tiles.append((seconds_text(method.seconds), "of training"))
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return text + f'<div class="tiles">{boxes}</div>'


def main_table(results: Results) -> str:
    """Every method on every domain; the best of each column is bold."""
    if not results.methods:
        return ""
    columns: list[tuple[str, list[tuple[float, str] | None]]] = []
    for domain in results.shown:
        cells = [_measure_cell(method, domain.name) for method in results.methods]
        columns.append((f"{escape(domain.name)}<br><small>{domain.kind}</small>", cells))
    if results.of_kind("shifted"):
        cells = [_mean_cell(results, method, method.shifted_mean) for method in results.methods]
        columns.append(("mean<br><small>shifted</small>", cells))
        worst = [results.worst(method) for method in results.methods]
        cells = [w and (w[1], f"{percent(w[1])}<small>{escape(w[0])}</small>") for w in worst]
        columns.append(("worst<br><small>shifted</small>", cells))
    if results.of_kind("corruption"):
        means = [results.mean_over(method, "corruption") for method in results.methods]
        cells = [m and (sum(m) / len(m), f"{percent(sum(m) / len(m))}{_spread(m)}") for m in means]
        columns.append((f"{escape(corruption_title(results))}<br><small>corruptions</small>", cells))
    head = "".join(f"<th>{title}</th>" for title, _ in columns)
    best = [max((cell[0] for cell in cells if cell), default=None) for _, cells in columns]
    rows = []
    for i, method in enumerate(results.methods):
        row = "".join(
            f'<td class="best">{cells[i][1]}</td>'
            if cells[i] and cells[i][0] == top and len(results.methods) > 1
            else f"<td>{cells[i][1] if cells[i] else '–'}</td>"
            for (_, cells), top in zip(columns, best, strict=True)
        )
        mark = ' class="main"' if method.name == results.highlighted else ""
        rows.append(f"<tr{mark}><td>{escape(method.name)}</td>{row}</tr>")
    about = escape(" ".join([*identical_text(results), explain_cells(results)]))
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{about} The small range is a 95&nbsp;% interval: what other '
        "pictures of the same kind might have given. The best of each column is bold, which alone does not "
        "mean that it is better than the second; see the differences below.</p>"
    )


def costs_table(results: Results) -> str:
    """What was done in each method, and what it took."""
    if not results.methods:
        return ""
    rows = []
    for method in results.methods:
        mark = ' class="main"' if method.name == results.highlighted else ""
        about = f"<small>{escape(method.description)}</small>" if method.description else ""
        cells = (
            str(len(method.seeds)),
            escape(method.alpha) or "–",
            count_text(method.trained_parameters),
            bytes_text(method.file_bytes),
            "–" if method.steps is None else f"{method.steps:,}",
            seconds_text(method.seconds),
            bytes_text(method.peak_memory_bytes),
        )
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr{mark}><td>{escape(method.name)}{about}</td>{row}</tr>")
    titles = (
        "method",
        "runs",
        "alpha",
        "parameters trained",
        "file",
        "steps",
        "training time",
        "peak memory",
    )
    head = "".join(f"<th>{title}</th>" for title in titles)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">File is what has to be stored beside the base model. Steps and time are per run.</p>'
    )


def tuning_tables(results: Results) -> str:
    """Per method what its search cost, which settings it chose, and every trial."""
    tuned = [method for method in results.methods if method.tuning]
    if not tuned:
        return ""
    text = ""
    for method in tuned:
        tuning = method.tuning
        names = list(tuning.chosen)
        head = "".join(f"<th>{escape(title)}</th>" for title in (*names, "validation"))
        rows = []
        for trial in tuning.trials:
            level = "diverged" if trial.validation is None else percent(trial.validation)
            row = "".join(f"<td>{escape(trial.values[name])}</td>" for name in names)
            mark = ' class="main"' if trial.values == tuning.chosen else ""
            rows.append(f"<tr{mark}>{row}<td>{level}</td></tr>")
        some = f" of {tuning.points} settings" if tuning.points > len(tuning.trials) else ""
        text += (
            f"<details><summary>{escape(method.name)}: {escape(chosen_text(method))} "
            f'<span class="soft">({tuning_text(method)}{some})</span></summary><div class="scroll"><table '
            f'class="words"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
        )
    budget = count(tuned[0].tuning.budget, "trial")
    return (
        f"<p>Every method was allowed the same {budget}. A trial is a whole training run that is judged by "
        f"{results.metrics[0].title} on validation pictures; no test picture was looked at. The best trial gives the "
        "settings of all runs above; of equally good ones, that with the smaller learning rate.</p>" + text
    )


def differences_table(results: Results) -> str:
    """Paired differences to the reference, with intervals and corrected p-values."""
    if not results.differences:
        return ""
    rows = []
    for difference in results.differences:
        estimate = difference.estimate
        sure = difference.adjusted_p_value < 0.05
        kind = ("good" if estimate.value > 0 else "bad") if sure else "soft"
        verdict = ("better" if estimate.value > 0 else "worse") if sure else "not distinguishable"
        cells = (difference.method, difference.reference, difference.where)
        rows.append(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}<td>{points(estimate.value)}</td>"
            f"<td>{points(estimate.low)} to {points(estimate.high)}</td>"
            f"<td>{escape(p_text(difference.adjusted_p_value))}</td>"
            f'<td class="{kind}">{verdict}</td></tr>'
        )
    head = "".join(
        f"<th>{title}</th>"
        for title in ("method", "against", "on", "points", "95 % interval", "p", "verdict")
    )
    return (
        f'<div class="scroll"><table '
        f'class="words"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '</div><p class="note">Both methods answered the same pictures, so they are compared picture by '
        "picture: a bootstrap over what the pictures show (the same thing in several domains counts once) "
        "and over seeds. p is corrected for the number of methods compared (Holm); a verdict needs p below "
        "0.05.</p>"
    )


def changes_head(changes: Changes) -> str:
    """Name of a domain, how many answers changed, and a bar of both directions."""
    total = changes.wrong_to_right + changes.right_to_wrong
    net = (changes.wrong_to_right - changes.right_to_wrong) / changes.n
    up = 100 * changes.wrong_to_right / total if total else 0
    bar = (
        f'<div class="flow"><i class="up" style="width:{up:.1f}%"></i>'
        f'<i class="down" style="width:{100 - up:.1f}%"></i></div>'
    )
    return (
        f"<h3>{escape(changes.domain)}</h3>{bar if total else ''}"
        f'<p>Of {changes.n:,} pictures <span class="good">{changes.wrong_to_right} turned right</span> and '
        f'<span class="bad">{changes.right_to_wrong} turned wrong</span>: {points(net)} points.</p>'
    )


def drawings(results: Results, drawn: Sequence[Drawn]) -> str:
    """Rows of a picture, its truth and the highlighted method's answer, domain by domain."""
    if not drawn:
        return ""
    text = (
        f"<p>From left to right: a test picture, the truth, and the answer of {escape(results.highlighted)}, its first "
        "run at the chosen alpha. The pictures were taken at equal distances in the test, before anybody saw an "
        "answer.</p>"
    )
    for domain in dict.fromkeys(one.domain for one in drawn):
        cards = "".join(_drawing_card(one) for one in drawn if one.domain == domain)
        text += f'<h3>{escape(domain)}</h3><div class="drawings">{cards}</div>'
    return text


def _drawing_card(drawn: Drawn) -> str:
    images = "".join(
        f'<img src="{escape(address)}" alt="{what} of {escape(drawn.identity)}" loading="lazy">'
        for what, address in (("picture", drawn.picture), ("truth", drawn.truth), ("answer", drawn.answer))
    )
    legend = " ".join(
        f'<span><i style="background:{escape(colour)}"></i>{escape(name)}</span>'
        for name, colour in drawn.legend
    )
    return f'<div class="drawing" title="{escape(drawn.identity)}">{images}<div>{legend}</div></div>'


def found_card(found: Found, address: str | None) -> str:
    """One picture that came up for a caption; the right one is marked."""
    image = (
        f'<img src="{escape(address)}" alt="{escape(found.identity)}" loading="lazy">'
        if address
        else f'<span class="missing">{escape(found.identity)}</span>'
    )
    mark = '<span class="good">right</span>' if found.right else ""
    look = " right" if found.right else ""
    return (
        f'<div class="picture{look}" title="{escape(found.identity)}">{image}'
        f"<div>{escape(found.identity)}<br>{mark}</div></div>"
    )


def picture_card(picture: ChangedPicture, domain: str, address: str | None, *, gained: bool) -> str:
    """One picture with its true class and both answers; `gained` says that the second is the right one."""
    image = (
        f'<img src="{escape(address)}" alt="{escape(picture.identity)}" loading="lazy" '
        f'data-picture="{escape(domain)}/{picture.index}">'
        if address
        else f'<span class="missing">{escape(picture.identity)}</span>'
    )
    lines = "".join(
        f'<span class="soft">{when}</span> <span class="{"good" if right else "bad"}">'
        f'{escape(answer)}</span> <span class="soft">{100 * confidence:.0f}&nbsp;%</span><br>'
        for when, answer, confidence, right in (
            ("before:", picture.before, picture.confidence_before, not gained),
            ("now:", picture.after, picture.confidence_after, gained),
        )
    )
    return (
        f'<div class="picture" title="{escape(picture.identity)}">{image}'
        f"<div><strong>{escape(picture.truth)}</strong>{lines}</div></div>"
    )


def how_made(results: Results) -> str:
    """Test sets, settings, prompts and versions."""
    text = ""
    if results.domains:
        rows = "".join(_domain_row(domain) for domain in results.domains)
        head = "".join(
            f"<th>{title}</th>" for title in ("test set", "kind", "pictures", "classes", "scored", "SHA-256")
        )
        table = (
            f'<div class="scroll"><table class="words"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
        many = len(results.domains) > 12
        text += (
            f"<details><summary>{len(results.domains)} test sets</summary>{table}</details>"
            if many
            else table
        )
    if results.settings:
        text += definitions(results.settings)
    if results.templates:
        items = "".join(f"<li><code>{escape(template)}</code></li>" for template in results.templates)
        text += (
            f"<details><summary>{count(len(results.templates), 'prompt template')}</summary><p>The "
            "classifier is the mean text feature of these sentences with the class name put "
            f"in.</p><ul>{items}</ul></details>"
        )
    if results.versions:
        words = ", ".join(f"{escape(name)} {escape(number)}" for name, number in results.versions.items())
        text += f'<p class="note">Versions: {words}.</p>'
    return text


def _finding(results: Results, method: Method) -> str:
    """One sentence of numbers: the highlighted method against the zero-shot model and the other methods'
    best.
    """
    inner = results.of_kind("in-distribution")
    name = escape(method.name)
    zero_shot = results.method(results.zero_shot)
    known = inner and inner[0].name in method.measures
    if not known or zero_shot is None or inner[0].name not in zero_shot.measures or zero_shot is method:
        return f"This page is about {name}."
    gain = method.measures[inner[0].name].mean - zero_shot.measures[inner[0].name].mean
    text = f"Against the zero-shot model, {name} changes accuracy by {points(gain)} points in-distribution"
    means = {
        one.reference: one.estimate
        for one in results.differences
        if one.method == method.name and one.where == MEAN_OF_SHIFTED
    }
    if method.shifted_mean and zero_shot.shifted_mean:
        change = method.shifted_mean.value - zero_shot.shifted_mean.value
        text += f" and by {points(change)} points on average over shifted domains"
        if estimate := means.pop(results.zero_shot, None):
            text += f" ({_interval(estimate)})"
    text += "."
    for reference, estimate in means.items():
        against = f" Against {escape(reference)} it is {points(estimate.value)} points on shifted domains"
        text += f"{against} ({_interval(estimate)})."
    return text


def _interval(estimate: Estimate) -> str:
    return f"95&nbsp;% interval {points(estimate.low)} to {points(estimate.high)}"


def _measure_cell(method: Method, domain: str) -> tuple[float, str] | None:
    measure = method.measures.get(domain)
    if measure is None:
        return None
    ends = f"{percent(measure.interval.low)}–{percent(measure.interval.high)}"
    return measure.mean, f"{percent(measure.mean)}{_spread(measure.first)}<small>{ends}</small>"


def _mean_cell(results: Results, method: Method, mean: Estimate | None) -> tuple[float, str] | None:
    if mean is None:
        return None
    spread = _spread(results.mean_over(method, "shifted"))
    ends = f"{percent(mean.low)}–{percent(mean.high)}"
    return mean.value, f"{percent(mean.value)}{spread}<small>{ends}</small>"


def _spread(values: Sequence[float]) -> str:
    return f" ±{percent(standard_deviation(values))}" if len(values) > 1 else ""


def _domain_row(domain: Domain) -> str:
    return (
        f"<tr><td>{escape(domain.name)}</td><td>{domain.kind}</td><td>{domain.n:,}</td>"
        f"<td>{domain.classes:,}</td>"
        f'<td>{escape(domain.convention)}</td><td title="{escape(domain.digest)}"><code>'
        f"{escape(domain.digest[:12])}</code></td></tr>"
    )
