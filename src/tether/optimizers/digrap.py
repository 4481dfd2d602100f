"""Directional Gradient Projection (DiGraP).

Huang, Tian, et al.: "Directional Gradient Projection for Robust Fine-Tuning of Foundation Models", ICLR 2025,
arXiv 2502.15895.

Symbols, for one tensor at its step t:  c = θ − θ0 displacement before the step, g gradient, ω projection
strength.

    p_t = ⟨g, c⟩ / (‖c‖² + 1e-8) · c                       part of the gradient along the displacement
    h   = Σ_r cos(g_r, p_{t−1,r})                           rows r; a vector or scalar is one row
    ω ← clip(ω − Adam(h), 0, κ)
    g ← g − ω · ⟨g, c⟩/‖c‖² · c   if ⟨g, c⟩ < 0 (descent would lead away from the anchor)
    base step with g, without decay
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tether.config import method
from tether.optimizers._anchored import AnchoredOptimizer, Anchors, Exclude, Params, options_of
from tether.optimizers._bucket import Bucket, column, scalar_dtype
from tether.optimizers._checks import choose, require
from tether.optimizers._learned import BiasCorrection, adam_move, counted
from tether.optimizers._options import AnchoredConfig, Base

_TINY = 1e-12  # rows shorter than this are divided by it instead


@method("digrap")
@dataclass(frozen=True, kw_only=True)
class DiGraPConfig(AnchoredConfig):
    """Options of DiGraP.

    Attributes:
        mu: learning rate of ω; the authors' runs use 0.01 to 10.
        kappa: largest ω in [0, 1]; 0 is the plain base step.
        condition: "conflict" (the authors' code) projects where ⟨g,c⟩ < 0; "agreement" where ⟨g,c⟩ > 0, as
            the algorithm in the paper can be read.
        normalization: "rows" (the authors' code) sums a cosine for each row; "tensor" takes one cosine of
            whole tensors, as the paper's normalised gradient can be read.
        bias_correction: "published" counts one update of ω too many, as the authors' code does; "exact" does
            not.
    """

    mu: float = 0.5
    kappa: float = 1.0
    condition: Literal["conflict", "agreement"] = "conflict"
    normalization: Literal["rows", "tensor"] = "rows"
    bias_correction: BiasCorrection = "published"

    def optimizer(self, groups: Any, anchors: Any) -> "DiGraP":
        return DiGraP(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        require(options["mu"] >= 0, "mu", options["mu"], "at least 0")
        require(0 <= options["kappa"] <= 1, "kappa", options["kappa"], "in [0, 1]")
        choose(options, "condition", "conflict", "agreement")
        choose(options, "normalization", "rows", "tensor")
        choose(options, "bias_correction", "published", "exact")


class DiGraP(AnchoredOptimizer):
    """Removes from each gradient a learned share of the part that would lead farther away from the anchor.

    Use it for full or low-rank (anchors="zero") fine-tuning when the direction of drift matters more than its
    size; `mu`, how fast the share is learned, is the one number to tune.

    g ← g − ω·⟨g,c⟩/‖c‖²·c where ⟨g,c⟩ < 0, c = θ − θ0, with ω moved by Adam along Σ_r cos(g_r, p_{t−1,r}).
    Source: Huang et al., ICLR 2025, arXiv 2502.15895. State beside AdamW's: anchor and last projection.

    Options: those of `DiGraPConfig` and of `AnchoredOptimizer`. weight_decay is applied to excluded tensors
    only.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = DiGraP(model.named_parameters(), lr=1e-3, mu=0.5, exclude=["bias"])
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
    """

    config = DiGraPConfig
    learned: ClassVar[dict[str, float]] = {"omega": 0.0, "omega_exp_avg": 0.0, "omega_exp_avg_sq": 0.0}
    remembered: ClassVar[tuple[str, ...]] = ("direction",)  # p of the last step, normalised

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        mu: float | int = 0.5,
        kappa: float | int = 1.0,
        condition: Literal["conflict", "agreement"] = "conflict",
        normalization: Literal["rows", "tensor"] = "rows",
        bias_correction: BiasCorrection = "published",
        base: Base = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | int = 1e-8,
        amsgrad: bool = False,
        momentum: float | int = 0.0,
        dampening: float | int = 0.0,
        nesterov: bool = False,
        weight_decay: float | int = 0.0,
        maximize: bool = False,
        anchors: Anchors = "start",
        exclude: Exclude = (),
        foreach: bool = True,
    ) -> None:
        super().__init__(**options_of(locals()))

    def _update(self, bucket: Bucket) -> None:
        digrap_step(bucket)


def digrap_step(bucket: Bucket) -> None:
    """The update of all tensors of the bucket at once, without waiting for the device."""
    group, direction = bucket.group, bucket.full("direction")
    rows = group["normalization"] == "rows"
    c = bucket.displacements()
    norms = bucket.row_norms(c, 2) if rows else []
    whole = rows and not bucket.row_groups  # the rows are here already: spare a pass over the displacements
    squares = torch.stack([norm.square().sum() for norm in norms]) if whole else bucket.squares(c)
    dot, square = bucket.total(torch.stack([bucket.dots(bucket.grads, c), squares]))
    dot = bucket.sign * dot

    h = bucket.sign * (_row_cosines(bucket, direction) if rows else _tensor_cosines(bucket, direction))
    exp_avg, exp_avg_sq = bucket.scalars("omega_exp_avg"), bucket.scalars("omega_exp_avg_sq")
    move = adam_move(h, exp_avg, exp_avg_sq, counted(bucket.clock() + 1, group["bias_correction"]))
    omega = (bucket.scalars("omega") - group["mu"] * move).clamp_(0, group["kappa"])
    for name, values in (("omega", omega), ("omega_exp_avg", exp_avg), ("omega_exp_avg_sq", exp_avg_sq)):
        bucket.store(name, values)

    share = dot / (square + 1e-8)
    if rows:
        share = bucket.per_row(share, norms)
        share = (share / (share.abs() * torch.cat(norms)).clamp_(min=_TINY)).split(
            [len(norm) for norm in norms]
        )
    else:
        share = (share / (share.abs() * square.sqrt()).clamp_(min=_TINY)).unbind()
    for kept, displacement, factor in zip(direction, c, share, strict=True):
        torch.mul(displacement, column(factor, kept) if rows else factor.to(kept.dtype), out=kept)

    applies = dot < 0 if group["condition"] == "conflict" else dot > 0
    removed = (bucket.sign * torch.where(applies, omega * dot / square, 0.0)).to(c[0].dtype)
    for grad, displacement, factor in zip(bucket.grads, c, removed.unbind(), strict=True):
        torch.addcmul(grad, displacement, factor, value=-1, out=displacement)
    bucket.base_step(c, weight_decay=0.0)


def _row_cosines(bucket: Bucket, direction: list[Tensor]) -> Tensor:
    """[tensors] Σ_r ⟨g_r, p̂_r⟩ / max(‖g_r‖, 1e-12), p̂ the normalised rows of the last projection."""
    norms = bucket.row_norms(bucket.grads, 2)
    sums = []
    for grad, kept, norm in zip(bucket.grads, direction, norms, strict=True):
        dims = tuple(range(1, grad.ndim)) if grad.ndim > 1 else None
        products = (grad * kept).sum(dim=dims, dtype=scalar_dtype(grad))
        sums.append((products.view(-1) / norm.clamp(min=_TINY)).sum())
    return bucket.total(torch.stack(sums))


def _tensor_cosines(bucket: Bucket, direction: list[Tensor]) -> Tensor:
    """[tensors] ⟨g, p̂⟩ / max(‖g‖, 1e-12)."""
    products, squares = bucket.total(
        torch.stack([bucket.dots(bucket.grads, direction), bucket.squares(bucket.grads)])
    )
    return products / squares.sqrt().clamp(min=_TINY)
