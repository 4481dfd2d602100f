"""The image trunk of the built-in model: a small ViT on top of a convolutional stem, registered with timm.

A plain small ViT learns too slowly from scratch; a stem that was trained on ImageNet gives it eyes. The stem is
EfficientNet-Lite0 (Tan, 2020) cut at stride 16, its batch normalisation folded into the convolutions (so nothing
depends on the batch), and split in two: `lower` (to stride 8) is meant to stay frozen, so that its output can be
computed once per picture and kept; `upper` (to stride 16) trains with the rest.
"""

from itertools import pairwise

import timm
import torch
from jaxtyping import Float
from timm.layers import HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_LOWER_STAGES, _UPPER_STAGES = 3, 2


class LiteStem(nn.Module):
    """EfficientNet-Lite0 up to stride 16: pictures [batch, 3, 16h, 16w] to features [batch, 112, h, w]."""

    def __init__(self, network: nn.Module | None = None):
        """`network`: timm's `efficientnet_lite0`, with trained weights; without it the weights are random."""
        super().__init__()
        network = network or timm.create_model("efficientnet_lite0", pretrained=False)
        _fold_batch_norms(network.eval())
        stages = list(network.blocks.children())
        self.lower = nn.Sequential(network.conv_stem, network.bn1, *stages[:_LOWER_STAGES])
        self.upper = nn.Sequential(*stages[_LOWER_STAGES : _LOWER_STAGES + _UPPER_STAGES])

    def forward(self, pixels: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """In fp32 also under autocast: depth-wise convolutions are no faster in bf16, their backward slower."""
        with torch.autocast(pixels.device.type, enabled=False):
            # twice as fast on a CPU than channels first
            return self.upper(self.lower(pixels.contiguous(memory_format=torch.channels_last)))


@register_model
def tether_vit_lite0(pretrained: bool = False, **options) -> VisionTransformer:
    """A ViT of width 192 on the 7×7 features that `LiteStem` makes of a 112-pixel picture."""
    if pretrained:
        raise ValueError(
            "tether_vit_lite0 has no weights of its own; load the built-in model with tether.load()."
        )
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    options = {
        "img_size": 112,
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 3,
        "global_pool": "avg",
        "class_token": False,
    } | options
    model = VisionTransformer(embed_layer=_embed, patch_size=16, **options)
    model.default_cfg = {"input_size": (3, 112, 112), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_classes": 0}
    return model


def _embed(img_size: int, in_chans: int, embed_dim: int, bias: bool = True, **_ignored) -> HybridEmbed:
    return HybridEmbed(LiteStem(), img_size=img_size, in_chans=in_chans, embed_dim=embed_dim, bias=bias)


def _fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, leaving its activation in its place."""
    for module in network.modules():
        children = dict(module.named_children())
        names = list(children)
        for before, after in pairwise(names):
            conv, norm = children[before], children[after]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, norm.act)
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise RuntimeError(
            "A batch normalisation of EfficientNet-Lite0 follows no convolution; timm has changed."
        )
