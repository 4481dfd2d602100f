"""Full fine-tuning: the model moves as a whole."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tether.adapters.base_weights import LOGIT, BaseWeightsAttached, BaseWeightsConfig
from tether.config import method
from tether.errors import TetherError, near_misses


@method("full")
@dataclass(frozen=True, kw_only=True)
class FullConfig(BaseWeightsConfig):
    """Full fine-tuning: every parameter is trained.

    Args:
        exclude: globs on parameter and buffer names that stay frozen, such as ("visual.trunk.patch_embed.*",)
            for a convolutional stem; a bare prefix stands for all that is below it.
        train_logit_scale: also train the logit scale and bias. Off, as in the published recipes of R-Adapter;
            FLYP trains it.

    Raises:
        TetherError: `exclude` is a bare string.
    """

    exclude: tuple[str, ...] = ()
    train_logit_scale: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise TetherError(f"exclude is a tuple of patterns, such as ({self.exclude!r},).")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def attach(self, model: Any, *, seed: int = 0) -> "FullAttached":
        return FullAttached(model, self, seed=seed)


class FullAttached(BaseWeightsAttached):
    """Everything is trained, save what `FullConfig` excludes."""

    def _chosen(self) -> list[str]:
        names = [name for name, _ in self.module.named_parameters()]
        for pattern in self.config.exclude:
            if not any(_matches(name, pattern) for name in names):
                raise TetherError(f"exclude: no parameter matches {pattern!r}{near_misses(pattern, names)}")
        return [
            name
            for name in names
            if not any(_matches(name, pattern) for pattern in self.config.exclude)
            and (self.config.train_logit_scale or name not in LOGIT)
        ]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern.rstrip(".") + ".")
