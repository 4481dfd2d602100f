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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters._drop import KeepAll, NothingDrawn
from tether.config import method
from tether.errors import TetherError, near_misses
from tether.models.site import Select

Factors = tuple[Tensor] | tuple[Tensor, Tensor]
"""(F,) with F [d, d], or (U, D) with U [d, r] and D [r, d]."""

Rank = int | None
TENSORS = ("weight", "up", "down", "scale")


@method("r_adapter")
@dataclass(frozen=True, kw_only=True)
class RAdapterConfig:
    """What an R-Adapter is; the defaults are those of the paper's full-data recipe.

    Args:
        rank: rank of A; None, or anything from the width on, is full rank (paper: full data), 4 is the
            paper's choice for few-shot. 0 leaves a tower alone. A mapping gives it per tower, {"image": 128,
            "text": None}, or per adapter by its path; what it does not name has full rank.
        drop: probability p of adapter drop (paper: 0.2). What is kept is scaled by 1 / (1 − p).
        granularity: what is dropped together. The paper writes one draw per call ("batch"). The published
            code most likely draws one per token position, shared by the batch ("token"), because its layout
            puts tokens first and it means to draw per sample. "sample" is the default: it is that intention,
            it has the least variance per step, and it does not depend on the layout of the model.
        scale: initial value of a learned factor s per adapter; None leaves it out, as the paper's text does.
            The default, 0.1, is the published code's: the published learning rate of 5e-4 belongs to it.
            Without it the same rate moves s·F about ten times as fast.
        select: the sites.
        fold: "auto" folds adapters into the frozen weights during training where that saves work, which
            changes results by rounding only; "always" and "never" are for measuring.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    rank: Rank | Mapping[str, Rank] = None
    drop: float = 0.2
    granularity: Literal["batch", "sample", "token"] = "sample"
    scale: float | None = 0.1
    select: Select = field(default_factory=Select)
    fold: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        ranks = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
        if any(
            rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0)
            for rank in ranks
        ):
            raise TetherError(
                f"rank is None (full), 0 (no adapter) or a positive integer, not {self.rank!r}."
            )
        if not 0 <= self.drop < 1:
            raise TetherError(f"drop is a probability from 0 to below 1, not {self.drop!r}.")
        for name, known in (
            ("granularity", ("batch", "sample", "token")),
            ("fold", ("auto", "always", "never")),
        ):
            if getattr(self, name) not in known:
                raise TetherError(
                    f"Unknown {name} {getattr(self, name)!r}{near_misses(str(getattr(self, name)), known)}"
                )
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise TetherError(
                f"scale is a positive number or None, not {self.scale!r}: at 0 neither s nor F would ever "
                f"get a gradient."
            )

    def rank_of(self, tower: str, path: str) -> Rank:
        """The rank of one adapter."""
        if not isinstance(self.rank, Mapping):
            return self.rank
        return self.rank.get(path, self.rank.get(tower))


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
