"""Results as a table: for a terminal, for Markdown, for a spreadsheet."""

import csv
import io
from collections.abc import Iterator, Sequence

from rich.table import Table

from tether._text import cell
from tether.evaluation.results import Domain, Method, Results
from tether.evaluation.scores import SplitScores
from tether.evaluation.significance import standard_deviation


def to_terminal(results: Results) -> Table:
    """The main table for `rich`, in percent, with the standard deviation over seeds if there are several."""
    header, *rows = _cells(results)
    table = Table(title=cell(results.title), title_justify="left")
    for i, title in enumerate(header):
        table.add_column(cell(title), justify="left" if i == 0 else "right", no_wrap=True)
    for method, row in zip(results.methods, rows, strict=True):
        style = "bold" if method.name == results.highlighted else ""
        table.add_row(*map(cell, row), style=style)
    return table


def to_markdown(results: Results) -> str:
    """The main table in Markdown, what its numbers are, and which differences are more than chance."""
    robust = " Effective robustness: points above the line through ordinary models, with that line's 95 % interval."
    about = explain_cells(results) + (robust if results.baseline_line() else "")
    notes = [*identical_text(results), *results.notes]
    blocks = [markdown_table(*_cells(results)), about, *map(_markdown_text, notes)]
    if results.differences:
        reference = results.differences[0].reference
        title = f"Points of {results.metrics[0].title} more (+) or less (−) than {_markdown_text(reference)}"
        blocks += [f"{title}, {EXPLAIN_DIFFERENCES}", markdown_table(*_difference_cells(results))]
    return "\n\n".join(blocks) + "\n"


EXPLAIN_DIFFERENCES = (
    "with 95 % intervals from a bootstrap over what the pictures show and over seeds, paired by picture; p is "
    "corrected for the number of methods (Holm)."
)


def to_csv(results: Results) -> str:
    """One line per method with every number, as fractions; empty where something was not measured.

    For each domain: mean over seeds, its 95 % interval over pictures, standard deviation over seeds.
    """
    kinds = [kind for kind in ("shifted", "corruption") if results.of_kind(kind)]
    header = ["method", "alpha", "seeds"]
    for domain in results.domains:
        header += [f"{domain.name}{part}" for part in ("", " low", " high", " sd")]
    for kind in kinds:
        header += [f"mean {kind}", f"mean {kind} sd"]
    header += ["mean shifted low", "mean shifted high", "worst shifted"]
    header += [f"effective robustness{part}" for part in ("", " low", " high")]
    header += ["trained_parameters", "file_bytes", "steps", "seconds", "peak_memory_bytes"]
    header += ["tuning_budget", "tuning_trials", "tuning_steps", "chosen"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(spreadsheet_text, header))
    for method in results.methods:
        row: list[object] = [
            spreadsheet_text(method.name),
            spreadsheet_text(method.alpha),
            len(method.seeds),
        ]
        for domain in results.domains:
            measure = method.measures.get(domain.name)
            row += (
                [measure.mean, measure.interval.low, measure.interval.high, measure.spread]
                if measure
                else [None] * 4
            )
        for kind in kinds:
            means = results.mean_over(method, kind)
            row += [sum(means) / len(means), standard_deviation(means)] if means else [None] * 2
        worst = results.worst(method)
        row += [method.shifted_mean.low, method.shifted_mean.high] if method.shifted_mean else [None] * 2
        row += [worst[1] if worst else None]
        robust = results.effective_robustness(method)
        row += [robust[0], robust[1].low, robust[1].high] if robust else [None] * 3
        row += [method.trained_parameters, method.file_bytes]
        row += [method.steps, method.seconds, method.peak_memory_bytes]
        tuning = method.tuning
        row += [tuning.budget, len(tuning.trials), tuning.steps] if tuning else [None] * 3
        row += [spreadsheet_text(chosen_text(method))]
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
    return out.getvalue()


def differences_csv(results: Results) -> str:
    """One line per paired difference, in fractions: method, reference, where, interval, p-values."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("method", "reference", "where", "difference", "low", "high", "p", "p_holm"))
    for one in results.differences:
        names = map(spreadsheet_text, (one.method, one.reference, one.where))
        numbers = (one.estimate.value, one.estimate.low, one.estimate.high, one.estimate.p_value)
        writer.writerow((*names, *(f"{number:.6g}" for number in (*numbers, one.adjusted_p_value))))
    return out.getvalue()


def predictions_csv(scores: SplitScores, class_names: Sequence[str]) -> str:
    """One line per picture of a split: what it shows, its class, the answer, and how sure it is.

    Args:
        class_names: of the benchmark; the split's own are taken where it has some.
    """
    class_names = scores.split.class_names or class_names
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("picture", "identity", "truth", "answer", "right", "confidence", "rank"))
    for i, example in enumerate(scores.split.examples):
        answer = class_names[int(scores.predictions[i])]
        names = (example.image.name, example.identity, class_names[example.label], answer)
        right, confidence = int(scores.correct[i]), f"{scores.confidences[i].item():.6g}"
        writer.writerow((*map(spreadsheet_text, names), right, confidence, int(scores.ranks[i])))
    return out.getvalue()


def domain_title(domain: Domain) -> str:
    """A domain's name, marked where it is no shift."""
    return marked(domain.name, "" if domain.kind == "shifted" else domain.kind)


def marked(name: str, kind: str) -> str:
    """A domain's name with its kind beside it, where there is one and the name does not say it."""
    return f"{name} ({kind})" if kind and name != kind else name


def identical_text(results: Results) -> list[str]:
    """A sentence for each group of methods that answer alike, as those do whose alpha leaves the same model."""
    return [
        f"{', '.join(names[:-1])} and {names[-1]} are identical in every number: they give the same answers."
        for names in results.identical()
    ]


def explain_cells(results: Results) -> str:
    """A sentence on what the numbers of the table are."""
    seeds = max((len(method.seeds) for method in results.methods), default=1)
    spread = f"; ± is the standard deviation over {seeds} seeds" if seeds > 1 else ""
    title = results.metrics[0].title
    return f"{title[0].upper()}{title[1:]} in percent{spread}."


def chosen_text(method: Method) -> str:
    """The settings that validation chose: "optimizer.lr 3e-05, adapter.drop 0.2"; "" where nothing was tuned."""
    return (
        ", ".join(f"{name} {value}" for name, value in method.tuning.chosen.items()) if method.tuning else ""
    )


def tuning_text(method: Method) -> str:
    """What the search cost: "6 trials, 2,580 steps"; "–" where nothing was tuned."""
    if method.tuning is None:
        return "–"
    trials = len(method.tuning.trials)
    return f"{trials} trial{'s' if trials > 1 else ''}, {method.tuning.steps:,} steps"


def p_text(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def corruption_title(results: Results) -> str:
    """What the one column of all corruptions is called."""
    corruptions = results.of_kind("corruption")
    return corruptions[0].name if len(corruptions) == 1 else f"mean of {len(corruptions)} corruptions"


def bytes_text(count: int | None) -> str:
    """A size with three digits and its unit: "820 kB", "4.1 MB"."""
    if count is None:
        return "–"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable: the last unit always returns")


def count(number: int, noun: str) -> str:
    """A number of things: "1 trial", "3 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def count_text(count: int | None) -> str:
    """A number of parameters: "0", "820 k", "20.4 M"."""
    if count is None:
        return "–"
    if count < 1000:
        return str(count)
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def seconds_text(seconds: float | None) -> str:
    """A duration: "42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(values: tuple[float, ...]) -> str:
    """Mean over seeds in percent, and ± standard deviation where there are several; "–" for nothing."""
    if not values:
        return "–"
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ±{100 * standard_deviation(values):.1f}"


def _cells(results: Results) -> Iterator[list[str]]:
    """The header and one row per method; corruptions, of which there may be 75, only as their mean."""
    shown = results.shown
    shifted = bool(results.of_kind("shifted"))
    corrupted = bool(results.of_kind("corruption"))
    line = results.baseline_line()
    tuned = any(method.tuning for method in results.methods)
    header = ["method", *map(domain_title, shown)]
    header += ["mean shifted", "worst shifted"] if shifted else []
    header += [corruption_title(results)] if corrupted else []
    header += ["effective robustness"] if line else []
    yield [*header, "alpha", "trained", "file", "steps", "time", "memory", *["tuning", "chosen"] * tuned]
    for method in results.methods:
        row = [method.name]
        row += [
            percent(method.measures[domain.name].first) if domain.name in method.measures else "–"
            for domain in shown
        ]
        if shifted:
            worst = results.worst(method)
            row += [percent(results.mean_over(method, "shifted")), percent((worst[1],)) if worst else "–"]
        row += [percent(results.mean_over(method, "corruption"))] if corrupted else []
        if line:
            robust = results.effective_robustness(method)
            row += [range_text(robust[0], robust[1].low, robust[1].high) if robust else "–"]
        yield [*row, *_costs(method), *[tuning_text(method), chosen_text(method) or "–"] * tuned]


def _difference_cells(results: Results) -> Iterator[list[str]]:
    """Every method against the reference: in-distribution, on the mean of the shifts, and corrupted."""
    shifted = {domain.name for domain in results.of_kind("shifted")}
    wheres = list(dict.fromkeys(one.where for one in results.differences if one.where not in shifted))
    by_place = {(one.method, one.where): one for one in results.differences}
    yield ["method", *(title for where in wheres for title in (where, "p"))]
    for name in dict.fromkeys(one.method for one in results.differences):
        row = [name]
        for where in wheres:
            one = by_place.get((name, where))
            if one is None:
                row += ["–", "–"]
            else:
                estimate = one.estimate
                text = range_text(estimate.value, estimate.low, estimate.high)
                row += [text, p_text(one.adjusted_p_value)]
        yield row


def range_text(value: float, low: float, high: float) -> str:
    """A difference of fractions and its interval in points."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def markdown_table(header: list[str], *rows: list[str]) -> str:
    """Cells of any text as a table, numbers to the right."""
    texts = [list(map(_markdown_text, row)) for row in (header, *rows)]
    texts.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in texts)


def _costs(method: Method) -> list[str]:
    return [
        method.alpha or "–",
        count_text(method.trained_parameters),
        bytes_text(method.file_bytes),
        "–" if method.steps is None else f"{method.steps:,}",
        seconds_text(method.seconds),
        bytes_text(method.peak_memory_bytes),
    ]


def _markdown_text(text: str) -> str:
    """One line that neither ends the cell nor starts HTML."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for character in "|`*_[]":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet_text(text: str) -> str:
    """Spreadsheets run what begins like a formula; a leading apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
