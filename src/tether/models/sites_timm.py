"""Where timm's ViT (plain, EVA, NaFlex, hybrid), Swin (1 and 2) and ConvNeXt have their sites."""

from collections.abc import Iterator

from timm.layers import HybridEmbed
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tether.models.site import Site, block_sites, is_linear

LASTS = {DepthwiseSeparableConv: "conv_pw", InvertedResidual: "conv_pwl", EdgeResidual: "conv_pwl"}
"""The last convolution of each of EfficientNet's blocks."""


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner` if it is one of these models."""
    if isinstance(owner, VisionTransformer | Eva | NaFlexVit):
        class_token = owner.num_prefix_tokens > 0
        if isinstance(owner.patch_embed, HybridEmbed):
            yield from _stem(owner.patch_embed, f"{prefix}patch_embed")
        for depth, block in enumerate(owner.blocks):
            yield from block_sites(
                block,
                f"{prefix}blocks.{depth}",
                tower="image",
                depth=depth,
                width=owner.embed_dim,
                tokens="BNC",
                class_token=class_token,
                attention=("attn.proj", "attn.proj") if is_linear(block, "attn.proj") else None,
                mlp="mlp.fc2" if is_linear(block, "mlp.fc2") else None,
                uncalled=_uncalled(block),
            )
    elif isinstance(owner, SwinTransformer | SwinTransformerV2):
        for depth, (path, block) in enumerate(_stages(owner.layers, f"{prefix}layers")):
            yield from block_sites(
                block,
                path,
                tower="image",
                depth=depth,
                width=block.dim,
                tokens="BNC",
                class_token=False,
                attention=("attn.proj", "attn.proj"),
                mlp="mlp.fc2",
                windows=True,
                layouts={"": "BHWC", "norm1": "BHWC"},
                uncalled=_uncalled(block),
            )
    elif isinstance(owner, ConvNeXt):
        for depth, (path, block) in enumerate(_stages(owner.stages, f"{prefix}stages")):
            convolutions = not isinstance(block.mlp.fc2, nn.Linear)
            yield from block_sites(
                block,
                path,
                tower="image",
                depth=depth,
                width=block.mlp.fc2.weight.shape[0],
                tokens="BCHW" if convolutions else "BHWC",
                class_token=False,
                attention=None,
                mlp="mlp.fc2",
                layouts={"": "BCHW"},
            )


def _stages(stages: nn.Sequential, path: str) -> Iterator[tuple[str, nn.Module]]:
    for s, stage in enumerate(stages):
        for b, block in enumerate(stage.blocks):
            yield f"{path}.{s}.blocks.{b}", block


def _stem(embed: HybridEmbed, path: str) -> Iterator[Site]:
    """The stem of a hybrid: what EfficientNet's blocks give or add, and the projection that makes tokens of it."""
    found = [f"{name}.{LASTS[type(part)]}" for name, part in embed.named_modules() if type(part) in LASTS]
    for name in [*found, "proj"]:
        convolution = embed.get_submodule(name)
        if isinstance(convolution, nn.Conv2d) and convolution.groups == 1:
            width = convolution.out_channels
            yield Site(f"{path}.{name}", "image", 0, "stem", width, "BCHW", False, f"{path}.{name}", False)


def _uncalled(block: nn.Module) -> tuple[str, ...]:
    """EVA and Swin 2 keep the biases apart and read the weight of `qkv` without calling it."""
    return ("attn.qkv",) if getattr(getattr(block, "attn", None), "q_bias", None) is not None else ()
