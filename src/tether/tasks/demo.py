"""The main job in minutes: zero-shot, full fine-tuning and R-Adapter on the built-in model and data."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tether import recipe as recipes
from tether.evaluation.tables import bytes_text, to_terminal
from tether.tasks import comparison

RECIPES = ("full", "r-adapter")


def demo(
    root: Path, progress: Callable[[str, int, int], None] | None, console: Console | None = None
) -> Path:
    """Compare, print the table, and say where the adapter and the report are; gives the report's path."""
    console = console or Console()
    chosen = [recipes.read(name) for name in RECIPES]
    results = comparison.compare(
        chosen,
        root / "demo",
        title="R-Adapter on emoji-shift",
        command="make demo",
        progress=progress,
        announce=lambda line: console.print(line, highlight=False),
    )
    out = root / "demo" / "report"
    comparison.write(results, out, comparison.pooled_tests(chosen[0], (0,)))
    console.print(to_terminal(results))
    newest = max((root / "demo").glob("r-adapter-*/adapter"), key=lambda path: path.stat().st_mtime)
    size = sum(file.stat().st_size for file in newest.iterdir())
    console.print(f"Adapter: {newest} ({bytes_text(size)})", soft_wrap=True, highlight=False)
    console.print(f"Report:  {out / 'report.html'}", soft_wrap=True, highlight=False)
    return out / "report.html"
