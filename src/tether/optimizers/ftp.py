"""Fast Trainable Projection (FTP).

Tian, Liu, Smith, Kira: "Fast Trainable Projection for Robust Fine-Tuning", NeurIPS 2023, arXiv 2310.19182.

Symbols, for one tensor at its step t:  θ weights, θ0 anchor, g gradient, c displacement before projection,
n_r = ‖c_r‖₁ + 1e-8 the norm of its row r (a vector or scalar is one row), γ radius.

    u = θ − d                                      base step d (AdamW or SGD, with its decay toward zero)
    h = Σ_r ⟨g_r, c_{t−1,r}⟩ / n_{t−1,r},  h>0: h ← k·h       derivative of the loss by γ
    γ ← clip(γ − Adam(h), 1e-8, max_r n_r)
    θ ← θ0 + clip(γ / n_r, 0, 1) · c_r,  c = u − θ0
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from tether.config import method
from tether.optimizers._anchored import AnchoredOptimizer, Anchors, Exclude, Params, options_of
from tether.optimizers._bucket import Bucket, column
from tether.optimizers._checks import choose, require
from tether.optimizers._learned import BiasCorrection, adam_move, counted
from tether.optimizers._options import AnchoredConfig, Base

_FLOOR = 1e-8  # added to every norm, and the smallest radius


@method("ftp")
@dataclass(frozen=True, kw_only=True)
class FTPConfig(AnchoredConfig):
    """Options of FTP.

    Attributes:
        k: strength in [0, 1]: scales the moves that shrink the radius. 1 (the default) constrains most; at 0
            it only grows.
        radius_lr: learning rate of the radius, 1e-2 in the published code.
        bias_correction: "published" counts one update of γ too many, as the authors' code does; "exact" does
            not.
        first_radius: "start" begins with the largest distance of a row from its anchor: 1e-8 where training
            starts at the anchor, which undoes the first step as the authors' code does. "published" begins
            with 1e-8 always, which also throws away a start that differs from the anchor.
    """

    k: float = 1.0
    radius_lr: float = 1e-2
    bias_correction: BiasCorrection = "published"
    first_radius: Literal["start", "published"] = "start"

    def optimizer(self, groups: Any, anchors: Any) -> "FTP":
        return FTP(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        require(0 <= options["k"] <= 1, "k", options["k"], "in [0, 1]")
        require(options["radius_lr"] >= 0, "radius_lr", options["radius_lr"], "at least 0")
        choose(options, "bias_correction", "published", "exact")
        choose(options, "first_radius", "start", "published")


class FTP(AnchoredOptimizer):
    """Keeps every row of a tensor within a distance of its anchor, learned from the training gradients.

    Use it to fine-tune all weights (or a head-less backbone) when there is no held-out data to tune a
    constraint on: it costs one forward and backward pass like ordinary training.

    θ ← θ0 + clip(γ/‖c_r‖₁, 0, 1)·c_r, with γ moved by Adam along Σ_r ⟨g_r, c_{t−1,r}⟩/‖c_{t−1,r}‖₁.
    Source: Tian et al., NeurIPS 2023, arXiv 2310.19182. State beside AdamW's: anchor and last displacement.

    Options: those of `FTPConfig` and of `AnchoredOptimizer`. weight_decay (toward zero, inside the projection) is
    applied to all tensors.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = FTP(model.named_parameters(), lr=1e-3, k=1.0, exclude=["bias"])
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
    """

    config = FTPConfig
    learned: ClassVar[dict[str, float]] = {"radius": _FLOOR, "radius_exp_avg": 0.0, "radius_exp_avg_sq": 0.0}
    remembered: ClassVar[tuple[str, ...]] = ("direction",)  # c / n of the last step

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        k: float | int = 1.0,
        radius_lr: float | int = 1e-2,
        bias_correction: BiasCorrection = "published",
        first_radius: Literal["start", "published"] = "start",
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
        ftp_step(bucket)


def ftp_step(bucket: Bucket) -> None:
    """The update of all tensors of the bucket at once, without waiting for the device."""
    group, direction = bucket.group, bucket.full("direction")
    clock = bucket.clock() + 1
    radius = bucket.scalars("radius")
    if group["first_radius"] == "start" and any(state["step"] == 0 for state in bucket.states):
        start = bucket.largest(bucket.row_norms(bucket.displacements(), 1)) + _FLOOR
        radius = torch.where(clock == 1, start, radius)

    h = bucket.sign * bucket.total(
        bucket.dots(bucket.grads, direction)
    )  # zero at the first step: no direction yet
    h = torch.where(h > 0, group["k"] * h, h)
    exp_avg, exp_avg_sq = bucket.scalars("radius_exp_avg"), bucket.scalars("radius_exp_avg_sq")
    radius -= group["radius_lr"] * adam_move(h, exp_avg, exp_avg_sq, counted(clock, group["bias_correction"]))
    bucket.store("radius_exp_avg", exp_avg)
    bucket.store("radius_exp_avg_sq", exp_avg_sq)

    bucket.base_step(weight_decay=group["weight_decay"])
    if bucket.anchors is None:
        torch._foreach_copy_(direction, bucket.params)
    else:
        for kept, param, anchor in zip(direction, bucket.params, bucket.anchors, strict=True):
            torch.sub(param, anchor, out=kept)
    rows = bucket.row_norms(direction, 1)
    sizes = [len(row) for row in rows]
    radius = radius.clamp_(min=_FLOOR).minimum(bucket.largest(rows) + _FLOOR)
    bucket.store("radius", radius)
    n = torch.cat(rows).add_(_FLOOR)
    ratios = (bucket.per_row(radius, rows) / n).clamp_(max=1)
    bucket.move(direction, ratios.split(sizes))
    for c, norm in zip(direction, n.split(sizes), strict=True):
        c.mul_(column(1 / norm, c))
