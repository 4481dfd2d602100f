"""L2-SP: weight decay toward the pre-trained weights.

Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML
    2018,
arXiv 1802.01483.

    loss + α/2 ‖θ − θ0‖²  on pre-trained tensors,   loss + β/2 ‖w‖²  on new ones
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


@method("l2_sp")
@dataclass(frozen=True, kw_only=True)
class L2SPConfig(AnchoredConfig):
    """Options of L2-SP.

    Attributes:
        alpha: weight α of the penalty, at least 0; the original work searches 1e-3 to 1.
        decoupled: keep the pull out of Adam's moments, which otherwise rescale it.
    """

    alpha: float = 0.01
    decoupled: bool = False

    def optimizer(self, groups: Any, anchors: Any) -> "L2SP":
        return L2SP(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        require(options["alpha"] >= 0, "alpha", options["alpha"], "at least 0")


class L2SP(AnchoredOptimizer):
    """Pulls every tensor toward its anchor in proportion to its distance, as weight decay pulls toward zero.

    Use it as the simplest baseline of robust fine-tuning: one number, no learned state, new heads excluded
    with plain decay.

    g ← g + α(θ − θ0); decoupled: θ ← θ − lr·α(θ − θ0) beside the base step.
    Source: Li et al., ICML 2018, arXiv 1802.01483. State beside AdamW's: the anchor.

    Options: those of `L2SPConfig` and of `AnchoredOptimizer`. weight_decay (the original work's β) is applied
    to excluded tensors only.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = L2SP(model.named_parameters(), alpha=0.1, exclude=["bias"], weight_decay=0.01)
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
    """

    config = L2SPConfig

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        alpha: float | int = 0.01,
        decoupled: bool = False,
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
        l2sp_step(bucket)


def l2sp_step(bucket: Bucket) -> None:
    """The update of all tensors of the bucket at once."""
    group = bucket.group
    pull = bucket.displacements()
    if group["decoupled"]:
        torch._foreach_add_(bucket.params, pull, alpha=-group["lr"] * group["alpha"])
        bucket.base_step(weight_decay=0.0)
    else:
        torch._foreach_mul_(pull, bucket.sign * group["alpha"])
        torch._foreach_add_(pull, bucket.grads)
        bucket.base_step(pull, weight_decay=0.0)
