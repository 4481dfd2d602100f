"""The main job in minutes: zero-shot, full fine-tuning, WiSE-FT and R-Adapter on the built-in model and data."""

import os
from pathlib import Path

import torch
from rich.console import Console

from tether import recipe as recipes
from tether._distributed import from_main, world_size
from tether.evaluation.scoring import Progress
from tether.evaluation.tables import bytes_text
from tether.runs import report as reporting
from tether.runs.comparing.comparison import ReportOptions, compare
from tether.runs.comparing.launch import Launch
from tether.runs.comparing.plan import Plan
from tether.runs.show import show_comparison, show_line

RECIPES = ("full", "wise-ft", "r-adapter")


def demo(
    root: Path,
    progress: Progress | None,
    console: Console | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Path:
    """Compare, print the table, and say where the adapter and the report are; gives the report's path."""
    console = console or Console()
    comparisons = compare(
        Plan(recipes=[recipes.read(name) for name in RECIPES], root=root / "demo"),
        Launch(device=device, workers=_workers(device)),
        ReportOptions(title="Fine-tuned on colour icons, tested on seven looks", command="make demo"),
        progress=progress,
        announce=lambda line: show_line(line, console),
    )
    out = root / "demo" / "report"
    from_main(lambda: len(reporting.write_comparisons(comparisons, out)))
    show_comparison(comparisons[0].results, console)
    newest = max((root / "demo").glob("r-adapter-*/adapter"), key=lambda path: path.stat().st_mtime)
    size = sum(file.stat().st_size for file in newest.iterdir())
    show_line(f"Adapter: {newest} ({bytes_text(size)})", console)
    show_line(f"Report:  {out / reporting.REPORT}", console)
    return out / reporting.REPORT


def _workers(device: torch.device | str) -> int:
    """Two processes where there are the cores for them; each computes small pictures faster than one on two cores."""
    alone = torch.device(device).type != "cpu" or world_size() > 1
    return 1 if alone else min(2, os.cpu_count() or 1)
