"""R-Adapter: a linear map after the attention and the MLP of every block, which merges into their weights.

Kim, Jeong, Kim and Kwak, "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024
(arXiv 2408.05749), section 4.1; MIT-licensed code of the authors: sung-yeon-kim/R-Adapter-ECCV2024.

    h = y + k · A y,    A = F (full rank)  or  A = U D (low rank),    k = α s / (1 − p)

where y is the output of the attention's out-projection or of the MLP's second linear, before LayerScale and
the residual sum; or, which is ours, of a convolution over all channels, of which every pixel is a token.
p is the probability of adapter drop (training only) and α the ensemble weight (when
merging). As y = W x + b is linear too, an adapter merges into (M W, M b) with M = I + k A: from the left,
bias included.

Letters: d width of the site, r rank, i width of the linear's input.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.r_adapter.drop import KeepAll, NothingDrawn

Factors = tuple[Tensor] | tuple[Tensor, Tensor]
"""(F,) with F [d, d], or (U, D) with U [d, r] and D [r, d]."""

Rank = int | None
TENSORS = ("weight", "up", "down", "scale")


def branch(y: Float[Tensor, "*batch d"], factors: Factors) -> Float[Tensor, "*batch d"]:
    """A y for each row vector y: y Aᵀ, in the precision of y."""
    for factor in reversed(factors):
        y = F.linear(y, factor.to(y.dtype))
    return y


def multiply(factors: Factors, matrix: Float[Tensor, "d *columns"]) -> Float[Tensor, "d *columns"]:
    """A · matrix, by way of the factors: never d × d × i work at low rank."""
    columns = matrix.reshape(len(matrix), -1)  # one for a bias; channels × height × width for a kernel
    for factor in reversed(factors):
        columns = factor.to(matrix.dtype) @ columns
    return columns.view(matrix.shape)


def product(factors: Factors, k: Float[Tensor, ""] | float) -> Float[Tensor, "d d"]:
    """k · A as one matrix, in fp32 (fp64 for fp64 factors): the paper's W_adp, transposed."""
    factors = tuple(_precise(factor) for factor in factors)
    return k * (factors[0] if len(factors) == 1 else factors[0] @ factors[1])


def fold(
    weight: Float[Tensor, "d i"],
    bias: Float[Tensor, " d"] | None,
    factors: Factors,
    k: Float[Tensor, ""] | float,
) -> tuple[Float[Tensor, "d i"], Float[Tensor, " d"] | None]:
    """The linear followed by the adapter, as one linear: (M W, M b) with M = I + k A (paper, equation 6).

    Args:
        weight: W of the frozen linear y = W x + b, as `nn.Linear` holds it.
        bias: b, or None.
        factors: of A.
        k: factor of A.

    Returns:
        Weight and bias in fp32 (fp64 for fp64 weights).
    """
    weight = _precise(weight)
    folded = weight + k * multiply(factors, weight)
    if bias is None:
        return folded, None
    bias = _precise(bias)
    return folded, bias + k * multiply(factors, bias)


def delta(
    weight: Float[Tensor, "d *i"], factors: Factors, k: Float[Tensor, ""] | float
) -> Float[Tensor, "d *i"]:
    """What merging at alpha = 1 adds to a weight or bias: k A W, in fp32 (fp64 for fp64 weights)."""
    return k * multiply(factors, _precise(weight))


class RAdapter(nn.Module):
    """One adapter: h = y + gain · s · drop(A y). The identity, bit for bit, when it is new.

    Args:
        width: d.
        rank: r, or None for full rank.
        scale: initial value of s; None for no s.
        generator: draws D (Xavier-uniform, as in the published code); U or F starts at 0.

    `gain` (1 / (1 − p), or 1) and `drop` are set from outside for every step; evaluation mode resets them. Where
    the probability `p` is above 0, a training forward for which nothing was drawn warns.
    """

    p = 0.0

    def __init__(
        self, width: int, rank: Rank, scale: float | None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if rank is None:
            self._set(weight=torch.zeros(width, width))
        else:
            bound = (6 / (width + rank)) ** 0.5
            down = torch.rand(rank, width, generator=generator, device="cpu") * (2 * bound) - bound
            self._set(up=torch.zeros(width, rank), down=down)
        self.scale = None if scale is None else nn.Parameter(torch.full((), scale, device="cpu"))
        self.clear()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "RAdapter":
        """The adapter that has these tensors ("weight" or "up" and "down", and perhaps "scale")."""
        adapter = cls.__new__(cls)
        nn.Module.__init__(adapter)
        adapter._set(**tensors)
        adapter.clear()
        return adapter

    def _set(self, **tensors: Tensor) -> None:
        for name in TENSORS:
            tensor = tensors.get(name)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    @property
    def factors(self) -> Factors:
        return (self.up, self.down) if self.weight is None else (self.weight,)

    @property
    def strength(self) -> Float[Tensor, ""] | float:
        """k, the factor of A."""
        return self.gain if self.scale is None else self.gain * self.scale

    def forward(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return y + self.strength * self.drop(branch(y, self.factors))

    def linear(
        self, x: Float[Tensor, "*batch i"], weight: Float[Tensor, "d i"], bias: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "*batch d"]:
        """The frozen linear, then the adapter."""
        return self(F.linear(x, weight, bias))

    def attention(
        self, owner: nn.MultiheadAttention, *inputs: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The frozen attention, then the adapter on its output."""
        y, weights = nn.MultiheadAttention.forward(owner, *inputs, **options)
        return self(y), weights

    def clear(self) -> None:
        """No drop, no gain, not folded."""
        self.__class__ = RAdapter
        self.gain, self.drop = 1.0, NothingDrawn(self.p) if self.p and self.training else KeepAll()

    def train(self, mode: bool = True) -> "RAdapter":
        """Evaluation mode ends the step: no drop until the next `begin_step`."""
        super().train(mode)
        if not mode:
            self.clear()
        elif self.p and self.gain == 1.0:
            self.drop = NothingDrawn(self.p)
        return self


class AdaptedLinear(nn.Linear):
    """A linear followed by an adapter. Its parameters are the frozen linear's, under the same names."""

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch d"]:
        return self.r_adapter.linear(x, self.weight, self.bias)


class AdaptedConvolution(nn.Conv2d):
    """A convolution followed by an adapter, which sees every pixel as a token."""

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch d _ _"]:
        return self.r_adapter(nn.Conv2d.forward(self, x).movedim(1, -1)).movedim(-1, 1)


class AdaptedAttention(nn.MultiheadAttention):
    """A fused attention followed by an adapter: its out-projection is never called as a module."""

    def forward(self, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        return self.r_adapter.attention(self, *inputs, **options)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
