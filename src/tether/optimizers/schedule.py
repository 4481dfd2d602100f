"""Learning-rate schedules: pure functions from a step to a factor, and the object that applies one."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch.optim import Optimizer

from tether.errors import TetherError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up and shape of the learning rate; the defaults are those of R-Adapter on full data."""

    kind: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: int = 500
    """Steps of linear warm-up; a tenth of a run that is not longer than this, with a warning."""
    floor: float = 0.0
    """Smallest factor of the cosine, reached at the last step (0.002 is 1e-6 of R-Adapter's 5e-4)."""

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "constant"):
            raise TetherError(f"The schedule is 'cosine' or 'constant', found {self.kind!r}.")
        if self.warmup < 0:
            raise TetherError(f"warmup must be at least 0 steps, found {self.warmup}.")
        if not 0 <= self.floor <= 1:
            raise TetherError(f"floor must lie between 0 and 1, found {self.floor}.")


def schedule_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Factor on the peak learning rate for step 0, 1, …, steps − 1.

    Linear from 1/warmup to 1 over the warm-up; then 1, or the half cosine from 1 towards the floor:
    floor + (1 − floor) · ½ (1 + cos π (step − warmup)/(steps − warmup)).
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.kind == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Schedule:
    """Sets the learning rate of every parameter group to its first value times `factor(step)`.

    Unlike torch's schedulers it is told the step, so nothing has to be counted along or replayed.

    >>> schedule = Schedule.of(optimizer, ScheduleConfig(warmup=10), steps=100)
    >>> schedule.set(0)
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._factor = factor
        self._step = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    @classmethod
    def of(cls, optimizer: Optimizer, config: ScheduleConfig, steps: int) -> "Schedule":
        """The schedule of `config` over a run of `steps` steps.

        A warm-up that would not end within the run, so that the learning rate would never reach its value, is
        shortened to a tenth of the run, with a warning that says so.
        """
        if config.warmup >= steps:
            shorter = steps // 10
            warnings.warn(
                f"The warm-up of {config.warmup} steps would not end within the run of {steps} steps; it takes "
                f"{shorter} of them instead. Set warmup (schedule.warmup in a recipe; 500 if not given) to choose.",
                stacklevel=2,
            )
            config = replace(config, warmup=shorter)
        return cls(optimizer, lambda step: schedule_factor(step, steps, config))

    def set(self, step: int) -> None:
        """Set the learning rates for the step that comes next (the first is 0)."""
        self._step = step
        factor = self._factor(step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "initial_lr": [g["initial_lr"] for g in self._optimizer.param_groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group, initial in zip(self._optimizer.param_groups, state["initial_lr"], strict=True):
            group["initial_lr"] = initial
        self.set(state["step"])
