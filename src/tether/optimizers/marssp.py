"""MARS-SP: a penalty on, or a bound of, the largest row distance from the pre-trained weights.

Gouk, Hospedales, Pontil: "Distance-Based Regularisation of Deep Networks for Fine-Tuning", ICLR 2021, arXiv
    2002.08253.
The exact published form could not be confirmed; this is a reconstruction from the definition of the norm.

    ‖W‖_MARS = max_r Σ_j |W_rj|        (maximum absolute row sum)
    penalty:     loss + λ Σ_tensors ‖θ − θ0‖_MARS
    projection:  θ ← θ0 + min(1, γ/‖c_r‖₁) · c_r  after the base step, c = θ − θ0
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tether.config import method
from tether.optimizers._anchored import AnchoredOptimizer, Anchors, Exclude, Params, options_of
from tether.optimizers._bucket import Bucket
from tether.optimizers._checks import require
from tether.optimizers._options import AnchoredConfig, Base


@method("mars_sp")
@dataclass(frozen=True, kw_only=True)
class MARSSPConfig(AnchoredConfig):
    """Options of MARS-SP.

    Attributes:
        strength: λ of the penalty, at least 0; 0.01 when neither this nor `radius` is given.
        radius: γ of the projection, at least 0. It takes the place of the penalty, so only one can be given.
    """

    strength: float | None = None
    radius: float | None = None

    def optimizer(self, groups: Any, anchors: Any) -> "MARSSP":
        return MARSSP(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        given = {name: options[name] for name in ("strength", "radius") if options[name] is not None}
        require(len(given) < 2, "strength or radius", given, "given, not both (in a group set one to None)")
        for name, value in given.items():
            require(value >= 0, name, value, "at least 0")


class MARSSP(AnchoredOptimizer):
    """Penalises the row of each tensor farthest from its anchor, or keeps all rows within a fixed distance.

    Use it as a baseline beside FTP and TPGM, which learn the distance; with `radius` it is their projection
    without learning.

    g_r ← g_r + λ·sign(θ_r − θ0_r) on the row of largest ‖θ_r − θ0_r‖₁; with a radius θ ← θ0 + min(1,
    γ/‖c_r‖₁)·c_r.
    Source: Gouk et al., ICLR 2021, arXiv 2002.08253 (reconstructed). State beside AdamW's: the anchor.

    Options: those of `MARSSPConfig` and of `AnchoredOptimizer`. weight_decay is applied to excluded tensors
    only.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = MARSSP(model.named_parameters(), lr=1e-3, radius=0.5, exclude=["bias"])
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
    """

    config = MARSSPConfig

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        strength: float | int | None = None,
        radius: float | int | None = None,
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
        marssp_step(bucket)


def marssp_step(bucket: Bucket) -> None:
    """The update of all tensors of the bucket at once, without waiting for the device."""
    group = bucket.group
    if group["radius"] is not None:
        bucket.base_step(weight_decay=0.0)
        c = bucket.displacements()
        rows = bucket.row_norms(c, 1)
        ratios = (group["radius"] / torch.cat(rows).clamp_(min=1e-30)).clamp_(max=1)
        bucket.move(c, ratios.split([len(row) for row in rows]))
        return
    c = bucket.displacements()
    rows = bucket.row_norms(c, 1)
    grads = list(torch._foreach_clone(bucket.grads))
    strength = bucket.sign * _strength(group)
    for grad, displacement, row, largest in zip(grads, c, rows, bucket.largest(rows).unbind(), strict=True):
        if displacement.ndim < 2:
            grad.add_(displacement.sign(), alpha=strength)
        elif len(row):  # a rank that holds no row of the tensor has nothing to do
            farthest = row.argmax().view(1)
            pull = displacement.index_select(0, farthest).sign() * (row[farthest] == largest)
            grad.index_add_(0, farthest, pull, alpha=strength)
    bucket.base_step(grads, weight_decay=0.0)


def _strength(group: dict[str, Any]) -> float | int:
    return 0.01 if group["strength"] is None else group["strength"]
