"""What one training step costs with each adapter of the literature: `python -m benchmarks.adapters`.

On timm's Swin-T and ViT-B/16 with a linear head: operations, saved activations and peak memory are counted on shapes
alone (`benchmarks._count`); seconds are medians over steps that the methods take in turn, as shares of full
fine-tuning's in the same round, and of a forward pass of the bare model. Mona is also timed against the order of its
published forward, one convolution after the other. Writes `adapters.md` and `adapters.csv`.
"""

import argparse
import copy
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn import functional as F

from benchmarks._count import cost, flop_counter
from benchmarks._methods import known_to_be_safe
from benchmarks._report import cell, save
from tether.adapters import (
    AdaptFormerConfig,
    BiasOnlyConfig,
    BottleneckConfig,
    ConvpassConfig,
    FullConfig,
    LastBlocksConfig,
    LoRandConfig,
    MonaConfig,
    NormOnlyConfig,
    RAdapterConfig,
    RepAdapterConfig,
    SCTConfig,
    SSFConfig,
    VPTConfig,
    attach,
)
from tether.adapters.attached import Attached
from tether.adapters.mona import KERNELS, Mona
from tether.errors import TetherError
from tether.families import AdapterConfig
from tether.models.site import Select, Site

BACKBONES = {"Swin-T": "swin_tiny_patch4_window7_224", "ViT-B/16": "vit_base_patch16_224"}
CLASSES = 100
METHODS: dict[str, AdapterConfig | None] = {
    "full": FullConfig(),
    "linear probe": None,
    "last block": LastBlocksConfig(),
    "norms": NormOnlyConfig(),
    "biases": BiasOnlyConfig(),
    "mona": MonaConfig(),
    "bottleneck, houlsby": BottleneckConfig(),
    "bottleneck, pfeiffer": BottleneckConfig(variant="pfeiffer"),
    "bottleneck, adapter_plus": BottleneckConfig(variant="adapter_plus"),
    "adaptformer": AdaptFormerConfig(),
    "convpass": ConvpassConfig(),
    "lorand": LoRandConfig(),
    "sct": SCTConfig(selection="seed"),
    "vpt, 50 tokens": VPTConfig(tokens=50),
    "rep_adapter": RepAdapterConfig(),
    "ssf": SSFConfig(),
    "r_adapter, rank 16": RAdapterConfig(rank=16, select=Select(tower="image")),
}
COLUMNS = {
    "backbone": "backbone",
    "method": "method",
    "trained": "trained",
    "gflops": "GFLOP/picture",
    "forward_gflops": "forward alone",
    "saved_mib": "saved MiB/picture",
    "peak_mib": "peak MiB",
    "step": "step ÷ full",
    "forward": "forward ÷ base",
}
ABOUT = """\
Made by `python -m benchmarks.adapters`: each method with its defaults on a random model of timm with a linear head of
{classes} classes, pictures of 224 × 224, AdamW, fp32.

- trained: numbers that are trained, without the head.
- GFLOP/picture: forward and backward, by torch's counter. Forward alone: of the tuned model as it is used, merged where
  the method merges.
- saved MiB/picture: storages that autograd keeps for the backward pass, weights and inputs not counted.
- peak MiB: largest sum of weights, inputs, gradients, optimizer state and activations alive at once with a batch of
  {counted}; scratch memory inside kernels is not seen.
- step ÷ full: seconds of a training step with a batch of {timed} as a share of full fine-tuning's in the same round,
  median of {repeats} rounds. Forward ÷ base: the same for a forward pass without gradients, against the bare model."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one backbone. Times are relative, and None where they were not measured."""

    backbone: str
    method: str
    trained: int
    gflops: float
    forward_gflops: float
    saved_mib: float
    peak_mib: float
    step: float | None = None
    forward: float | None = None


class Tuned:
    """A model with an adapter and a head on one batch; steps can be taken again and again."""

    def __init__(self, model: nn.Module, config: AdapterConfig | None, pictures: int) -> None:
        self.model = model.requires_grad_(False)
        self.attached: Attached | None = attach(self.model, config) if config else None
        self.head = nn.Linear(self.model.num_features, CLASSES)
        self.trained = list(self.attached.named_parameters().values()) if self.attached else []
        self._optimizer: torch.optim.Optimizer | None = None
        self.pixels = torch.randn(pictures, 3, 224, 224)
        self._labels = torch.zeros(pictures, dtype=torch.long)
        self._number = 0

    def loss(self) -> Tensor:
        self._number += 1
        self.model.eval()  # without the backbone's own drops
        if self.attached:
            self.attached.train_mode()
            self.attached.begin_step(self._number, torch.arange(len(self.pixels)))
        return F.cross_entropy(self.head(self.model(self.pixels)), self._labels)

    def finish(self) -> None:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW([*self.trained, *self.head.parameters()], lr=1e-5)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def known(self) -> list[Tensor]:
        """What is in memory between steps."""
        assert self._optimizer
        state = [value for one in self._optimizer.state.values() for value in one.values()]
        modules = [*self.model.parameters(), *self.model.buffers(), *self.head.parameters()]
        tensors = [*modules, *self.trained, self.pixels, self._labels, *state]
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]

    def step(self) -> None:
        self.loss().backward()
        self.finish()

    @torch.no_grad()
    def answer(self) -> Tensor:
        return self.model(self.pixels)

    @contextmanager
    def used(self) -> Iterator[None]:
        """As it is used after training: merged where the method merges."""
        self.model.eval()
        if self.attached is None:
            yield
            return
        self.attached.eval_mode()
        if self.attached.mergeable:
            self.attached.merge(1.0)
        yield
        if self.attached.mergeable:
            self.attached.unmerge()


def methods_on(name: str, model: nn.Module) -> dict[str, AdapterConfig | None]:
    """Those that a backbone can have."""
    possible = {}
    for method, config in METHODS.items():
        try:
            if config:
                attach(model, config).detach()
        except TetherError as error:
            print(f"{name}: not {method}: {error}", file=sys.stderr, flush=True)
            continue
        possible[method] = config
    return possible


def counted(backbone: str, model: nn.Module, method: str, config: AdapterConfig | None, pictures: int) -> Row:
    """A row without times, on shapes alone."""
    tuned, bare = Tuned(copy.deepcopy(model), config, pictures), Tuned(model, None, pictures)
    with FakeCopyMode(FakeTensorMode(allow_non_fake_inputs=True)):
        tuned, bare = copy.deepcopy(tuned), copy.deepcopy(bare)
    with known_to_be_safe():
        found = cost(tuned.loss, tuned.finish, tuned.known)
        tuned.model.eval()
        if tuned.attached:
            tuned.attached.eval_mode()
        merges = tuned.attached is not None and tuned.attached.mergeable
        used = bare if merges else tuned  # when it is merged it costs what the bare model costs
        with flop_counter() as counter:
            used.answer()
    return Row(
        backbone=backbone,
        method=method,
        trained=sum(parameter.numel() for parameter in tuned.trained),
        gflops=found.flops / pictures / 1e9,
        forward_gflops=counter.get_total_flops() / pictures / 1e9,
        saved_mib=found.saved_bytes / pictures / 2**20,
        peak_mib=found.peak_bytes / 2**20,
    )


def timed(
    backbone: str, model: nn.Module, methods: dict[str, AdapterConfig | None], pictures: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """By method: seconds of a step as a share of full fine-tuning's, and of a forward as one of the bare model's."""
    tuned = {method: Tuned(copy.deepcopy(model), config, pictures) for method, config in methods.items()}
    steps: dict[str, list[float]] = {method: [] for method in tuned}
    for number in range(repeats + 1):  # the first warms up
        for method, one in tuned.items():
            seconds = _seconds(one.step)
            if number:
                steps[method].append(seconds)
        print(f"{backbone}: round {number} of {repeats} of steps", file=sys.stderr, flush=True)
    forwards: dict[str, list[float]] = {method: [] for method in tuned}
    for method, one in tuned.items():
        with one.used():
            one.answer()
            for _ in range(repeats):
                base = _seconds(tuned["linear probe"].answer)
                forwards[method].append(_seconds(one.answer) / base)
    return {
        method: (
            median(a / b for a, b in zip(steps[method], steps["full"], strict=True)),
            median(forwards[method]),
        )
        for method in tuned
    }


class LiteralMona(Mona):
    """The same function in the order of the published forward: one convolution after the other."""

    def forward(self, x: Tensor) -> Tensor:
        norm = F.layer_norm(x, x.shape[-1:], self.norm["weight"], self.norm["bias"], 1e-5)
        z = self.down(norm * self.scale_norm + x * self.scale_input)
        z = z.unflatten(1, self.grid.of(z.shape[1])).permute(0, 3, 1, 2)
        own, hidden = self.convolutions, z.shape[1]
        mixed = [
            F.conv2d(z, getattr(own, f"weight{k}"), getattr(own, f"bias{k}"), padding=k // 2, groups=hidden)
            for k in KERNELS
        ]
        z = (mixed[0] + mixed[1] + mixed[2]) / 3.0 + z
        z = z + F.conv2d(z, own.pointwise.weight[:, :, None, None], own.pointwise.bias)
        z = z.permute(0, 2, 3, 1).flatten(1, 2)
        return self.up(F.dropout(F.gelu(z), self.dropout, self.training))


def mona_against_the_literal_form(pictures: int, repeats: int) -> list[str]:
    """Seconds of the published order as a multiple of ours, per stage of Swin-T, forward and backward."""
    lines = []
    for width, side in ((96, 56), (192, 28), (384, 14), (768, 7)):
        at = Site("here", "image", 0, "mlp", width, "BNC", 0, None, False, grid=(side, side))
        ours, literal = (
            kind(at, MonaConfig(), torch.Generator().manual_seed(0)) for kind in (Mona, LiteralMona)
        )
        x = torch.randn(pictures, side * side, width, requires_grad=True)
        for one in (ours, literal):
            one.eval()
        torch.testing.assert_close(ours(x), literal(x), rtol=1e-4, atol=1e-5)

        ratios = []
        for _ in range(repeats + 1):
            seconds = [_seconds(partial(_both_ways, one, x)) for one in (ours, literal)]
            ratios.append(seconds[1] / seconds[0])
        ratios = ratios[1:]  # the first warms up
        lines.append(
            f"{side} × {side} patches of {width} channels: {median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )
    return lines


def _both_ways(module: Callable[[Tensor], Tensor], x: Tensor) -> None:
    module(x).sum().backward()


def _seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def render(rows: list[Row], mona: list[str], options: argparse.Namespace) -> str:
    """The page, as Markdown."""
    table = [[cell(getattr(row, name)) for name in COLUMNS] for row in rows]
    about = ABOUT.format(
        classes=CLASSES, counted=options.pictures, timed=options.timed, repeats=options.repeats
    )
    return "\n".join(
        [
            "# What a training step costs with each adapter",
            "",
            about,
            "",
            f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}, Python "
            f"{platform.python_version()}.",
            "",
            f"| {' | '.join(COLUMNS.values())} |",
            f"|---|---|{'---:|' * (len(COLUMNS) - 2)}",
            *(f"| {' | '.join(row)} |" for row in table),
            "",
            "## Mona: three convolutions as one",
            "",
            "How many times the seconds of ours the published order takes for the module alone, forward and backward, "
            f"{options.timed} pictures, the same numbers to rounding; median and range of {options.repeats}.",
            "",
            *(f"- {line}" for line in mona),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--pictures", type=int, default=32, help="batch that is counted")
    parser.add_argument("--timed", type=int, default=4, help="batch that is timed")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; 0 for counts alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the two files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for backbone, name in BACKBONES.items():
        model = timm.create_model(name, num_classes=0)
        methods = methods_on(name, model)
        of_this = []
        for method, config in methods.items():
            of_this.append(counted(backbone, model, method, config, options.pictures))
            print(f"{backbone}: {method} counted", file=sys.stderr, flush=True)
        if options.repeats:
            times = timed(backbone, model, methods, options.timed, options.repeats)
            of_this = [
                replace(row, step=times[row.method][0], forward=times[row.method][1]) for row in of_this
            ]
        rows += of_this
    mona = mona_against_the_literal_form(options.timed, options.repeats) if options.repeats else []
    page = render(rows, mona, options)
    save(options.output, "adapters", page, rows)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
