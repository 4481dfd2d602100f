"""What a person sees of a comparison and of a finished run on a terminal."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tether._text import cell, printable
from tether.evaluation.results import Method, Results
from tether.evaluation.scores import alpha_text
from tether.evaluation.tables import (
    bytes_text,
    count_text,
    domain_title,
    identical_text,
    marked,
    percent,
    seconds_text,
)
from tether.runs.outcome import Outcome
from tether.runs.report import REPORT


def show_comparison(results: Results, console: Console | None = None) -> None:
    """A row per domain and a column per method; where that is too wide, a row per method without the single shifts."""
    console = console or Console()
    tables = (_wide_table(results), *(_short_table(results, costs) for costs in (3, 2, 1, 0)))
    show_table(next((one for one in tables if _width(one, console) <= console.width), tables[-1]), console)
    for line in identical_text(results):
        show_line(line, console)


def show_table(table: Table, console: Console) -> None:
    """Print a table in which no word is broken; one that is too wide all the same goes on beyond the edge."""
    before = console.width
    console.width = max(before, _width(table, console))
    console.print(table)
    console.width = before


def show_line(text: str, console: Console) -> None:
    """Print a line that may hold texts from outside."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that a table needs, so that no word in it is broken."""
    return console.measure(table, options=console.options.update(max_width=10_000)).minimum


def _wide_table(results: Results) -> Table:
    rows: list[tuple[str, list[str]]] = []
    ends = []
    for kind in ("in-distribution", "shifted", "other classes", "corruption"):
        for domain in results.of_kind(kind):
            measures = [method.measures.get(domain.name) for method in results.methods]
            rows.append(
                (domain_title(domain), ["–" if one is None else percent(one.first) for one in measures])
            )
        ends.append(len(rows))
    rows.append(("mean of shifted", [_mean_text(results, method) for method in results.methods]))
    ends.append(len(rows))
    words = [method.alpha.split() for method in results.methods]
    columns = [
        _column(printable(method.name), [*cells, *own])
        for method, own, *cells in zip(results.methods, words, *(cells for _, cells in rows), strict=True)
    ]
    first = _column(
        f"{results.metrics[0].title}, %", [*(printable(title) for title, _ in rows), "trained parameters"]
    )
    first.no_wrap = True  # rich would take from the widest column below its minimum, and cut the last one off
    table = Table(first, *columns, title=cell(results.title))
    for number, (title, cells) in enumerate(rows, start=1):
        table.add_row(cell(title), *cells, end_section=number in ends)
    for what, cells in (
        ("alpha", [method.alpha for method in results.methods]),
        ("trained parameters", [count_text(method.trained_parameters) for method in results.methods]),
        ("file", [bytes_text(method.file_bytes) for method in results.methods]),
        ("training time", [seconds_text(method.seconds) for method in results.methods]),
    ):
        table.add_row(what, *(text or "–" for text in cells))
    return table


def _short_table(results: Results, costs: int) -> Table:
    """What fits a narrow terminal of however many methods; everything stands in the written tables.

    Args:
        costs: how many columns of costs there are.
    """
    homes = results.of_kind("in-distribution")
    titles = [f"{printable(domain.name)}\n(in-distribution)" for domain in homes]
    titles = ["method", *titles, "mean of\nshifted", *("file", "trained", "time")[:costs]]
    rows = []
    for method in results.methods:
        measures = [method.measures.get(domain.name) for domain in homes]
        accuracies = ["–" if one is None else percent(one.first) for one in measures]
        spent = (
            bytes_text(method.file_bytes),
            count_text(method.trained_parameters),
            seconds_text(method.seconds),
        )
        rows.append([printable(method.name), *accuracies, _mean_text(results, method), *spent[:costs]])
    table = Table(
        *map(_column, titles, zip(*rows, strict=True)),
        title=cell(f"{results.title}: {results.metrics[0].title}, %"),
    )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _column(title: str, cells: Iterable[str]) -> Column:
    """A column in which neither the title's lines nor these cells are broken."""
    return Column(Text(title), min_width=max(map(cell_len, (*title.split("\n"), *cells))))


def _mean_text(results: Results, method: Method) -> str:
    mean = results.mean_over(method, "shifted")
    return percent(mean) if mean else "–"


def show_run(outcome: Outcome, console: Console | None = None) -> None:
    """The table of one run: every test split at alpha 0, the chosen alpha and 1; then where things lie."""
    console = console or Console()
    benchmark, home = outcome.benchmark, outcome.benchmark.in_distribution
    alphas = [0.0, *([] if outcome.alpha in (0.0, 1.0) else [outcome.alpha]), 1.0]
    columns = [(alpha, outcome.test.at(alpha)) for alpha in alphas]
    metric = columns[0][1][home].metrics[0]
    heads = [f"alpha {alpha_text(alpha)}" for alpha, _ in columns]
    titles = {name: marked(name, "in-distribution" if name == home else "") for name in benchmark.tests}
    first = _column("domain", ["mean of shifted", *map(printable, titles.values())])
    table = Table(first, "pictures", *heads)
    table.title = cell(f"{metric.title} of {outcome.recipe.name} on {benchmark.name}")
    for name in sorted(benchmark.tests, key=lambda name: name != home):
        pictures = str(len(benchmark.tests[name]))
        table.add_row(cell(titles[name]), pictures, *(f"{scores[name].value:.1%}" for _, scores in columns))
    shifted = [name for name, split in benchmark.tests.items() if name != home and not split.is_corruption]
    if shifted:
        means = [_mean([scores[name].value for name in shifted]) for _, scores in columns]
        table.add_section()
        table.add_row("mean of shifted", "", *(f"{mean:.1%}" for mean in means))
    show_table(table, console)
    show_line(f"Alpha {alpha_text(outcome.alpha)}: {outcome.alpha_reason}", console)
    show_line(
        f"Trained {outcome.trained_parameters:,} parameters in {outcome.seconds:.0f} s; "
        f"to keep besides the base: {outcome.file_bytes:,} bytes.",
        console,
    )
    show_line(f"Report: {outcome.run / REPORT}", console)
    show_line(f"Run: {outcome.run}", console)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
