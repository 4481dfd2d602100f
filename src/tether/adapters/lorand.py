"""LoRand (Yin et al., "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions", CVPR 2023).

On what attention and MLP give, before each residual sum, a bottleneck to half the width whose two projections are sums
of products of low rank:

    f(x) = U GELU(D x + c) + b,    D, U = Σᵢ Pᵢ Kᵢ Qᵢ,    i = 1 … a

with P [in, r], K [r, r], Q [r, out] in each of the a branches. A module of width m has 2 a (r m + r² + r m / 2) + 1.5 m
numbers. "LoRand" is a = 2, r = 8 or a = 4, r = 8 (the default), "LoRand++" is a = 4, r = 16.

All factors are uniform up to 1 / √columns at the start, as PyTorch's Kaiming initialisation with a = √5 draws each of
them, biases up to 1 / √(width of the input): a new module is not the identity. The published code has no K that both
projections share, of which the paper speaks; neither has this.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.layers import uniform
from tether.adapters.placed import PlacedConfig, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.models.site import Position, Site


@method("lorand")
@dataclass(frozen=True, kw_only=True)
class LoRandConfig(PlacedConfig):
    """Bottlenecks of low rank on what attention and MLP give (LoRand; Yin et al., CVPR 2023).

    Args:
        branches: how many products are summed; 2 and 4 are published.
        rank: of each; 8, and 16 for LoRand++ (with 4 branches).

    Raises:
        TetherError: a value is below 1.
    """

    branches: int = 4
    rank: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_width("branches", self.branches)
        require_width("rank", self.rank)

    @property
    def position(self) -> Position:
        return "branch"

    @property
    def identity_at_start(self) -> bool:
        return False

    def module(self, site: Site, generator: torch.Generator) -> "LoRand":
        return LoRand(site, self, generator)


class LowRank(nn.Module):
    """x W + b with W = Σᵢ Pᵢ Kᵢ Qᵢ.

    Args:
        inputs: columns of x.
        outputs: columns of W.
        config: branches and rank.
        generator: draws the first values.
    """

    def __init__(self, inputs: int, outputs: int, config: LoRandConfig, generator: torch.Generator) -> None:
        super().__init__()
        a, r = config.branches, config.rank
        self.p = nn.Parameter(uniform((a, inputs, r), 1 / math.sqrt(r), generator))
        self.k = nn.Parameter(uniform((a, r, r), 1 / math.sqrt(r), generator))
        self.q = nn.Parameter(uniform((a, r, outputs), 1 / math.sqrt(outputs), generator))
        self.bias = nn.Parameter(uniform((outputs,), 1 / math.sqrt(inputs), generator))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """By way of a r columns: W itself is never made."""
        down = self.p.movedim(0, 1).flatten(1)  # [inputs, a r]
        up = torch.bmm(self.k, self.q).flatten(0, 1)  # [a r, outputs]
        return F.linear(F.linear(x, down.T.to(x.dtype)), up.T.to(x.dtype), self.bias.to(x.dtype))


class LoRand(Placed):
    """f(x) = U GELU(D x) at one site.

    Args:
        site: where it stands.
        config: branches and rank.
        generator: draws the first values.
    """

    def __init__(self, site: Site, config: LoRandConfig, generator: torch.Generator) -> None:
        super().__init__(site)
        half = max(1, site.width // 2)
        self.down = LowRank(site.width, half, config, generator)
        self.up = LowRank(half, site.width, config, generator)

    def forward(self, x: Rows) -> Rows:
        return self.up(F.gelu(self.down(x)))
