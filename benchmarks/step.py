"""What one training step costs, side by side: `python -m benchmarks.step`.

Full fine-tuning, PEFT LoRA, a naive R-Adapter and ours, on ViT-B/16 with random weights (counted on shapes
alone; `--measure` also runs it) and on a model that is run. Writes a table, the targets and whether they are
reached.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchmarks._count import Cost, cost
from benchmarks._inference import merged_against_base, readings_of_a_sweep
from benchmarks._methods import (
    Batch,
    Making,
    Trainer,
    known_to_be_safe,
    methods_for,
    random_batch,
    shapes_only,
    vit_b_16,
)
from benchmarks._report import Row, render, save, targets
from tether.data import EmojiShiftConfig, load_benchmark
from tether.data.records import Benchmark
from tether.errors import TetherError
from tether.models import Model, load


def compare(
    name: str, make: Callable[[Making], Model], benchmark: Benchmark, pairs: int, *, real: bool, repeats: int
) -> list[Row]:
    """The costs of every method's step; with `real`, on real numbers and with their speed."""
    making = nullcontext if real else shapes_only()
    trainers: dict[str, Trainer] = {}
    steps: dict[str, Step] = {}
    costs: dict[str, Cost] = {}
    for method, start in methods_for(make(making)).items():
        model = make(making)
        with making():
            pixels = torch.randn(pairs, 3, model.image.height, model.image.width)
        trainer = start(model, benchmark, making)
        step = Step(trainer, random_batch(benchmark, pairs, pixels))
        with nullcontext() if real else known_to_be_safe():
            costs[method] = cost(step.forward, step.finish, step.known)
        trainers[method], steps[method] = trainer, step
        print(f"{name}, {pairs} pairs: {method} counted", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {method: [] for method in trainers}
    for _ in range(repeats if real else 0):
        for method, step in steps.items():
            started = perf_counter()
            step.forward().backward()
            step.finish()
            seconds[method].append(perf_counter() - started)
    rows = []
    for method, trainer in trainers.items():
        own, whole = seconds[method], seconds["full fine-tuning"]
        rows.append(
            Row(
                model=name,
                pairs=pairs,
                method=method,
                gflops_per_pair=costs[method].flops / pairs / 1e9,
                saved_mib_per_pair=costs[method].saved_bytes / pairs / 2**20,
                trained_parameters=sum(parameter.numel() for parameter in trainer.parameters),
                peak_mib=costs[method].peak_bytes / 2**20,
                pictures_per_second=pairs / median(own) if own else None,
                speed=median(b / a for a, b in zip(own, whole, strict=True)) if own else None,
                note=trainer.note,
            )
        )
        trainer.close()
    return rows


class Step:
    """One trainer with AdamW on one batch, taken again and again."""

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self._trainer, self._batch, self._number = trainer, batch, 0
        self._optimizer = torch.optim.AdamW(trainer.parameters, lr=1e-5)

    def forward(self) -> Tensor:
        self._number += 1
        return self._trainer.loss(self._batch, self._number)

    def finish(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()

    def known(self) -> list[Tensor]:
        """What is in memory between steps."""
        module = self._trainer.model.module
        state = [value for one in self._optimizer.state.values() for value in one.values()]
        tensors = [*module.parameters(), *module.buffers(), *self._batch.values(), *state]
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256], help="batch sizes for ViT-B/16")
    parser.add_argument("--model", default="builtin", help="model that is run, as tether.load takes it")
    parser.add_argument("--model-pairs", type=int, default=64, help="its batch size")
    parser.add_argument("--measure", action="store_true", help="also run ViT-B/16, with 8 pairs")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each method, taken in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder of speed.md and speed.csv"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    benchmark = load_benchmark(EmojiShiftConfig())
    lines: list[str] = []

    counted = [
        row
        for pairs in options.pairs
        for row in compare("ViT-B/16", vit_b_16, benchmark, pairs, real=False, repeats=0)
    ]
    rows = list(counted)
    if options.measure:
        rows += compare("ViT-B/16", vit_b_16, benchmark, 8, real=True, repeats=options.repeats)
    try:
        run = load(options.model)
    except TetherError as error:
        run = None
        lines.append(f"{options.model} was not run: {error}")
    if run is not None:
        name = Path(options.model).name
        rows += compare(
            name,
            lambda making: load(options.model),
            benchmark,
            options.model_pairs,
            real=True,
            repeats=options.repeats,
        )
        lines += [forward_line(name, run, 3 * options.repeats)]
    making = shapes_only()
    shapes = vit_b_16(making)
    with making():
        pixels = torch.randn(8, 3, 224, 224)
    with known_to_be_safe():
        merged = merged_against_base(shapes, pixels, shapes.tokenize(["a picture"] * 8), making)
    lines.append(
        f"ViT-B/16 merged: {merged.operations} operations, each the base's own: {merged.same_operations}; "
        f"unmerged it would take {merged.unmerged_flops_ratio:.3f} times the base's FLOPs."
    )
    swept = run if run is not None else vit_b_16(nullcontext)
    grids = [[0.5], [index / 10 for index in range(11)]]
    readings = [readings_of_a_sweep(swept, benchmark, grid) for grid in grids]
    lines += [
        f"Sweep of {one.alphas} alphas over {one.pictures} pictures: {one.decoded} decoded, "
        f"{one.transformed} transformed."
        for one in readings
    ]
    found = targets(counted, merged, readings)
    report = render(rows, lines, found, options.threads)
    print(report)
    save(options.output, "speed", report, rows)
    return 0


def forward_line(name: str, model: Model, repeats: int) -> str:
    """How a merged model runs beside its base."""
    pixels = torch.randn(16, 3, model.image.height, model.image.width)
    merged = merged_against_base(model, pixels, model.tokenize(["a picture"] * 16), nullcontext, repeats)
    return (
        f"{name} merged: forward time ÷ base {merged.time_ratio:.3f} (median of {repeats}), "
        f"same operations: {merged.same_operations}."
    )


if __name__ == "__main__":
    sys.exit(main())
