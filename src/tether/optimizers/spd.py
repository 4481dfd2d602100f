"""Selective Projection Decay (SPD).

Tian, Huang, Kira: "Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models", NeurIPS 2024, arXiv
    2411.01713.

Symbols, for one tensor:  θ weights before the step, θ0 anchor, g gradient, θ̃ = θ − d weights after the base
step.

    q = −⟨g, θ − θ0⟩
    r = clip((‖θ̃ − θ0‖ − ‖θ − θ0‖) / ‖θ̃ − θ0‖, 0, 1)  if q < 0, else 0
    θ ← θ̃ − λ · r · (θ̃ − θ0)

So it acts where the gradient would lead back toward the anchor while the step, by its momentum, still moves
away from it.
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


@method("spd")
@dataclass(frozen=True, kw_only=True)
class SPDConfig(AnchoredConfig):
    """Options of SPD.

    Attributes:
        strength: λ at least 0. 1 projects onto the radius before the step, more shrinks it, 0 is the plain
            base step. It is not multiplied by the learning rate, as in the authors' code, unless `times_lr`.
        times_lr: multiply λ by the learning rate, as AdamW does with its decay, so that a schedule weakens
            it.
    """

    strength: float = 1.0
    times_lr: bool = False

    def optimizer(self, groups: Any, anchors: Any) -> "SPD":
        return SPD(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        require(options["strength"] >= 0, "strength", options["strength"], "at least 0")


class SPD(AnchoredOptimizer):
    """Holds back a tensor that drifts from its anchor while its gradient points back; leaves others alone.

    Use it as the default robust step for full fine-tuning and, with anchors="zero", for low-rank factors: it
    needs no held-out data, no extra pass, and one number that rarely needs tuning.

    θ ← θ̃ − λ·r·(θ̃ − θ0), r = clip((‖θ̃−θ0‖ − ‖θ−θ0‖)/‖θ̃−θ0‖, 0, 1) where ⟨g, θ−θ0⟩ > 0, else 0.
    Source: Tian et al., NeurIPS 2024, arXiv 2411.01713. State beside AdamW's: the anchor.

    Options: those of `SPDConfig` and of `AnchoredOptimizer`. weight_decay is applied to excluded tensors
    only.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SPD(model.named_parameters(), lr=1e-3, strength=1.0, exclude=["bias"])
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
    """

    config = SPDConfig

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        strength: float | int = 1.0,
        times_lr: bool = False,
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
        spd_step(bucket)


def spd_step(bucket: Bucket) -> None:
    """The update of all tensors of the bucket at once, without waiting for the device."""
    c = bucket.displacements()
    before = torch.stack([bucket.dots(bucket.grads, c), bucket.squares(c)])
    bucket.base_step(weight_decay=0.0)
    c = bucket.displacements()
    inner, square, new_square = bucket.total(torch.cat([before, bucket.squares(c)[None]]))
    radius, new_radius = square.sqrt(), new_square.sqrt()
    ratio = ((new_radius - radius) / new_radius).clamp_(0, 1)
    ratio = torch.where(-bucket.sign * inner < 0, ratio, 0.0).to(
        c[0].dtype
    )  # also where 0/0: there is no displacement
    for param, displacement, factor in zip(
        bucket.params, c, (_strength(bucket.group) * ratio).unbind(), strict=True
    ):
        param.addcmul_(displacement, factor, value=-1)


def _strength(group: dict[str, Any]) -> float | int:
    return group["strength"] * (group["lr"] if group["times_lr"] else 1)
