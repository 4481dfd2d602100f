"""Mona: multi-cognitive visual adapters (Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on
Visual Recognition Tasks", CVPR 2025).

Behind attention and behind the MLP, on the residual stream x of m channels:

    u = s1 LN(x) + s2 x                            scaled layer norm
    z = D u                                        down to n channels
    a = z + (DW3 z + DW5 z + DW7 z) / 3            depth-wise convolutions on the map of patches
    b = a + P a                                    1×1 convolution
    x + U dropout(GELU(b))                         up again

D, U, DWk and P have biases. The paper writes s1 and s2 as scalars and counts (2n + 3) m + n² + 84 n + 2 numbers per
module; the published code, which is followed here, has a vector of length m for each and biases in the convolutions:
(2n + 5) m + n² + 88 n. Prefix tokens (class token, registers) lie on no map, and the paper does not have them.

The three convolutions and the skip around them are one 7×7 kernel, P and its skip one matrix, s1 part of the norm's own
scale and shift: the same function with fewer passes over the map.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.layers import Linear, normal, pytorch_default
from tether.adapters.placed import PlacedConfig, require_known, require_probability, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.models.site import Position, Select, Site

KERNELS = (3, 5, 7)
EPSILON = 1e-5
STD, TRUNCATION = 0.02, 100.0  # published as cut at −2 and 2, that is, not at all


@method("mona")
@dataclass(frozen=True, kw_only=True)
class MonaConfig(PlacedConfig):
    """Mona behind the attention and the MLP of every block (Yin et al., CVPR 2025).

    Args:
        hidden: n.
        initialisation: "official" draws D and U with standard deviation 0.02, as published: a new module moves its
            input by 3 to 10 %. "zero" starts U at 0, so that a new module does nothing.
        prefix: what prefix tokens get: "linear" all but the depth-wise convolutions, "skip" nothing.
        dropout: probability with which single values are dropped behind GELU.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    spatial = True

    select: Select = field(default_factory=lambda: Select(tower="image"))
    hidden: int = 64
    initialisation: Literal["official", "zero"] = "official"
    prefix: Literal["linear", "skip"] = "linear"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_width("hidden", self.hidden)
        require_probability("dropout", self.dropout)
        require_known(self, initialisation=("official", "zero"), prefix=("linear", "skip"))

    @property
    def position(self) -> Position:
        return "after"

    @property
    def identity_at_start(self) -> bool:
        return self.initialisation == "zero"

    def module(self, site: Site, generator: torch.Generator) -> "Mona":
        kind = MonaOfPatches if self.prefix == "skip" and site.prefix_tokens else Mona
        return kind(site, self, generator)


class Convolutions(nn.Module):
    """b of z: the depth-wise convolutions and the 1×1 convolution, with their skips.

    Args:
        channels: n.
        generator: draws the first values as PyTorch does.
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        for size in KERNELS:
            weight, bias = pytorch_default((channels, 1, size, size), generator)
            self.register_parameter(f"weight{size}", nn.Parameter(weight))
            self.register_parameter(f"bias{size}", nn.Parameter(bias))
        self.pointwise = Linear(*pytorch_default((channels, channels), generator))

    def forward(self, z: Float[Tensor, "batch height width n"]) -> Float[Tensor, "batch height width n"]:
        weight, bias = self.kernel()
        largest = KERNELS[-1]
        a = F.conv2d(
            z.movedim(-1, 1), weight.to(z.dtype), bias.to(z.dtype), padding=largest // 2, groups=len(weight)
        )
        return self.point(a.movedim(1, -1))

    def point(self, a: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """a + P a."""
        identity = torch.eye(len(self.pointwise.weight), device=a.device, dtype=self.pointwise.weight.dtype)
        return F.linear(a, (self.pointwise.weight + identity).to(a.dtype), self.pointwise.bias.to(a.dtype))

    def kernel(self) -> tuple[Float[Tensor, "n 1 7 7"], Float[Tensor, " n"]]:
        """The one kernel, and its bias, of all depth-wise convolutions and the skip around them."""
        largest = KERNELS[-1]
        weights = [F.pad(getattr(self, f"weight{size}"), [(largest - size) // 2] * 4) for size in KERNELS]
        skip = torch.zeros_like(weights[-1][:1])
        skip[..., largest // 2, largest // 2] = 1
        biases = [getattr(self, f"bias{size}") for size in KERNELS]
        return sum(weights) / len(KERNELS) + skip, sum(biases) / len(KERNELS)


class Mona(Placed):
    """f(x) = U dropout(GELU(b)) at one site."""

    mixes_tokens = True

    def __init__(self, site: Site, config: MonaConfig, generator: torch.Generator) -> None:
        super().__init__(site)
        width, hidden = site.width, config.hidden
        self.norm = nn.ParameterDict(
            {"weight": torch.ones(width, device="cpu"), "bias": torch.zeros(width, device="cpu")}
        )
        self.scale_norm = nn.Parameter(torch.full((width,), 1e-6, device="cpu"))
        self.scale_input = nn.Parameter(torch.ones(width, device="cpu"))
        self.down = Linear(normal((hidden, width), STD, generator, TRUNCATION))
        self.convolutions = Convolutions(hidden, generator)
        up = normal((width, hidden), STD, generator, TRUNCATION)
        self.up = Linear(torch.zeros_like(up) if config.initialisation == "zero" else up)
        self.dropout = config.dropout

    def forward(self, x: Rows) -> Rows:
        b = self.on_map(self.narrowed(x), self.convolutions, self.convolutions.point)
        return self.widened(b)

    def narrowed(self, x: Rows) -> Float[Tensor, "batch *tokens n"]:
        """z = D u."""
        weight, bias = self.norm["weight"] * self.scale_norm, self.norm["bias"] * self.scale_norm
        normalized = F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), EPSILON)
        return self.down(torch.addcmul(normalized, x, self.scale_input.to(x.dtype)))

    def widened(self, b: Float[Tensor, "batch *tokens n"]) -> Rows:
        """U dropout(GELU(b))."""
        return self.up(F.dropout(F.gelu(b), self.dropout, self.training))


class MonaOfPatches(Mona):
    """The same for patches alone: prefix tokens get nothing."""

    def forward(self, x: Rows) -> Rows:
        prefix = self.site.prefix_tokens
        z = self.narrowed(x[:, prefix:])
        b = self.convolutions(z.unflatten(1, self.grid.of(x.shape[1]))).flatten(1, 2)
        return F.pad(self.widened(b), (0, 0, prefix, 0))
