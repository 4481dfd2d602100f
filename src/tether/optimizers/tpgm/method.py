"""TPGM as an optimizer: a plain base step, then a radius step or a projection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tether.config import method
from tether.errors import TetherError
from tether.optimizers._anchored import AnchoredOptimizer, Anchors, Exclude, Params, options_of
from tether.optimizers._bucket import Bucket
from tether.optimizers._checks import choose, require
from tether.optimizers._options import AnchoredConfig, Base
from tether.optimizers.tpgm.formulas import UNSET, all_finite, learn_radii, project


@method("tpgm")
@dataclass(frozen=True, kw_only=True)
class TPGMConfig(AnchoredConfig):
    """Options of TPGM.

    Attributes:
        norm: "mars" (default; DomainNet runs of the authors) or "l2" (their ImageNet runs).
        radius_lr: learning rate of the radii, 1e-2 in the published code.
    """

    held_out: ClassVar[bool] = True

    norm: Literal["mars", "l2"] = "mars"
    radius_lr: float = 1e-2

    def optimizer(self, groups: Any, anchors: Any) -> "TPGM":
        return TPGM(groups, self.lr, anchors=anchors, **self.options())

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        choose(options, "norm", "mars", "l2")
        require(options["radius_lr"] >= 0, "radius_lr", options["radius_lr"], "at least 0")


class TPGM(AnchoredOptimizer):
    """Learns on held-out data how far each tensor may be from its anchor, and projects to that distance.

    Use it when some in-distribution data can be held out (never the split that is reported): in every
    iteration of training, or once after it with a few hundred radius steps.

    θ ← θ0 + clip(γ/(‖c_r‖ + 1e-8), 0, 1)·c_r, with γ moved by Adam on the held-out loss of the projected
    weights.
    Source: Tian et al., CVPR 2023, arXiv 2303.10720. State beside AdamW's: the anchor; a copy of the weights
        in radius steps.

    `step` is the plain base step. After it call `radius_step` (learns the radii, then projects) or, in
    iterations without one, `project`.

    Options: those of `TPGMConfig` and of `AnchoredOptimizer`. weight_decay is applied to all tensors.

    Example:
        >>> model, held_out = torch.nn.Linear(4, 2), torch.ones(1, 4)
        >>> optimizer = TPGM(model.named_parameters(), lr=1e-3)
        >>> model(torch.ones(1, 4)).square().sum().backward()
        >>> optimizer.step()
        >>> loss = optimizer.radius_step(lambda: model(held_out).square().sum())
    """

    config = TPGMConfig
    needs_after_step: ClassVar[str] = (
        "a tether.optimizers.RadiusLearner, which learns the radii on held-out examples"
    )
    learned: ClassVar[dict[str, float]] = {
        "radius": UNSET,
        "radius_updates": 0.0,
        "radius_exp_avg": 0.0,
        "radius_exp_avg_sq": 0.0,
    }

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        norm: Literal["mars", "l2"] = "mars",
        radius_lr: float | int = 1e-2,
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

    @torch.no_grad()
    def radius_step(
        self,
        held_out_loss: Callable[[], Tensor],
        *,
        iterations: int = 1,
        after_backward: Callable[[Tensor], Any] | None = None,
    ) -> Tensor:
        """Move the radii `iterations` times along the held-out loss of the projected weights, then project.

        Each iteration waits for the device once, to see that all is finite.

        Args:
            held_out_loss: computes the loss of the model on a held-out batch (with the model in evaluation
                mode) and returns it; it does not call backward. With replicated data-parallel training it
                must go through the wrapped model, so that gradients are averaged and all ranks learn the same
                radii.
            iterations: number of calls, at least 1.
            after_backward: called with each loss, detached, once the gradients are there and before they are
                used: the place to average them over processes where no wrapper of the model does.

        Returns:
            The last loss, detached, of the weights projected with the radii before the last move. Gradients
            of this optimizer's parameters are left as they were.

        Raises:
            TetherError: `iterations` is below 1, no anchored parameter that has taken a step has a gradient of
                the loss, or the loss or its gradient is not finite. Weights and radii are as before then, as
                they are after an error of `held_out_loss`.
        """
        if iterations < 1:
            raise TetherError(f"iterations must be at least 1, found {iterations}.")
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params]
        anchored = self._moved()
        weights = [torch._foreach_clone(bucket.params) for bucket in anchored]
        learned = [[bucket.scalars(name) for name in self.learned] for bucket in anchored]

        def restore() -> None:
            for bucket, before in zip(anchored, weights, strict=True):
                torch._foreach_copy_(bucket.params, before)

        try:
            for _ in range(iterations):
                for param in params:
                    param.grad = None
                for bucket in anchored:
                    project(bucket)
                with torch.enable_grad():
                    loss = held_out_loss()
                    loss.backward()
                if after_backward is not None:
                    after_backward(loss.detach())
                restore()
                with_gradient = self._moved(with_gradient=True)
                if not with_gradient:
                    raise TetherError(
                        "The held-out loss depends on no anchored parameter that has taken a step; compute "
                        "it with this model, after step()."
                    )
                slopes = [learn_radii(bucket) for bucket in with_gradient]
                if not all_finite([loss.detach(), *slopes]):
                    raise TetherError(
                        f"The held-out loss or its gradient is not finite (loss {float(loss):.4g}), so no radius "
                        f"was moved. Look at the held-out examples and at the weights, or lower the learning rate."
                    )
        except BaseException:
            for bucket, numbers in zip(anchored, learned, strict=True):
                for name, values in zip(self.learned, numbers, strict=True):
                    bucket.store(name, values)
            raise
        finally:
            restore()
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        self.project()
        return loss.detach()

    @torch.no_grad()
    def project(self) -> None:
        """Project all anchored tensors that have taken a step, with the radii learned so far."""
        for bucket in self._moved():
            project(bucket)

    def _moved(self, *, with_gradient: bool = False) -> list[Bucket]:
        """The anchored tensors that have taken a step: a radius cannot be set where nothing has moved yet."""

        def belongs(param: Tensor) -> bool:
            state = self.state.get(param)
            if not param.requires_grad or param in self._excluded or not state:
                return False
            return state["step"].item() > 0 and (param.grad is not None or not with_gradient)

        return [
            bucket
            for group in self.param_groups
            for bucket in self._buckets(group, [param for param in group["params"] if belongs(param)])
        ]

    def _update(self, bucket: Bucket) -> None:
        bucket.base_step(weight_decay=bucket.group["weight_decay"])
