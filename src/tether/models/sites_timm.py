"""Where timm's ViT (plain, EVA, NaFlex, hybrid), Swin (1 and 2) and ConvNeXt have their sites.

Blocks of Swin and ConvNeXt are found by their class, so also in what `features_only=True` makes of these models.
"""

from collections.abc import Iterator

from timm.layers import HybridEmbed
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models._features import FeatureDictNet
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from tether.models.block_sites import block_sites, is_linear
from tether.models.branches import Branch, convolutional, post_norm, pre_norm
from tether.models.site import Site

MAPS = (SwinTransformer, SwinTransformerV2, ConvNeXt, FeatureDictNet)
BLOCKS = (SwinTransformerBlock, SwinTransformerV2Block, ConvNeXtBlock)

LASTS = {DepthwiseSeparableConv: "conv_pw", InvertedResidual: "conv_pwl", EdgeResidual: "conv_pwl"}
"""The last convolution of each of EfficientNet's blocks."""


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner` if it is one of these models."""
    if isinstance(owner, VisionTransformer | Eva | NaFlexVit):
        yield from _transformer(owner, prefix)
    elif isinstance(owner, MAPS):
        blocks = [(name, part) for name, part in owner.named_modules() if isinstance(part, BLOCKS)]
        for depth, (name, block) in enumerate(blocks):
            if isinstance(block, ConvNeXtBlock):
                yield from _convnext_block(block, f"{prefix}{name}", depth)
            else:
                yield from _swin_block(block, f"{prefix}{name}", depth, _grid(owner, block.input_resolution))


def _transformer(owner: nn.Module, prefix: str) -> Iterator[Site]:
    embed = getattr(owner, "patch_embed", None)
    if isinstance(embed, HybridEmbed):
        yield from _stem(embed, f"{prefix}patch_embed")
    for depth, block in enumerate(owner.blocks):
        yield from block_sites(
            block,
            f"{prefix}blocks.{depth}",
            tower="image",
            depth=depth,
            width=owner.embed_dim,
            tokens="BNC",
            prefix_tokens=owner.num_prefix_tokens,
            attention=("attn.proj", "attn.proj") if is_linear(block, "attn.proj") else None,
            mlp="mlp.fc2" if is_linear(block, "mlp.fc2") else None,
            uncalled=_uncalled(block),
            grid=_grid(owner, getattr(embed, "grid_size", None)),
            branches=_branches(block),
            # a rotary position embedding and NaFlexVit's masks are made for the tokens as they were
            prompts=isinstance(owner, VisionTransformer) and isinstance(block, Block | ResPostBlock),
        )


def _branches(block: nn.Module) -> tuple[Branch, ...]:
    """The branches of a block of a Transformer; none of blocks that run several branches side by side."""
    if isinstance(block, Block | EvaBlock):
        return pre_norm("norm1", ("attn", "output"), "norm2", ("mlp", "output"))
    if isinstance(block, ResPostBlock | EvaBlockPostNorm):
        return post_norm("norm1", "mlp", "norm2")
    return ()


def _swin_block(block: nn.Module, path: str, depth: int, grid: tuple[int, int] | None) -> Iterator[Site]:
    second = isinstance(block, SwinTransformerV2Block)
    yield from block_sites(
        block,
        path,
        tower="image",
        depth=depth,
        width=block.dim,
        tokens="BNC",
        prefix_tokens=0,
        attention=("attn.proj", "attn.proj"),
        mlp="mlp.fc2",
        windows=True,
        layouts={"": "BHWC", "norm1": "BHWC", "drop_path1": "BHWC"},
        uncalled=_uncalled(block),
        grid=grid,
        branches=post_norm("norm1", "mlp", "norm2")
        if second  # its attention sees windows, what goes into drop path is the map again
        else pre_norm("norm1", ("drop_path1", "input"), "norm2", ("mlp", "output")),
    )


def _convnext_block(block: ConvNeXtBlock, path: str, depth: int) -> Iterator[Site]:
    yield from block_sites(
        block,
        path,
        tower="image",
        depth=depth,
        width=block.mlp.fc2.weight.shape[0],
        tokens="BHWC" if isinstance(block.mlp.fc2, nn.Linear) else "BCHW",
        prefix_tokens=0,
        attention=None,
        mlp="mlp.fc2",
        layouts={"": "BCHW"},
        branches=convolutional("norm", "mlp"),
    )


def _grid(owner: nn.Module, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid of patches where `owner` takes pictures of one size only."""
    embed = getattr(owner, "patch_embed", None)
    fixed = getattr(embed, "strict_img_size", False) and not getattr(owner, "dynamic_img_size", False)
    fixed = fixed or isinstance(embed, HybridEmbed)
    return tuple(grid) if fixed and grid is not None else None


def _stem(embed: HybridEmbed, path: str) -> Iterator[Site]:
    """The stem of a hybrid: what EfficientNet's blocks give or add, and the projection that makes tokens of it."""
    found = [f"{name}.{LASTS[type(part)]}" for name, part in embed.named_modules() if type(part) in LASTS]
    for name in [*found, "proj"]:
        convolution = embed.get_submodule(name)
        if isinstance(convolution, nn.Conv2d) and convolution.groups == 1:
            width = convolution.out_channels
            yield Site(f"{path}.{name}", "image", 0, "stem", width, "BCHW", 0, f"{path}.{name}", False)


def _uncalled(block: nn.Module) -> tuple[str, ...]:
    """EVA and Swin 2 keep the biases apart and read the weight of `qkv` without calling it."""
    return ("attn.qkv",) if getattr(getattr(block, "attn", None), "q_bias", None) is not None else ()
