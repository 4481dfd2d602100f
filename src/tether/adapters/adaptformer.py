"""AdaptFormer (Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022).

Beside the norm and the MLP of a block, on the stream h1 behind its attention:

    h2 = h1 + MLP(norm(h1)) + s U dropout(ReLU(D h1 + c) ) + s b

D is uniform at the start as PyTorch starts linears, U and both biases c and b are 0: a new module does nothing. s is
0.1, fixed or learned. A module of width m with n hidden channels has 2 n m + n + m numbers, and 1 if s is learned.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tether.adapters.layers import Linear, pytorch_default
from tether.adapters.placed import PlacedConfig, require_probability, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Kind, Position, Site


@method("adaptformer")
@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(PlacedConfig):
    """A bottleneck beside the MLP of every block (AdaptFormer; Chen et al., NeurIPS 2022).

    Args:
        hidden: channels of the bottleneck; the published code takes 64 in ViT and about a twelfth of each stage's
            width in Swin, which None gives everywhere.
        scale: s.
        learned_scale: whether s is trained, from `scale` on; one number per module.
        dropout: probability with which single values are dropped behind ReLU.

    Raises:
        TetherError: a value is out of range.
    """

    hidden: int | None = 64
    scale: float = 0.1
    learned_scale: bool = False
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
        return "parallel"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("mlp",)

    def module(self, site: Site, generator: torch.Generator) -> "AdaptFormer":
        hidden = max(1, site.width // 12) if self.hidden is None else self.hidden
        weight, _ = pytorch_default((hidden, site.width), generator)
        return AdaptFormer(site, Linear(weight), self)


class AdaptFormer(Placed):
    """f(x) = s U dropout(ReLU(D x)) at one site.

    Args:
        site: where it stands.
        down: D.
        config: the rest.
    """

    def __init__(self, site: Site, down: Linear, config: AdaptFormerConfig) -> None:
        super().__init__(site)
        self.down = down
        self.up = Linear(torch.zeros(site.width, len(down.weight), device="cpu"))
        scale = torch.full((), config.scale, device="cpu")
        self.scale = nn.Parameter(scale) if config.learned_scale else config.scale
        self.dropout = config.dropout

    def forward(self, x: Rows) -> Rows:
        return self.up(F.dropout(F.relu(self.down(x)), self.dropout, self.training)) * self.scale
