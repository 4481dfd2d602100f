"""What a person sees of a comparison and of a finished run on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from tether._text import cell, printable
from tether.evaluation.results import Results
from tether.evaluation.scores import alpha_text
from tether.evaluation.tables import (
    bytes_text,
    count_text,
    domain_title,
    identical_text,
    percent,
    seconds_text,
)
from tether.runs.outcome import Outcome


def show_comparison(results: Results, console: Console | None = None) -> None:
    """A row per domain and a column per method; where that is too wide, a row per method without the single shifts."""
    console = console or Console()
    table = _wide_table(results)
    show_table(table if _width(table, console) <= console.width else _short_table(results), console)
    for line in identical_text(results):
        show_line(line, console)


def show_table(table: Table, console: Console) -> None:
    """Print a table in which no word is broken, however narrow the terminal: it wraps the lines that are longer."""
    console.print(table, width=max(console.width, _width(table, console)), crop=False, soft_wrap=True)


def show_line(text: str, console: Console) -> None:
    """Print a line that may hold texts from outside."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    """Columns that a table needs, so that no word in it is broken."""
    return console.measure(table, options=console.options.update(max_width=10_000)).minimum


def _wide_table(results: Results) -> Table:
    names = [Column(cell(method.name)) for method in results.methods]
    table = Table(Column("top-1 accuracy, %", no_wrap=True), *names, title=cell(results.title))
    for kind in ("in-distribution", "shifted", "corruption"):
        for domain in results.of_kind(kind):
            shown = [method.measures.get(domain.name) for method in results.methods]
            table.add_row(
                cell(domain_title(domain)), *("–" if one is None else percent(one.top1) for one in shown)
            )
        table.add_section()
    means = [results.mean_over(method, "shifted") for method in results.methods]
    table.add_row("mean of shifted", *(percent(mean) if mean else "–" for mean in means))
    table.add_section()
    for what, cells in (
        ("alpha", [method.alpha for method in results.methods]),
        ("trained parameters", [count_text(method.trained_parameters) for method in results.methods]),
        ("file", [bytes_text(method.file_bytes) for method in results.methods]),
        ("training time", [seconds_text(method.seconds) for method in results.methods]),
    ):
        table.add_row(what, *(text or "–" for text in cells))
    return table


def _short_table(results: Results) -> Table:
    """What fits a narrow terminal of however many methods; everything stands in the written tables."""
    homes = results.of_kind("in-distribution")
    titles = [cell(domain_title(domain)) for domain in homes]
    table = Table(Column("method", no_wrap=True), *titles, "mean of shifted", "trained", "file", "time")
    table.title = cell(f"{results.title}: top-1 accuracy, %")
    for method in results.methods:
        own = [method.measures.get(domain.name) for domain in homes]
        mean = results.mean_over(method, "shifted")
        costs = (
            count_text(method.trained_parameters),
            bytes_text(method.file_bytes),
            seconds_text(method.seconds),
        )
        accuracies = [
            *("–" if one is None else percent(one.top1) for one in own),
            percent(mean) if mean else "–",
        ]
        table.add_row(cell(method.name), *accuracies, *(text or "–" for text in costs))
    return table


def show_run(outcome: Outcome, console: Console | None = None) -> None:
    """The table of one run: every test split at alpha 0, the chosen alpha and 1; then where things lie."""
    console = console or Console()
    benchmark, home = outcome.benchmark, outcome.benchmark.in_distribution
    alphas = [0.0, *([] if outcome.alpha in (0.0, 1.0) else [outcome.alpha]), 1.0]
    columns = [(alpha, outcome.test.at(alpha)) for alpha in alphas]
    heads = [f"alpha {alpha_text(alpha)}" for alpha, _ in columns]
    table = Table(Column("domain", no_wrap=True), "pictures", *heads)
    table.title = cell(f"top-1 accuracy of {outcome.recipe.name} on {benchmark.name}")
    for name in sorted(benchmark.tests, key=lambda name: name != home):
        title = f"{name} (in-distribution)" if name == home else name
        pictures = str(len(benchmark.tests[name]))
        table.add_row(cell(title), pictures, *(f"{scores[name].top1:.1%}" for _, scores in columns))
    shifted = [name for name, split in benchmark.tests.items() if name != home and not split.is_corruption]
    if shifted:
        means = [_mean([scores[name].top1 for name in shifted]) for _, scores in columns]
        table.add_section()
        table.add_row("mean of shifted", "", *(f"{mean:.1%}" for mean in means))
    show_table(table, console)
    show_line(f"Alpha {alpha_text(outcome.alpha)}: {outcome.alpha_reason}", console)
    show_line(
        f"Trained {outcome.trained_parameters:,} parameters in {outcome.seconds:.0f} s; "
        f"to keep besides the base: {outcome.file_bytes:,} bytes.",
        console,
    )
    show_line(f"Report: {outcome.run / 'report.html'}", console)
    show_line(f"Run: {outcome.run}", console)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
