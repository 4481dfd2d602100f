"""Optimizers as recipes name them, over named parameters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from tether.config import method
from tether.errors import TetherError, near_misses
from tether.families import OptimizerConfig
from tether.optimizers._checks import check_rates
from tether.optimizers._options import check_shared
from tether.optimizers.groups import Special, parameter_groups


@method("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW; the defaults are R-Adapter's."""

    lr: float = 5e-4
    """Learning rate at the top of the schedule."""
    head_lr: float | None = None
    """Learning rate of a linear head, where it differs."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Momenta of the two running means."""

    def __post_init__(self) -> None:
        check_rates(self.lr, self.head_lr)
        check_shared({"base": "adamw", **vars(self)})

    def optimizer(self, groups: Any, anchors: Any) -> Optimizer:
        return torch.optim.AdamW(groups, self.lr, self.betas)


@method("sgd")
@dataclass(frozen=True, kw_only=True)
class SGDConfig(OptimizerConfig):
    """SGD; the learning rate is that of FTP's and TPGM's DomainNet runs, which use Nesterov momentum 0.9."""

    lr: float = 1e-2
    """Learning rate at the top of the schedule."""
    head_lr: float | None = None
    """Learning rate of a linear head, where it differs."""
    weight_decay: float = 0.0
    """Weight decay."""
    momentum: float = 0.0
    """Momentum; 0 is without."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""

    def __post_init__(self) -> None:
        check_rates(self.lr, self.head_lr)
        check_shared({"base": "sgd", **vars(self)})

    def optimizer(self, groups: Any, anchors: Any) -> Optimizer:
        return torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.nesterov)


def create(
    config: OptimizerConfig,
    parameters: Mapping[str, Tensor],
    *,
    head: str | Collection[str] | None = None,
    anchors: Literal["start", "zero"] | Mapping[str, Tensor | None] = "start",
    special: Special | None = None,
) -> Optimizer:
    """The optimizer of a recipe: matrices are decayed, vectors are not, a new head has its own rate.

        optimizer = create(SPDConfig(lr=1e-5), dict(model.named_parameters()), head="head.weight")

    Args:
        head: name or names of a new head's parameters. It learns at `head_lr` where the config has one, and a robust
            optimizer leaves it to its plain base step with ordinary decay.
        anchors: what a robust optimizer stays near. "start": a copy of each parameter as it is now, for a
            model's own weights. "zero": for weights that add to a frozen model, such as low-rank factors, whose
            random half is no place to return to. Or by name: an anchor (used without a copy where type and
            device are the parameter's) or None for zero; what is not named is copied. AdamW and SGD have none.
        special: further options of the parameters that fit a pattern, see `parameter_groups`.

    Raises:
        TetherError: `head`, an anchor or a pattern names no parameter; or there is a `head_lr` and no head.
    """
    heads = (head,) if isinstance(head, str) else tuple(head or ())
    if not heads and config.head_lr is not None:
        raise TetherError(f"optimizer.head_lr is {config.head_lr}, but there is no head; leave it out.")
    for name in heads:
        if name not in parameters:
            raise TetherError(f"The head {name!r} is not trained{near_misses(name, list(parameters))}")
    of_head = {"lr": config.lr if config.head_lr is None else config.head_lr}
    if config.anchored:
        of_head["excluded"] = True
    special = {**(special or {}), **dict.fromkeys(heads, of_head)}
    groups = parameter_groups(parameters, lr=config.lr, weight_decay=config.weight_decay, special=special)
    return config.optimizer(groups, anchors)
