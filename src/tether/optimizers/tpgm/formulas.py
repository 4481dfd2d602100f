"""The formulas of TPGM, on buckets of tensors.

Symbols, for one tensor:  θ weights, θ0 anchor, c = θ − θ0, n_r norm of row r of c, γ radius.

    projection    Π(γ) = θ0 + clip(γ / (n_r + 1e-8), 0, 1) · c_r
        "mars": n_r = ‖c_r‖₁ (a vector or scalar is one row);  "l2": one n = ‖c‖₂ for the whole tensor
    base steps    θ by AdamW or SGD on training data
    radius steps  γ by Adam on the loss of Π(γ) on held-out data, θ fixed; then θ ← Π(γ)
        γ starts at min_r n_r / 2 and is clipped to [1e-8, max_r n_r] before every use
"""

import torch
from torch import Tensor

from tether.optimizers._bucket import Bucket, column
from tether.optimizers._learned import adam_move

UNSET = -1.0
"""A radius before the first projection of its tensor."""
_FLOOR = 1e-8


def project(bucket: Bucket) -> None:
    """θ ← Π(γ) in place, after γ was set (at first use) and clipped."""
    c, rows = _displaced(bucket)
    radius = bucket.scalars("radius")
    largest = bucket.largest(rows)
    still = (radius == UNSET) & (largest == 0)  # stepped, but with no gradient so far
    radius = torch.where(radius == UNSET, bucket.smallest(rows) / 2, radius)
    radius = radius.clamp_(min=_FLOOR).minimum(largest)
    bucket.store("radius", torch.where(still, UNSET, radius))
    ratios = (bucket.per_row(radius, rows) / (torch.cat(rows) + _FLOOR)).clamp_(max=1)
    bucket.move(c, ratios.split([len(row) for row in rows]))


def learn_radii(bucket: Bucket) -> Tensor:
    """One Adam step on γ, from gradients at the projected weights and the weights before projection.

    Returns:
        [tensors] h = Σ_r [γ ≤ n_r + 1e-8] ⟨g_r, c_r⟩ / (n_r + 1e-8), the derivative of the loss by γ.
    """
    c, rows = _displaced(bucket)
    sizes = [len(row) for row in rows]
    n = torch.cat(rows) + _FLOOR
    radius = bucket.scalars("radius")
    slope = torch.where(bucket.per_row(radius, rows) <= n, 1 / n, 0.0)
    for displacement, factor in zip(c, slope.split(sizes), strict=True):
        displacement.mul_(column(factor, displacement))
    h = bucket.total(bucket.dots(bucket.grads, c))
    there = radius != UNSET
    updates = bucket.scalars("radius_updates") + there
    exp_avg, exp_avg_sq = bucket.scalars("radius_exp_avg"), bucket.scalars("radius_exp_avg_sq")
    move = adam_move(h, exp_avg, exp_avg_sq, updates.clamp(min=1))
    bucket.store("radius", torch.where(there, radius - bucket.group["radius_lr"] * move, radius))
    bucket.store("radius_updates", updates)
    bucket.store("radius_exp_avg", exp_avg)
    bucket.store("radius_exp_avg_sq", exp_avg_sq)
    return h


def all_finite(values: list[Tensor]) -> bool:
    """The one thing in a radius step that waits for the device."""
    flags = [value.isfinite().all() for value in values]
    return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def _displaced(bucket: Bucket) -> tuple[list[Tensor], list[Tensor]]:
    """c, and for each tensor the norms of its rows, or its one norm."""
    c = bucket.displacements()
    if bucket.group["norm"] == "mars":
        return c, bucket.row_norms(c, 1)
    return c, list(bucket.total(bucket.squares(c)).sqrt().split(1))
