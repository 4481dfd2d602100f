"""The options that the robust optimizers share: in a recipe's config and in the groups of an optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar, Literal

from tether.errors import TetherError
from tether.families import OptimizerConfig
from tether.optimizers._checks import check_rates, choose, require

Base = Literal["adamw", "sgd"]
OF_BASE: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
}
"""Options of the two base steps, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class AnchoredConfig(OptimizerConfig):
    """What a recipe says of every robust optimizer; subclasses add the options of their method.

    Attributes:
        lr: learning rate of the base step. 1e-4 is that of FTP's DomainNet runs with Adam; the low-rank runs
            of SPD and DiGraP took 1e-3.
        head_lr: learning rate of a new head, where it differs.
        weight_decay: of the head, and of the anchored matrices where the method says so.
        base: the step that is made robust.
        betas: of AdamW.
        momentum, nesterov: of SGD.

    Raises:
        TetherError: an option is out of range or belongs to the other base.
    """

    anchored: ClassVar[bool] = True

    lr: float = 1e-4
    head_lr: float | None = None
    weight_decay: float = 0.0
    base: Base = "adamw"
    betas: tuple[float, float] = OF_BASE["adamw"]["betas"]
    momentum: float = OF_BASE["sgd"]["momentum"]
    nesterov: bool = OF_BASE["sgd"]["nesterov"]

    def __post_init__(self) -> None:
        check_rates(self.lr, self.head_lr)
        check_shared(vars(self))
        for name, default in OF_BASE["sgd" if self.base == "adamw" else "adamw"].items():
            if getattr(self, name, default) != default:
                raise TetherError(f"optimizer.{name} is no option of base={self.base!r}, but of the other.")
        self.check(vars(self))

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """Refuse a method's own options that are out of range, of a config or of an optimizer's group."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """What the optimizer's constructor takes, but for the options that are set by group."""
        step = {name: getattr(self, name) for name in OF_BASE[self.base] if hasattr(self, name)}
        own = {name: getattr(self, name) for name in own_defaults(type(self))}
        return {"base": self.base, **step, **own}


def own_defaults(config: type[AnchoredConfig]) -> dict[str, Any]:
    """The options that a method adds to the shared ones, with their defaults."""
    shared = {field.name for field in fields(AnchoredConfig)}
    return {field.name: field.default for field in fields(config) if field.name not in shared}


def check_shared(options: Mapping[str, Any]) -> None:
    """Refuse shared options that are out of range or contradict each other."""
    choose(options, "base", *OF_BASE)
    for name in ("lr", "eps", "momentum", "dampening", "weight_decay"):
        value = options.get(name, 0.0)
        require(isinstance(value, float | int) and 0 <= value < inf, name, value, "a number of at least 0")
    if "betas" in options:
        betas = options["betas"]
        pair = isinstance(betas, list | tuple) and len(betas) == 2
        require(pair and all(0 <= beta < 1 for beta in betas), "betas", betas, "two numbers in [0, 1)")
    if options.get("nesterov") and (not options["momentum"] or options.get("dampening")):
        raise TetherError("nesterov needs a momentum above 0 and no dampening.")
