"""Results as a table: for a terminal, for Markdown, for a spreadsheet."""

import csv
import io
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from tether.evaluation.results import Method, Results
from tether.evaluation.scores import SplitScores
from tether.evaluation.significance import standard_deviation


def to_terminal(results: Results) -> Table:
    """The main table for `rich`, in percent, with the standard deviation over seeds if there are several."""
    header, *rows = _cells(results)
    table = Table(title=Text(results.title), title_justify="left")
    for i, cell in enumerate(header):
        table.add_column(Text(cell), justify="left" if i == 0 else "right", no_wrap=i > 0)
    for method, row in zip(results.methods, rows, strict=True):
        style = "bold" if method.name == results.highlighted else ""
        table.add_row(*map(Text, row), style=style)
    return table


def to_markdown(results: Results) -> str:
    """The main table in Markdown, with a line that says what its numbers are."""
    header, *rows = (list(map(_markdown_text, row)) for row in _cells(results))
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]
    return "\n".join([*lines, "", explain_cells(results)]) + "\n"


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
    header += ["trained_parameters", "file_bytes", "seconds", "peak_memory_bytes"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_spreadsheet_text, header))
    for method in results.methods:
        row: list[object] = [
            _spreadsheet_text(method.name),
            _spreadsheet_text(method.alpha),
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
        row += [method.trained_parameters, method.file_bytes, method.seconds, method.peak_memory_bytes]
        writer.writerow(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)
    return out.getvalue()


def predictions_csv(scores: SplitScores, class_names: Sequence[str]) -> str:
    """One line per picture of a split: what it shows, its class, the answer, and how sure it is."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("picture", "identity", "truth", "answer", "right", "confidence", "rank"))
    for i, example in enumerate(scores.split.examples):
        answer = class_names[int(scores.predictions[i])]
        names = (example.image.name, example.identity, class_names[example.label], answer)
        right, confidence = int(scores.correct[i]), f"{scores.confidences[i].item():.6g}"
        writer.writerow((*map(_spreadsheet_text, names), right, confidence, int(scores.ranks[i])))
    return out.getvalue()


def explain_cells(results: Results) -> str:
    """A sentence on what the numbers of the table are."""
    seeds = max((len(method.seeds) for method in results.methods), default=1)
    spread = f"; ± is the standard deviation over {seeds} seeds" if seeds > 1 else ""
    return f"Top-1 accuracy in percent{spread}."


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
    shown = [*results.of_kind("in-distribution"), *results.of_kind("shifted")]
    shifted = bool(results.of_kind("shifted"))
    corrupted = bool(results.of_kind("corruption"))
    header = ["method", *(domain.name for domain in shown)]
    header += ["mean shifted", "worst shifted"] if shifted else []
    header += ["mean corruptions"] if corrupted else []
    yield [*header, "alpha", "trained", "file", "time", "memory"]
    for method in results.methods:
        row = [method.name]
        row += [
            percent(method.measures[domain.name].top1) if domain.name in method.measures else "–"
            for domain in shown
        ]
        if shifted:
            worst = results.worst(method)
            row += [percent(results.mean_over(method, "shifted")), percent((worst[1],)) if worst else "–"]
        row += [percent(results.mean_over(method, "corruption"))] if corrupted else []
        yield [*row, *_costs(method)]


def _costs(method: Method) -> list[str]:
    return [
        method.alpha or "–",
        count_text(method.trained_parameters),
        bytes_text(method.file_bytes),
        seconds_text(method.seconds),
        bytes_text(method.peak_memory_bytes),
    ]


def _markdown_text(text: str) -> str:
    """One line that neither ends the cell nor starts HTML."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for character in "|`*_[]":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _spreadsheet_text(text: str) -> str:
    """Spreadsheets run what begins like a formula; a leading apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
