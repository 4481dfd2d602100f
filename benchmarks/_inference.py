"""What an ensemble costs: nothing when merged, and one reading of each picture in an alpha sweep."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch
from torch import Tensor

import tether.data.dataset as dataset
from benchmarks._count import Operations, flop_counter
from benchmarks._methods import Making
from tether.adapters import RAdapterConfig, attach
from tether.data import test_transform
from tether.data.records import Benchmark, Split
from tether.ensembles import alpha_sweep
from tether.evaluation import Classifier
from tether.models import Model


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model beside its base."""

    same_modules: bool
    operations: int
    same_operations: bool
    flops_ratio: float
    unmerged_flops_ratio: float
    time_ratio: float | None


def merged_against_base(
    model: Model, pixels: Tensor, tokens: Tensor, making: Making, repeats: int = 0
) -> Merged:
    """Compare modules, executed operations and their shapes, FLOPs and, with repeats, forward time."""

    def forward() -> None:
        with torch.no_grad():
            model.module.encode_image(pixels)
            model.module.encode_text(tokens)

    def look() -> tuple[list[type], list, int]:
        with Operations() as operations:
            forward()
        with flop_counter() as counter:
            forward()
        return [type(part) for part in model.module.modules()], operations.listed, counter.get_total_flops()

    def seconds() -> float:
        forward()  # the weights have just been written
        started = perf_counter()
        forward()
        return perf_counter() - started

    model.module.eval().requires_grad_(False)  # torch picks its matrix product by whether weights are trained
    base = look()
    with making():
        attached = attach(model, RAdapterConfig())
    attached.eval_mode()
    unmerged = look()
    attached.merge(alpha=0.5)
    merged = look()
    ratios = []
    for _ in range(repeats):
        after = seconds()
        attached.unmerge()
        with attached.ordinary():
            before = seconds()
        attached.merge(alpha=0.5)
        ratios.append(after / before)
    attached.detach()
    return Merged(
        same_modules=merged[0] == base[0],
        operations=len(merged[1]),
        same_operations=merged[1] == base[1],
        flops_ratio=merged[2] / base[2],
        unmerged_flops_ratio=unmerged[2] / base[2],
        time_ratio=median(ratios) if ratios else None,
    )


@dataclass(frozen=True, kw_only=True)
class Readings:
    """How often pictures were decoded and transformed in one sweep."""

    pictures: int
    alphas: int
    decoded: int
    transformed: int


def readings_of_a_sweep(
    model: Model, benchmark: Benchmark, alphas: list[float], pictures: int = 16
) -> Readings:
    """Sweep over a few pictures of the benchmark with a new adapter, and count."""
    split = replace(benchmark.validation, examples=benchmark.validation.examples[:pictures])
    counts = {"decoded": 0, "transformed": 0}

    def counted(name: str, function: Callable) -> Callable:
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    def opened(split: Split) -> dataset.ImageDataset:
        return dataset.ImageDataset(split, counted("transformed", test_transform(model.image)))

    attached = attach(model, RAdapterConfig())
    features = model.module.eval().encode_text(model.tokenize(["a class"])).detach()
    classifier = Classifier(weight=features.expand(len(benchmark.class_names), -1))
    counting = patch.object(dataset, "read_image", counted("decoded", dataset.read_image))
    with attached.path() as path, counting:
        alpha_sweep(model, path, {"validation": split}, alphas, lambda _: classifier, open_split=opened)
    attached.detach()
    return Readings(pictures=len(split), alphas=len(alphas), **counts)
