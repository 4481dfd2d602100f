"""Linears and first values for methods that add modules: from a generator of their own, in fp32, on the CPU."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

TRUNCATION = 2.0
"""Where truncated normals end, in standard deviations, unless a method says otherwise."""


class Linear(nn.Module):
    """y = W x + b in the precision of x, so that fp32 weights work in a bf16 model.

    Args:
        weight: W [out, in].
        bias: b; zeros if None is given.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), device="cpu") if bias is None else bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def normal(
    shape: tuple[int, ...], std: float, generator: torch.Generator, truncation: float = TRUNCATION
) -> Tensor:
    """Normal with mean 0, drawn again where it exceeds `truncation` standard deviations."""
    end = truncation * std
    return nn.init.trunc_normal_(
        torch.empty(shape, device="cpu"), std=std, a=-end, b=end, generator=generator
    )


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Uniform from −bound to bound."""
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)


def pytorch_default(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight [out, in, ...] and bias [out] as PyTorch starts linears and convolutions: uniform up to 1 / √fan-in.

    It is Kaiming's uniform distribution with a = √5.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return uniform(shape, bound, generator), uniform(shape[:1], bound, generator)
