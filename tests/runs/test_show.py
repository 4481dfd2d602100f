"""What a terminal shows of a comparison and of a run."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tether.evaluation.results import Results
from tether.runs.show import show_comparison

KEPT = Path(__file__).parents[2] / "results"


def shown(results, width):
    console = Console(width=width, file=StringIO())
    show_comparison(results, console)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["all-methods", "emoji-shift", "r-adapter-ablation", "typefaces"])
@pytest.mark.parametrize("width", [60, 80, 130, 400])
def test_no_name_is_broken_however_wide_the_terminal(name, width):
    results = Results.load(KEPT / name / "results.json")
    text = shown(results, width)
    assert "…" not in text
    for method in results.methods:
        assert f"{method.name} " in text
        assert f"{100 * method.shifted_mean.value:.1f}" in text
    if width == 80:
        assert max(map(len, text.splitlines()[:-5])) <= 80


@pytest.mark.parametrize("width", [70, 80, 84, 96])
def test_the_last_column_is_whole_where_words_are_wrapped(width):
    results = Results.load(KEPT / "emoji-shift" / "results.json")
    names = ("zero-shot", "full", "wise-ft", "r-adapter")
    few = replace(results, methods=tuple(results.method(name) for name in names), differences=())
    lines = shown(few, width).splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    assert next(line for line in lines if line.startswith("┏")).endswith("┓")


def test_the_in_distribution_domain_comes_first_and_is_marked():
    results = Results.load(KEPT / "typefaces" / "results.json")
    first = shown(results, 400).splitlines()[4]
    assert first.split("│")[1].strip() == "text (in-distribution)"
    narrow = shown(results, 80).splitlines()
    assert (
        narrow[2].split("┃")[2].strip() == "text" and narrow[3].split("┃")[2].strip() == "(in-distribution)"
    )


@pytest.mark.parametrize("width", [80, 400])
def test_identical_methods_are_said_to_be_so(width):
    text = shown(Results.load(KEPT / "typefaces" / "results.json"), width)
    assert "flyp and wise-ft are identical in every number: they give the same answers." in text


@pytest.mark.parametrize("width", [80, 600])
def test_names_are_text_whatever_they_hold(width):
    results = Results.load(KEPT / "typefaces" / "results.json")
    domains = (replace(results.domains[0], name="[v2] [/red]\x1b[2J"), *results.domains[1:])
    methods = []
    for method in results.methods:
        measures = {
            domains[0].name if n == results.domains[0].name else n: m for n, m in method.measures.items()
        }
        methods.append(replace(method, measures=measures))
    methods[-1] = replace(methods[-1], name="[bold]mine[/bold] \x07")
    hostile = replace(
        results, title="[b]title[/i]", domains=domains, methods=tuple(methods), highlighted="", differences=()
    )
    text = shown(hostile, width)
    assert "[b]title[/i]" in text and "[bold]mine[/bold] \\x07" in text and "\x1b" not in text
    assert width == 80 or "[v2] [/red]\\x1b[2J" in text
