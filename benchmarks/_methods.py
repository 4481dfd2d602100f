"""The four ways of fine-tuning that are compared, each as one training step on the same kind of batch.

Full fine-tuning, LoRA and the naive R-Adapter run as published code runs them: every picture brings its own
text, and every text has the full context length (77 tokens). Ours is the step of
`tether.tasks.classification`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from open_clip import get_model_config, get_tokenizer
from open_clip.model import CLIP
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from tether.adapters import FullConfig, RAdapter, RAdapterConfig, attach
from tether.adapters.r_adapter.fold import _schatten
from tether.data.prompts import fill
from tether.data.records import Benchmark
from tether.models import Model, Select, sites
from tether.models.last_block import fast_last_block
from tether.models.load_open_clip import wrap
from tether.models.site import Kind
from tether.objectives.info_nce import info_nce
from tether.objectives.mpm_nce import MPMNCEConfig, mpm_nce
from tether.recipe import Recipe
from tether.training.config import FitConfig

Batch = Mapping[str, Tensor]
Making = Callable[[], AbstractContextManager]
"""A context that weights are made in: `nullcontext`, or one of `shapes_only`."""

BLOCKS = Select().kinds
INITIAL_LOGIT_SCALE = 2.6593
LORA_RANK = 8
"""Peft's own default."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One method on one model: what it trains, and how it gets from a batch to a loss."""

    model: Model
    parameters: list[nn.Parameter]
    loss: Callable[[Batch, int], Tensor]
    note: str
    close: Callable[[], object] = lambda: None


def random_batch(benchmark: Benchmark, size: int, pixels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Labels, template numbers and example numbers drawn uniformly at random; the pictures are given."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixels": pixels,
        "label": torch.randint(len(benchmark.class_names), (size,), generator=generator),
        "text_pick": torch.randint(2**31, (size,), generator=generator),
        "index": torch.randint(10_000, (size,), generator=generator),
    }


def vit_b_16(making: Making) -> Model:
    """open_clip's ViT-B/16 with random weights."""
    with making():
        module = CLIP(**get_model_config("ViT-B-16"))
    module.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))  # its value is read
    return wrap(module, {}, get_tokenizer("ViT-B-16"), "open_clip:ViT-B-16")


def shapes_only() -> Making:
    """What is made under it has shapes and no values; operations on that follow suit, inside or outside."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def making() -> Iterator[None]:
        with patch.object(nn.Module, "to", lambda module, *_, **__: module), mode:  # one device
            yield

    return making


@contextmanager
def known_to_be_safe() -> Iterator[None]:
    """Folding asks for norms of the adapters, merging whether weights are finite, and shapes do not tell: both pass.

    Folding's costly check is done all the same, so that it is counted.
    """

    def checked(adapters: list[RAdapter]) -> list[bool]:
        for adapter in adapters:
            _schatten(adapter.factors)
        return [True] * len(adapters)

    with (
        patch("tether.adapters.r_adapter.method.safe_to_fold", torch.no_grad()(checked)),
        patch("tether.adapters.mergeable.not_finite", lambda tensors: []),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


def full(model: Model, benchmark: Benchmark, making: Making) -> Trainer:
    """Every weight of both towers is trained, with CLIP's own loss (FLYP)."""
    with making():
        attached = attach(model, FullConfig())
    return _published(model, benchmark, list(attached.named_parameters().values()), "all weights")


def lora(model: Model, benchmark: Benchmark, making: Making) -> Trainer:
    """LoRA on everything in the blocks of both towers that peft can wrap."""
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, part in model.module.named_modules()
        if _in_a_block(name) and _wrappable(name, part, model)
    ]
    with making():
        wrapped = get_peft_model(model.module, LoraConfig(r=LORA_RANK, target_modules=names))
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    kinds: dict[str, int] = {}
    for part in model.module.modules():
        if hasattr(part, "lora_A") and hasattr(part, "get_base_layer"):
            kind = type(part.get_base_layer()).__name__.replace(
                "NonDynamicallyQuantizable", "out-projection "
            )
            kinds[kind] = kinds.get(kind, 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return _published(
        model,
        benchmark,
        parameters,
        f"rank {LORA_RANK}; peft wraps {counted}; not the embeddings, norms and bare projection matrices",
    )


def naive(model: Model, benchmark: Benchmark, making: Making) -> Trainer:
    """R-Adapters as separate layers, with drop as a mask over token positions."""
    with making():
        attached = attach(model, RAdapterConfig(fold="never", granularity="token"))
    encode = _prompts(model, benchmark)

    def loss(batch: Batch, step: int) -> Tensor:
        attached.begin_step(step, batch["index"], batch["index"])
        image, text = encode(batch)
        return mpm_nce(image, text, batch["label"], model.logit_scale)

    model.module.train()
    parameters = list(attached.named_parameters().values())
    return Trainer(model=model, parameters=parameters, loss=loss, note="adapters applied one by one")


def ours(model: Model, benchmark: Benchmark, making: Making, kinds: tuple[Kind, ...] = BLOCKS) -> Trainer:
    """The library as it runs by default."""
    recipe = Recipe(
        name="speed",
        adapter=RAdapterConfig(select=Select(kinds=kinds)),
        objective=MPMNCEConfig(),
        training=FitConfig(batch_size=64, epochs=1),
    )
    task = recipe.task.make(recipe, model, benchmark)
    with making():
        attached = attach(model, recipe.adapter)
    fast = fast_last_block(model)
    task.start(attached)

    def loss(batch: Batch, step: int) -> Tensor:
        task.begin_step(step, batch)
        return task.loss(batch, step)[0]

    towers = " and ".join(fast.towers) or "no"
    return Trainer(
        model=model,
        parameters=list(task.named_parameters().values()),
        loss=loss,
        note=f"adapters folded, short text, distinct captions once, short last block of {towers} tower",
        close=fast.detach,
    )


METHODS: dict[str, Callable[[Model, Benchmark, Making], Trainer]] = {
    "full fine-tuning": full,
    "PEFT LoRA": lora,
    "naive R-Adapter": naive,
    "ours": ours,
    "ours, stem too": partial(ours, kinds=(*BLOCKS, "stem")),
}


def methods_for(model: Model) -> dict[str, Callable[[Model, Benchmark, Making], Trainer]]:
    """Those that differ on this model: without a stem, adapters in it are no method of their own."""
    has_stem = any(site.kind == "stem" for site in sites(model.module, Select(kinds=(*BLOCKS, "stem"))))
    return {name: start for name, start in METHODS.items() if has_stem or "stem" not in name}


def _prompts(model: Model, benchmark: Benchmark) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """Encoder of a batch: pictures, and for each picture its own prompt at full length."""
    tokens = torch.stack([model.tokenize(row) for row in fill(benchmark.templates, benchmark.class_names)])

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        rows = tokens[batch["label"], batch["text_pick"] % tokens.shape[1]]
        image = F.normalize(model.module.encode_image(batch["pixels"]), dim=-1)
        return image, F.normalize(model.module.encode_text(rows), dim=-1)

    return encode


def _published(model: Model, benchmark: Benchmark, parameters: list[nn.Parameter], note: str) -> Trainer:
    encode = _prompts(model, benchmark)
    model.module.train()
    return Trainer(
        model=model,
        parameters=parameters,
        loss=lambda batch, step: info_nce(*encode(batch), model.logit_scale),
        note=note,
    )


def _in_a_block(name: str) -> bool:
    return ".resblocks." in name or ".blocks." in name


def _wrappable(name: str, part: nn.Module, model: Model) -> bool:
    """Linears and fused attentions; the out-projection of a fused attention comes with it."""
    if isinstance(part, nn.MultiheadAttention):
        return True
    owner = model.module.get_submodule(name.rpartition(".")[0])
    return isinstance(part, nn.Linear) and not isinstance(owner, nn.MultiheadAttention)
