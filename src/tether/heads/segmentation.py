"""A class for every pixel, from feature maps: UPerNet (Xiao et al., ECCV 2018), by transformers' modules.

With an auxiliary FCN head (Long et al., CVPR 2015) on a coarser map while it is trained, as in the published recipes.
Two things differ from these: `Pyramid` stands in front, so that a plain ViT has maps of several scales too; and group
normalisation (Wu & He, ECCV 2018) stands in place of batch normalisation, whose statistics of a few crops are noise,
differ between processes and do not follow a running average of the weights.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.upernet.configuration_upernet import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from tether.data.targets import IGNORE
from tether.heads.pyramid import Pyramid


class SegmentationHead(nn.Module):
    """UPerNet on the feature maps of a backbone.

        head = SegmentationHead(classes=21, channels=(96, 192, 384, 768), strides=model.strides)
        logits = head(model.feature_maps(pixels))              # [b, 21, h / 4, w / 4]
        loss = head.loss(model.feature_maps(pixels), truth)    # truth [b, h, w], IGNORE where there is none

    Args:
        classes: that are told apart, the background included.
        channels, strides: of the backbone's maps.
        hidden: width of the head; 512 in the paper's experiments.
        pool_scales: cells a side of the pooled maps.
        auxiliary: weight of the auxiliary head's loss; 0 is without one.
        auxiliary_hidden: its width.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: Sequence[int],
        strides: Sequence[int],
        hidden: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        auxiliary: float = 0.4,
        auxiliary_hidden: int = 256,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, strides)
        config = UperNetConfig(
            hidden_size=hidden,
            pool_scales=list(pool_scales),
            num_labels=classes,
            auxiliary_channels=auxiliary_hidden,
            auxiliary_num_convs=1,
            auxiliary_concat_input=False,
        )
        widths = self.pyramid.channels
        self.decoder = _group_normalised(UperNetHead(config, widths))
        self.auxiliary_weight = auxiliary
        self.auxiliary = None
        if auxiliary:
            last_but_one = max(0, len(widths) - 2)
            self.auxiliary = _group_normalised(UperNetFCNHead(config, widths, in_index=last_but_one))

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b classes _ _"]:
        """Logits at the resolution of the finest map."""
        return self.decoder(self.pyramid(maps))

    def loss(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]], truth: Int[Tensor, "b h w"], *, smoothing: float = 0.0
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "b classes _ _"]]:
        """Mean cross-entropy over the pixels that have a class, the auxiliary head's added by its weight; and logits.

        Args:
            truth: class or `IGNORE` of every pixel of the input.
            smoothing: ε of label smoothing, 0 ≤ ε < 1.
        """
        scales = self.pyramid(maps)
        logits = self.decoder(scales)
        loss = pixel_cross_entropy(logits, truth, smoothing=smoothing)
        if self.auxiliary is not None:
            aside = pixel_cross_entropy(self.auxiliary(scales), truth, smoothing=smoothing)
            loss = loss + self.auxiliary_weight * aside
        return loss, logits


def pixel_cross_entropy(
    logits: Float[Tensor, "b classes _ _"], truth: Int[Tensor, "b h w"], *, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy of logits, scaled up bilinearly, over the pixels that have a class; 0 where none has."""
    large = F.interpolate(logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(large, truth, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum")
    return total / (truth != IGNORE).sum().clamp(min=1)


def classes_of_pixels(
    logits: Float[Tensor, "classes _ _"],
    input_size: tuple[int, int],
    content: tuple[int, int],
    size: tuple[int, int],
) -> Int[Tensor, "h w"]:
    """The class of every pixel of a picture, from the logits of the input that it was fitted into.

    Args:
        input_size: (height, width) of the input.
        content: (height, width) of what the picture fills of it, from the left and top.
        size: (height, width) of the picture.
    """
    large = F.interpolate(logits[None].float(), size=input_size, mode="bilinear", align_corners=False)
    filled = large[:, :, : content[0], : content[1]]
    return F.interpolate(filled, size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def _group_normalised(module: nn.Module) -> nn.Module:
    """The module with a group norm in the place of each batch norm: 8 channels a group or more, 32 groups at most."""
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                width = child.num_features
                groups = math.gcd(32, width, max(1, width // 8))
                setattr(part, name, nn.GroupNorm(groups, width))
    return module
