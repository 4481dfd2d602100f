"""Maps of several scales, as heads for pixels and objects take them, from what a backbone gives.

A backbone with stages has them; of a plain ViT's one map they are made, as in Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection" (ECCV 2022), section 3, figure 2 (c): twice and four times as fine by
transposed convolutions, as it is, and half as fine by pooling.
"""

from collections.abc import Sequence

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class Pyramid(nn.Module):
    """Maps from fine to coarse, each normalised over its channels (published Swin heads begin so too).

    Args:
        channels: of the backbone's maps.
        strides: of these, in pixels.

    Attributes:
        channels, strides: of the maps that it gives.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.scales: nn.ModuleList | None = None
        self.channels, self.strides = tuple(channels), tuple(strides)
        if len(self.channels) == 1:
            (width,), (stride,) = self.channels, self.strides
            self.scales = _scales(width)
            self.channels = (max(1, width // 4), max(1, width // 2), width, width)
            self.strides = (stride / 4, stride / 2, stride, stride * 2)
        self.norms = nn.ModuleList(map(LayerNorm2d, self.channels))

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        if self.scales is not None:
            (one,) = maps
            maps = [scale(one) for scale in self.scales]
        return [norm(one) for norm, one in zip(self.norms, maps, strict=True)]


def _scales(width: int) -> nn.ModuleList:
    half, quarter = max(1, width // 2), max(1, width // 4)
    finest = nn.Sequential(
        nn.ConvTranspose2d(width, half, 2, stride=2),
        LayerNorm2d(half),
        nn.GELU(),
        nn.ConvTranspose2d(half, quarter, 2, stride=2),
    )
    # a map of one cell stays one cell
    coarsest = nn.MaxPool2d(2, stride=2, ceil_mode=True)
    return nn.ModuleList([finest, nn.ConvTranspose2d(width, half, 2, stride=2), nn.Identity(), coarsest])
