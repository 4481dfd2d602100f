"""Where torchvision's ViT, Swin (1 and 2) and ConvNeXt have their sites; attentions never call their
out-projection."""

from collections.abc import Iterator

from torch import nn
from torchvision.models.convnext import CNBlock, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from tether.models.block_sites import block_sites
from tether.models.branches import convolutional, post_norm, pre_norm
from tether.models.site import Site


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
                prefix_tokens=1,
                attention=("self_attention", "self_attention.out_proj"),
                mlp=_last_linear(block, "mlp"),
                grid=(owner.image_size // owner.patch_size,) * 2,
                branches=pre_norm("ln_1", ("self_attention", "output"), "ln_2", ("mlp", "output")),
                prompts=True,
            )
    elif isinstance(owner, SwinTransformer):
        for depth, (name, block) in enumerate(_of_class(owner.features, SwinTransformerBlock)):
            yield from block_sites(
                block,
                f"{prefix}features.{name}",
                tower="image",
                depth=depth,
                width=block.norm1.weight.shape[0],
                tokens="BHWC",
                prefix_tokens=0,
                attention=("attn", "attn.proj"),
                mlp=_last_linear(block, "mlp"),
                branches=post_norm("norm1", "mlp", "norm2")
                if isinstance(block, SwinTransformerBlockV2)
                else pre_norm("norm1", ("attn", "output"), "norm2", ("mlp", "output")),
            )
    elif isinstance(owner, ConvNeXt):
        for depth, (name, block) in enumerate(_of_class(owner.features, CNBlock)):
            mlp = _last_linear(block, "block")
            norm = next(part for part, module in block.named_modules() if isinstance(module, nn.LayerNorm))
            yield from block_sites(
                block,
                f"{prefix}features.{name}",
                tower="image",
                depth=depth,
                width=block.get_submodule(mlp).out_features,
                tokens="BHWC",
                prefix_tokens=0,
                attention=None,
                mlp=mlp,
                layouts={"": "BCHW"},
                branches=convolutional(norm, mlp),
            )


def _of_class(features: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in features.named_modules() if isinstance(part, kind)]


def _last_linear(block: nn.Module, part: str) -> str:
    linears = [name for name, one in block.get_submodule(part).named_children() if isinstance(one, nn.Linear)]
    return f"{part}.{linears[-1]}"
