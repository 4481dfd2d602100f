"""Where torchvision's ViT and Swin (1 and 2) have their sites; they never call their out-projection."""

from collections.abc import Iterator

from torch import nn
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torchvision.models.vision_transformer import VisionTransformer

from tether.models.site import Site, block_sites


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner` if it is one of these models."""
    if isinstance(owner, VisionTransformer):
        for depth, (name, block) in enumerate(owner.encoder.layers.named_children()):
            yield from block_sites(
                block,
                f"{prefix}encoder.layers.{name}",
                tower="image",
                depth=depth,
                width=owner.hidden_dim,
                tokens="BNC",
                class_token=True,
                attention=("self_attention", "self_attention.out_proj"),
                mlp=_last_linear(block.mlp),
            )
    elif isinstance(owner, SwinTransformer):
        blocks = [
            (name, part)
            for name, part in owner.features.named_modules()
            if isinstance(part, SwinTransformerBlock)
        ]
        for depth, (name, block) in enumerate(blocks):
            yield from block_sites(
                block,
                f"{prefix}features.{name}",
                tower="image",
                depth=depth,
                width=block.norm1.weight.shape[0],
                tokens="BHWC",
                class_token=False,
                attention=("attn", "attn.proj"),
                mlp=_last_linear(block.mlp),
            )


def _last_linear(mlp: nn.Sequential) -> str:
    return [f"mlp.{name}" for name, part in mlp.named_children() if isinstance(part, nn.Linear)][-1]
