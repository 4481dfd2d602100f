"""Which method fits which backbone: tiny random backbones, a config per method, and the pairs that cannot be.

What this says is tested in `test_matrix.py` and stands for people in docs/guides/backbones.md, whose table is made by

    python -m tests.adapters.matrix
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

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
)
from tether.adapters._tensors import tensors_of
from tether.families import AdapterConfig
from tether.models.load_torchvision import HEADS, classifier_of
from tether.models.site import Select

from ..models.image_models import IMAGE_MODELS
from . import models

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "backbones.md"
BEGIN, END = "<!-- made by python -m tests.adapters.matrix -->\n", "<!-- end -->\n"

MERGEABLE: dict[str, AdapterConfig] = {
    "full": FullConfig(),
    "last_blocks": LastBlocksConfig(),
    "norm_only": NormOnlyConfig(),
    "bias_only": BiasOnlyConfig(),
    "r_adapter": RAdapterConfig(),
    "r_adapter of MLPs, rank 2": RAdapterConfig(rank=2, select=Select(kinds=("mlp",))),
    "rep_adapter": RepAdapterConfig(hidden=4),
    "ssf": SSFConfig(initialisation="identity"),
}
METHODS: dict[str, AdapterConfig] = {
    **MERGEABLE,
    "mona": MonaConfig(hidden=4, initialisation="zero"),
    "bottleneck": BottleneckConfig(hidden=4),
    "bottleneck, Adapter+": BottleneckConfig(variant="adapter_plus", hidden=4, initialisation="zero"),
    "adaptformer": AdaptFormerConfig(hidden=4),
    "convpass": ConvpassConfig(hidden=4),
    "lorand": LoRandConfig(branches=2, rank=2),
    "sct": SCTConfig(channels=4, selection="seed"),
    "vpt": VPTConfig(tokens=2),
}


def siglip() -> nn.Module:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": models.VOCABULARY, "max_position_embeddings": models.CONTEXT}
    pictures = {"image_size": 16, "patch_size": 8}
    return SiglipModel(SiglipConfig(text_config=tower | words, vision_config=tower | pictures))


def resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "open_clip CLIP": models.open_clip_model,
    "transformers CLIP": models.transformers_model,
    "transformers SigLIP": siglip,
    **{
        name: IMAGE_MODELS[name][0]
        for name in (
            "transformers ViT",
            "transformers DINOv2",
            "transformers Swin",
            "transformers ConvNeXt",
            "timm ViT",
            "timm Swin",
            "timm ConvNeXt",
            "torchvision ViT",
            "torchvision Swin",
            "torchvision ConvNeXt",
        )
    },
    "torchvision ResNet": resnet,
}

NO_SITES = "The blocks of ResNets are not listed as sites.", "The sites of ResNet are not known"
NO_ATTENTION = "It stands behind attention, and ConvNeXt has none.", "No site is of kind attention"
NO_PROMPTS = (
    "Prompts need a sequence in which every token sees every other: there is none in windows and convolutions.",
    "no site at position 'prompt'",
)
CONVNEXTS = tuple(name for name in BACKBONES if "ConvNeXt" in name)
SWINS = tuple(name for name in BACKBONES if "Swin" in name)
ANY_BACKBONE = ("full", "norm_only", "bias_only")
"""Methods that need no site."""
IMPOSSIBLE: dict[tuple[str, str], tuple[str, str]] = {
    **{(method, "torchvision ResNet"): NO_SITES for method in METHODS if method not in ANY_BACKBONE},
    ("r_adapter", "torchvision Swin"): (
        "Its attention reads the last linear inside of a function of its own, so an adapter after that could not be "
        "merged: adapt the MLPs alone, `select.kinds=[mlp]`.",
        "ShiftedWindowAttention with a forward of its own",
    ),
    **{("sct", name): NO_ATTENTION for name in CONVNEXTS},
    **{("vpt", name): NO_PROMPTS for name in CONVNEXTS + SWINS},
}
"""By method and backbone: why not, for people, and what `attach` says."""

UNUSED = {"transformers DINOv2": {"embeddings.mask_token"}}
"""By backbone: parameters that only its pre-training reads, so that they get no gradient."""


@cache
def backbone(name: str) -> nn.Module:
    """The random model of a name, the same at every call; copy it before anything is attached."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BACKBONES[name]()
    if isinstance(module, tuple(HEADS)):  # whose head is 0 at first; `tether.load` takes it off too
        module.set_submodule(classifier_of(module), nn.Identity())
    return models.randomise(module)


def outputs(module: nn.Module) -> list[Tensor]:
    """What every tower of a backbone answers to a fixed batch."""
    if hasattr(module, "logit_scale"):
        return models.features(module)
    pixels = torch.randn(models.TEXTS, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return list(tensors_of(module(pixels)))


def table() -> str:
    """A row per backbone, a column per method, and the reasons of what is missing, as Markdown."""
    reasons = list(dict.fromkeys(reason for reason, _ in IMPOSSIBLE.values()))

    def cell(method: str, name: str) -> str:
        if (method, name) in IMPOSSIBLE:
            return f"no ({reasons.index(IMPOSSIBLE[method, name][0]) + 1})"
        return "yes"

    lines = [
        f"| backbone | {' | '.join(METHODS)} |",
        "|---|" + "---|" * len(METHODS),
        *(f"| {name} | {' | '.join(cell(method, name) for method in METHODS)} |" for name in BACKBONES),
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)),
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
