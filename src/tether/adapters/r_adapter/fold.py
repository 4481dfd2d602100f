"""R-Adapters folded into the frozen weights during training: the same function and gradients for less work.

The forward pass is one linear, h = W' x + b' with (W', b') = (M W, M b) and M = I + k A, so the gradient with
respect to x is exact without anything else. What A needs is dL/dM = Σ dhᵀ y over tokens; as y = M⁻¹ h,

    dL/dM = (dhᵀ h) M⁻ᵀ,    dL/dA = k · dL/dM,    dL/dk = ⟨dL/dM, A⟩,

and only h is kept for it, once, and never the input of the linear (four times as wide in an MLP). At low rank
D M⁻¹ = (I + k D U)⁻¹ D takes the place of the d × d solve.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tether.adapters.r_adapter.module import Factors, RAdapter, fold

NORM_LIMIT = 0.8
"""Folded only while ‖k A‖₂ is provably below this: then cond(M) < (1 + 0.8) / (1 − 0.8) = 9."""


class SkippedRAdapter(RAdapter):
    """An adapter that is dropped for the whole batch: no work, and gradients of 0 as if multiplied by 0."""

    def forward(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return _NoGradient.apply(y, *self.parameters())


class FoldedRAdapter(RAdapter):
    """An adapter that is folded into the weight before it, if the batch has enough tokens (`fold_from`)."""

    def linear(
        self, x: Float[Tensor, "*batch i"], weight: Float[Tensor, "d i"], bias: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "*batch d"]:
        if x.numel() < self.fold_from * x.shape[-1]:
            return super().linear(x, weight, bias)
        folded, folded_bias = self._folded(weight, bias)
        kept = partial(self._folded_linear, weight=folded, bias=folded_bias)
        return self.drop.split(x, kept, partial(F.linear, weight=weight, bias=bias))

    def _folded_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _FoldedGradient.apply(F.linear(x, weight, bias), self.gain, self.scale, *self.factors)

    def attention(
        self,
        owner: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        ordinary = (
            query is key
            and key is value
            and query.dim() == 3
            and key_padding_mask is None
            and not need_weights
            and owner.in_proj_weight is not None
            and owner.bias_k is None
            and not owner.add_zero_attn
            and not owner.dropout
        )
        if not ordinary or query.numel() < self.fold_from * query.shape[-1]:
            options |= {
                "key_padding_mask": key_padding_mask,
                "need_weights": need_weights,
                "attn_mask": attn_mask,
            }
            return super().attention(owner, query, key, value, **options)
        context = self_attention(owner, query, attn_mask)
        return self.linear(context, owner.out_proj.weight, owner.out_proj.bias), None

    def _folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The folded weight and bias: made anew for another step, other tensors or another precision."""
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        if torch.compiler.is_compiling():
            return self._fold(weight, bias, dtype)
        sources = [weight, *self.parameters()] + ([] if bias is None else [bias])
        key = (self.step, dtype, self.gain, *((tensor.data_ptr(), tensor._version) for tensor in sources))
        if self.cache is None or self.cache[0] != key:
            self.cache = (key, self._fold(weight, bias, dtype))
        return self.cache[1]

    @torch.no_grad()
    def _fold(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(weight.device.type, enabled=False):
            folded, folded_bias = fold(weight, bias, self.factors, self.strength)
        return folded.to(dtype), None if folded_bias is None else folded_bias.to(dtype)


def skip(adapter: RAdapter) -> None:
    """Drop the adapter for the whole of the coming forward."""
    adapter.__class__ = SkippedRAdapter


def fold_in(adapter: RAdapter, step: int, fold_from: int) -> None:
    """Fold the adapter in the coming forward wherever its linear sees at least `fold_from` tokens."""
    adapter.__class__ = FoldedRAdapter
    adapter.step, adapter.fold_from = step, fold_from
    adapter.cache = getattr(adapter, "cache", None)  # still good for another part of the same step


def self_attention(
    owner: nn.MultiheadAttention, x: Float[Tensor, "first second d"], mask: Tensor | None
) -> Float[Tensor, "first second d"]:
    """What `owner`'s out-projection is applied to, for x attending to itself."""
    heads = owner.num_heads
    qkv = F.linear(x, owner.in_proj_weight, owner.in_proj_bias).unflatten(-1, (3, heads, owner.head_dim))
    order = (0, 2, 1, 3) if owner.batch_first else (1, 2, 0, 3)
    q, k, v = (part.permute(order) for part in qkv.unbind(2))  # [batch, heads, tokens, head_dim]
    if mask is not None:
        mask = mask.logical_not() if mask.dtype == torch.bool else mask.to(q.dtype)
        mask = mask.view(-1, heads, *mask.shape[1:]) if mask.dim() == 3 else mask
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.permute((0, 2, 1, 3) if owner.batch_first else (2, 0, 1, 3)).flatten(2)


def break_even(width: int, inputs: int, rank: int | None) -> int:
    """Tokens per step from which folding an adapter costs fewer operations than applying it.

    In multiply-adds, folding saves 2 d² of 3 d² per token at full rank (all but the gradient of A) and costs
    d² i for the weight and 4/3 d³ for the solve; at low rank it saves 2 d r of 6 d r and costs 2 d r i. Twice
    the break-even is asked for, because the solve runs further from a processor's peak than the large
    products it replaces.
    """
    return 2 * inputs if rank is not None else inputs + 4 * width // 3


@torch.no_grad()
def safe_to_fold(adapters: list[RAdapter]) -> list[bool]:
    """Whether ‖k A‖₂ is provably below `NORM_LIMIT`, for each adapter as it stands.

    Two upper bounds, the second only for adapters that fail the first: products of Frobenius norms, and the
    Schatten 8-norm (trace((A Aᵀ)⁴))^(1/8), which exceeds the spectral norm by at most d^(1/8). One transfer
    to the host each.
    """
    if not adapters:
        return []
    norms = torch._foreach_norm([factor for adapter in adapters for factor in adapter.factors])
    norms, bounds = iter(norms), []
    for adapter in adapters:
        bound = torch.as_tensor(adapter.strength, device=adapter.factors[0].device).abs()
        for _ in adapter.factors:
            bound = bound * next(norms)
        bounds.append(bound)
    safe = [bound < NORM_LIMIT for bound in torch.stack(bounds).tolist()]
    doubtful = [index for index, passed in enumerate(safe) if not passed]
    if doubtful:
        bounds = [_schatten(adapters[index].factors) * abs(adapters[index].strength) for index in doubtful]
        for index, bound in zip(doubtful, torch.stack(bounds).tolist(), strict=True):
            safe[index] = bound < NORM_LIMIT
    return safe


def _schatten(factors: Factors) -> Float[Tensor, ""]:
    """(Σ σ⁸)^(1/8) of A, by way of A Aᵀ or, at low rank, of (Uᵀ U)(D Dᵀ), which has the same eigenvalues."""
    if len(factors) == 1:
        gram = factors[0] @ factors[0].T
    else:
        gram = (factors[0].T @ factors[0]) @ (factors[1] @ factors[1].T)
    square = gram @ gram
    return (square * square.T).sum().abs() ** 0.125


class _FoldedGradient(Function):
    """h as it is; in the backward pass the gradients of the adapter that is folded into it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, gain: float, scale: Tensor | None, *factors: Tensor) -> Tensor:
        ctx.gain = gain
        ctx.save_for_backward(h, scale, *factors)
        return h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        h, scale, *factors = ctx.saved_tensors
        k = ctx.gain if scale is None else ctx.gain * scale
        flat, dflat = h.flatten(0, -2), dh.flatten(0, -2)
        with torch.autocast(dh.device.type, enabled=False):
            full = len(factors) == 1
            *gradients, dk = (_full if full else _low)(flat, dflat, k, *factors)
            dscale = None if scale is None else (ctx.gain * dk).to(scale.dtype)
        return dh, None, dscale, *gradients


def _full(h: Tensor, dh: Tensor, k: Tensor | float, a: Tensor) -> tuple[Tensor, Tensor]:
    moment = (dh.T @ h).to(a.dtype)
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    dm = torch.linalg.solve_ex(identity + k * a, moment.T)[0].T  # (dhᵀ h) M⁻ᵀ
    return k * dm, (dm * a).sum()


def _low(h: Tensor, dh: Tensor, k: Tensor | float, u: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    identity = torch.eye(len(d), dtype=d.dtype, device=d.device)
    core = identity + k * (d @ u)
    d_inverse = torch.linalg.solve_ex(core, d)[0]  # D M⁻¹, by the push-through identity
    du = (dh.T @ (h @ d_inverse.T.to(h.dtype))).to(u.dtype)  # dL/dM Dᵀ
    moment = ((dh @ u.to(dh.dtype)).T @ h).to(d.dtype)  # Uᵀ dhᵀ h
    dd = moment - k * (moment @ d_inverse.T) @ u.T  # · M⁻ᵀ = I − k (U D M⁻¹)ᵀ
    return k * du, k * dd, (du * u).sum()


class _NoGradient(Function):
    """y as it is; gradients of 0, so that the optimizer and DDP see every parameter in every step."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        return dy, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
