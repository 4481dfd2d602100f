"""What a terminal shows of a comparison."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from tether.evaluation.results import Results
from tether.runs.show import show_comparison

KEPT = Path(__file__).parents[2] / "results" / "all-methods" / "results.json"


def test_many_methods_stay_readable_in_80_columns():
    results = Results.load(KEPT)
    console = Console(width=80, record=True, file=StringIO())
    show_comparison(results, console)
    text = console.export_text()
    assert len(results.methods) > 20 and "…" not in text
    for method in results.methods:
        assert method.name in text
        assert f"{100 * method.shifted_mean.value:.1f}" in text
