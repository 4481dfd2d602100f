"""L2-SP: weight decay toward the pre-trained weights.

Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML
    2018,
arXiv 1802.01483.

    loss + α/2 ‖θ − θ0‖²  on pre-trained tensors,   loss + β/2 ‖w‖²  on new ones
"""

from typing import Any, Unpack

import torch

from tether.optimizers._anchored import AnchoredOptimizer, Options, Params
from tether.optimizers._bucket import Bucket
from tether.optimizers._checks import require


class L2SP(AnchoredOptimizer):
    """Pulls every tensor toward its anchor in proportion to its distance, as weight decay pulls toward zero.

    Use it as the simplest baseline of robust fine-tuning: one number, no learned state, new heads excluded
    with plain decay.

    g ← g + α(θ − θ0); decoupled: θ ← θ − lr·α(θ − θ0) beside the base step.
    Source: Li et al., ICML 2018, arXiv 1802.01483. State beside AdamW's: the anchor.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = L2SP(model.named_parameters(), alpha=0.1, exclude=["bias"], weight_decay=0.01)
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()

    Args:
        params: tensors, (name, tensor) pairs or parameter groups.
        lr: learning rate of the base step.
        alpha: weight α of the penalty, at least 0; the original work searches 1e-3 to 1.
        decoupled: keep the pull out of Adam's moments, which otherwise rescale it.
        **options: see `Options`. weight_decay (the original work's β) is applied to excluded tensors only.

    Raises:
        TetherError: an option is unknown, out of range or contradicts another; a name or an anchor fits no
            parameter.
    """

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        alpha: float | int = 0.01,
        decoupled: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "decoupled": decoupled}, options)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require(group["alpha"] >= 0, "alpha", group["alpha"], "at least 0")

    def _update(self, bucket: Bucket) -> None:
        (l2sp_foreach if self._foreach else l2sp_plain)(bucket)


def l2sp_plain(bucket: Bucket) -> None:
    """The update of one tensor, as the formulas read."""
    (param,), (grad,), group = bucket.params, bucket.grads, bucket.group
    anchor = torch.zeros_like(param) if bucket.anchors is None else bucket.anchors[0]
    pull = group["alpha"] * (param - anchor)
    if group["decoupled"]:
        param.sub_(group["lr"] * pull)
        bucket.base_step(weight_decay=0.0)
    else:
        bucket.base_step([grad + bucket.sign * pull], weight_decay=0.0)


def l2sp_foreach(bucket: Bucket) -> None:
    """The same for all tensors of the bucket at once."""
    group = bucket.group
    pull = bucket.displacements()
    if group["decoupled"]:
        torch._foreach_add_(bucket.params, pull, alpha=-group["lr"] * group["alpha"])
        bucket.base_step(weight_decay=0.0)
    else:
        torch._foreach_mul_(pull, bucket.sign * group["alpha"])
        torch._foreach_add_(pull, bucket.grads)
        bucket.base_step(pull, weight_decay=0.0)
