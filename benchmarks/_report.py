"""The benchmark's table, its targets, and the two files it writes."""

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks._inference import Merged, Readings
from tether._files import write_text

ABOUT = """\
Made by `python -m benchmarks.step`. Full fine-tuning, PEFT LoRA and the naive R-Adapter run as published code
does: one text of full length per picture. Labels and templates are drawn at random. All in fp32.

- GFLOP/pair: what precedes the step, forward and backward, by torch's counter; a linear solve of n × n by
  n × k counts 2/3 n³ + 2 n² k, each gradient of a convolution as much as the convolution.
- saved MiB/pair: storages that autograd keeps for the backward pass, weights and inputs not counted.
- peak MiB: largest sum of weights, inputs, gradients, optimizer state and activations alive at once; scratch
  memory inside kernels is not seen.
- pictures/s: median over steps that the methods take in turn, optimizer included. Rows without it are counted
  on shapes alone; there the checks that precede folding are counted at their costliest."""

COLUMNS = {
    "model": "model",
    "pairs": "pairs",
    "method": "method",
    "gflops_per_pair": "GFLOP/pair",
    "saved_mib_per_pair": "saved MiB/pair",
    "trained_parameters": "trained",
    "peak_mib": "peak MiB",
    "pictures_per_second": "pictures/s",
    "speed": "speed ÷ full",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one model and batch size. Speed is relative to full fine-tuning in the same repeat."""

    model: str
    pairs: int
    method: str
    gflops_per_pair: float
    saved_mib_per_pair: float
    trained_parameters: int
    peak_mib: float
    pictures_per_second: float | None
    speed: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number, the bound it should keep, and whether it does."""

    text: str
    found: float
    bound: float
    at_most: bool = True

    def line(self) -> str:
        kept = self.found <= self.bound if self.at_most else self.found >= self.bound
        sign = "≤" if self.at_most else "≥"
        verdict = "reached" if kept else "NOT REACHED"
        return f"{verdict}: {self.text}: {self.found:.4g} (target {sign} {self.bound:g})"


def targets(rows: list[Row], merged: Merged, readings: list[Readings]) -> list[Target]:
    """What the library promises at ViT-B/16, and what was found."""
    found = []
    for pairs in sorted({row.pairs for row in rows if row.pairs >= 64}):
        by = {row.method: row for row in rows if row.pairs == pairs}
        full, naive, ours = by["full fine-tuning"], by["naive R-Adapter"], by["ours"]
        flops = ours.gflops_per_pair
        found += [
            Target(
                text=f"{pairs} pairs, FLOPs ÷ full fine-tuning",
                found=flops / full.gflops_per_pair,
                bound=0.62,
            ),
            Target(
                text=f"{pairs} pairs, FLOPs of the naive R-Adapter ÷ ours",
                found=naive.gflops_per_pair / flops,
                bound=1.3,
                at_most=False,
            ),
            Target(
                text=f"{pairs} pairs, saved activations ÷ full fine-tuning",
                found=ours.saved_mib_per_pair / full.saved_mib_per_pair,
                bound=0.75,
            ),
        ]
    for one in readings:
        most = max(one.decoded, one.transformed) / one.pictures
        found.append(Target(text=f"sweep of {one.alphas} alphas, readings per picture", found=most, bound=1))
    different = (not merged.same_modules) + (not merged.same_operations)
    return [
        *found,
        Target(
            text="merged model, modules or operations other than the base's",
            found=different,
            bound=0,
        ),
        Target(text="merged model, forward FLOPs ÷ base", found=merged.flops_ratio, bound=1),
    ]


def render(rows: list[Row], lines: list[str], found: list[Target], threads: int) -> str:
    """The report as Markdown that also reads well in a terminal."""
    table = [list(COLUMNS.values())] + [[cell(getattr(row, column)) for column in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    printed = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table
    ]
    printed.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    notes = {f"{row.model}, {row.method}": row.note for row in rows}
    return "\n".join(
        [
            "# What one training step costs",
            "",
            ABOUT,
            "",
            f"torch {torch.__version__}, {threads} threads, {platform.machine()}, "
            f"Python {platform.python_version()}.",
            "",
            *printed,
            "",
            *(f"- {which}: {note}" for which, note in notes.items()),
            *(f"- {line}" for line in lines),
            "",
            "## Targets",
            "",
            *(f"- {target.line()}" for target in found),
            "",
        ]
    )


def cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def save(folder: Path, name: str, report: str, rows: Sequence[Any]) -> None:
    """Write `name`.md, and `name`.csv with a column for each field of the rows, which are dataclasses."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(row) for row in rows)
    write_text(folder / f"{name}.md", report)
    write_text(folder / f"{name}.csv", text.getvalue())
