"""Convpass (Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", 2022).

Beside attention and beside the MLP of every block, on what each of them reads behind its norm:

    f(x) = s U dropout(q(C q(D x))),    q(z) = z sigmoid(1.702 z)

D goes down to n channels, C is a full 3×3 convolution on the map of patches, U goes up again; f(x) is added to what the
branch gives. At the start C hands every pixel on as it is and U is 0, so that a new module does nothing. A prefix token
(class token, registers) passes C as a picture of one pixel. A module of width m has 2 n m + 9 n² + 2 n + m numbers.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.layers import Linear, uniform
from tether.adapters.placed import PlacedConfig, require_probability, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Position, Select, Site


@method("convpass")
@dataclass(frozen=True, kw_only=True)
class ConvpassConfig(PlacedConfig):
    """A bottleneck with a convolution beside attention and MLP (Convpass; Jie and Deng, 2022).

    Args:
        hidden: n.
        scale: s; the published code chooses it by task from 0.01, 0.1, 1 and 10.
        dropout: probability with which single values are dropped behind the convolution.

    Raises:
        TetherError: a value is out of range.
    """

    spatial = True

    select: Select = field(default_factory=lambda: Select(tower="image"))
    hidden: int = 8
    scale: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_width("hidden", self.hidden)
        require_probability("dropout", self.dropout)
        if not 0 < self.scale < float("inf"):
            raise TetherError(
                f"scale is a positive number, not {self.scale!r}: at 0 nothing would ever move."
            )

    @property
    def position(self) -> Position:
        return "parallel_normalized"

    def module(self, site: Site, generator: torch.Generator) -> "Convpass":
        bound = (6 / (site.width + self.hidden)) ** 0.5  # Xavier
        return Convpass(site, Linear(uniform((self.hidden, site.width), bound, generator)), self)


class Convpass(Placed):
    """f(x) = s U dropout(q(C q(D x))) at one site.

    Args:
        site: where it stands.
        down: D.
        config: the rest.
    """

    mixes_tokens = True

    def __init__(self, site: Site, down: Linear, config: ConvpassConfig) -> None:
        super().__init__(site)
        hidden = config.hidden
        kernel = torch.zeros(hidden, hidden, 3, 3, device="cpu")
        kernel[:, :, 1, 1] = torch.eye(hidden, device="cpu")
        self.down = down
        self.kernel = nn.Parameter(kernel)
        self.bias = nn.Parameter(torch.zeros(hidden, device="cpu"))
        self.up = Linear(torch.zeros(site.width, hidden, device="cpu"))
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, x: Rows) -> Rows:
        z = self.on_map(quick_gelu(self.down(x)), self.convolved, self.alone)
        return self.up(F.dropout(quick_gelu(z), self.dropout, self.training)) * self.scale

    def convolved(self, z: Float[Tensor, "batch height width n"]) -> Float[Tensor, "batch height width n"]:
        """C of a map."""
        kernel, bias = self.kernel.to(z.dtype), self.bias.to(z.dtype)
        return F.conv2d(z.movedim(-1, 1), kernel, bias, padding=1).movedim(1, -1)

    def alone(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """C of pictures of one pixel, around which there are zeros."""
        return F.linear(z, self.kernel[:, :, 1, 1].to(z.dtype), self.bias.to(z.dtype))


def quick_gelu(z: Tensor) -> Tensor:
    """z sigmoid(1.702 z)."""
    return z * torch.sigmoid(1.702 * z)
