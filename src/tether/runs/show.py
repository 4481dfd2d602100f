"""What a person sees of an evaluation and of a finished run on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from tether.evaluation.results import Results
from tether.evaluation.scores import alpha_text
from tether.evaluation.tables import bytes_text, count_text, percent, seconds_text
from tether.runs.outcome import Outcome

_FEW = 6


class EvaluationProgress:
    """A bar per sweep on a terminal; elsewhere nothing, because an evaluation is short."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._console.is_terminal or what == "prompts":
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, description=f"evaluating {what}", completed=done, total=total)
        if done >= total:
            self._bar.stop()
            self._bar = None


def show_comparison(results: Results, console: Console | None = None) -> None:
    """A row per domain and a column per method; of many methods a row each, without the single shifts."""
    console = console or Console()
    if len(results.methods) > _FEW:
        console.print(_short_table(results))
        return
    table = Table("top-1 accuracy, %", *(method.name for method in results.methods), title=results.title)
    for kind in ("in-distribution", "shifted", "corruption"):
        for domain in results.of_kind(kind):
            shown = [method.measures.get(domain.name) for method in results.methods]
            table.add_row(
                f"{domain.name} ({kind})", *("–" if one is None else percent(one.top1) for one in shown)
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
        table.add_row(what, *(cell or "–" for cell in cells))
    console.print(table)


def _short_table(results: Results) -> Table:
    """What fits a narrow terminal of however many methods; everything stands in the written tables."""
    homes = results.of_kind("in-distribution")
    name = Column("method", min_width=max(len(method.name) for method in results.methods), no_wrap=True)
    domains = (domain.name for domain in homes)
    table = Table(name, *domains, "mean of shifted", "trained", "file", "time")
    table.title = f"{results.title}: top-1 accuracy, %"
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
        table.add_row(method.name, *accuracies, *(cell or "–" for cell in costs))
    return table


def show_run(outcome: Outcome, console: Console | None = None) -> None:
    """The table of one run: every test split at alpha 0, the chosen alpha and 1; then where things lie."""
    console = console or Console()
    alphas = [0.0, *([] if outcome.alpha in (0.0, 1.0) else [outcome.alpha]), 1.0]
    columns = [(alpha, outcome.test.at(alpha)) for alpha in alphas]
    table = Table("domain", "pictures", *(f"alpha {alpha_text(alpha)}" for alpha, _ in columns))
    table.title = f"top-1 accuracy of {outcome.recipe.name} on {outcome.benchmark.name}"
    for name, split in outcome.benchmark.tests.items():
        table.add_row(name, str(len(split)), *(f"{scores[name].top1:.1%}" for _, scores in columns))
    shifted = [
        name
        for name, split in outcome.benchmark.tests.items()
        if name != outcome.benchmark.in_distribution and not split.is_corruption
    ]
    if shifted:
        means = [_mean([scores[name].top1 for name in shifted]) for _, scores in columns]
        table.add_section()
        table.add_row("mean of shifted", "", *(f"{mean:.1%}" for mean in means))
    console.print(table)
    console.print(
        f"Alpha {alpha_text(outcome.alpha)}: {outcome.alpha_reason}", soft_wrap=True, highlight=False
    )
    console.print(
        f"Trained {outcome.trained_parameters:,} parameters in {outcome.seconds:.0f} s; "
        f"to keep besides the base: {outcome.file_bytes:,} bytes.",
        highlight=False,
    )
    console.print(f"Report: {outcome.run / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"Run: {outcome.run}", soft_wrap=True, highlight=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
