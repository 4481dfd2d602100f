"""Where open_clip's own towers have their sites, with fused `nn.MultiheadAttention` or its newer class."""

from collections.abc import Iterator

from open_clip.model import CLIP
from open_clip.transformer import CustomResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import nn

from tether.models.block_sites import block_sites
from tether.models.branches import pre_norm
from tether.models.site import Site


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner.transformer`, if `owner` is a tower of open_clip."""
    if isinstance(owner, VisionTransformer):
        tower = "image"
    elif isinstance(owner, CLIP | TextTransformer):
        tower = "text"
    else:
        return
    for depth, block in enumerate(owner.transformer.resblocks):
        fused = isinstance(block.attn, nn.MultiheadAttention)
        batch_first = block.attn.batch_first if fused else True
        yield from block_sites(
            block,
            f"{prefix}transformer.resblocks.{depth}",
            tower=tower,
            depth=depth,
            width=owner.transformer.width,
            tokens="BNC" if batch_first else "NBC",
            prefix_tokens=int(tower == "image"),
            attention=("attn" if fused else "attn.out_proj", "attn.out_proj"),
            mlp="mlp.c_proj",
            grid=tuple(owner.grid_size) if tower == "image" else None,
            branches=pre_norm(
                "ln_1",
                # the class with its own attention has a norm behind it too, which does nothing where it is off
                ("ln_attn" if isinstance(block, CustomResidualAttentionBlock) else "attn", "output"),
                "ln_2",
                ("mlp", "output"),
            ),
            prompts=tower == "image",
        )
