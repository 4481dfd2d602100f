"""Accumulation: a running average of what is trained, over the steps of a run (R-Adapter, section 4.2).

    W̃ ← m W̃ + (1 − m) W    after every optimizer step

In a run of T steps the average carries only 1 − mᵀ of what was learned: 39 % after 500 steps at m = 0.999. So
in short runs the plain average also shrinks what was learned, like a smaller alpha. The corrections undo
that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tether.errors import TetherError, near_misses

Correction = Literal["none", "run_length", "warmup"]
CORRECTIONS: tuple[Correction, ...] = ("none", "run_length", "warmup")


@dataclass(frozen=True, kw_only=True)
class AccumulationConfig:
    """A running average of what is trained, used for everything after training."""

    momentum: float = 0.999
    """m: the share of the average that stays at each step."""
    correction: Correction = "none"
    """"none" as published; "run_length" divides by 1 − mᵗ, "warmup" uses min(m, (1 + t) / (10 + t))."""


class Accumulation:
    """The running average of named tensors.

        average = Accumulation(attached.named_parameters(), momentum=0.999)
        ...
        optimizer.step()
        average.update()
        ...
        attached.merge(alpha=0.5, state=average.average())

    The factors of a low-rank adapter are averaged separately by default, as the published code does; the
    product of averages is not the average of products. `Accumulation(attached.products)` averages the
    products s · U D exactly, at the price of full-rank matrices.

    Args:
        parameters: the live tensors by name, or a function that gives the current ones.
        momentum: m, from 0 (no memory) to below 1. The paper: 0.999, and 0.9 for base-to-novel few-shot.
        correction: "none" starts at the initial values, as published; "run_length" leaves them out and
            divides by 1 − mᵀ, so that constant weights average to themselves; "warmup" uses min(m, (1 + t) /
            (10 + t)) at the t-th update, counted from 0.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]],
        momentum: float = 0.999,
        correction: Correction = "none",
    ) -> None:
        if not 0 <= momentum < 1:
            raise TetherError(f"momentum goes from 0 to below 1, not {momentum!r}.")
        if correction not in CORRECTIONS:
            raise TetherError(f"Unknown correction {correction!r}{near_misses(str(correction), CORRECTIONS)}")
        self.momentum, self.correction = momentum, correction
        self.updates = 0
        self._parameters = parameters
        self._average = {name: _master(tensor).clone() for name, tensor in self._current().items()}
        if correction == "run_length":
            torch._foreach_zero_(list(self._average.values()))

    @torch.no_grad()
    def update(self) -> None:
        """Take the current values into the average: one call for all tensors, in fp32."""
        current = self._current()
        momentum = self.momentum
        if self.correction == "warmup":
            momentum = min(momentum, (1 + self.updates) / (10 + self.updates))
        values = [_master(current[name]) for name in self._average]
        torch._foreach_lerp_(list(self._average.values()), values, 1 - momentum)
        self.updates += 1

    def average(self) -> dict[str, Tensor]:
        """The averaged tensors in fp32, free of gradients and of memory shared with anything.

        Before the first update it is the current values.
        """
        if self.correction != "run_length":
            return {name: tensor.clone() for name, tensor in self._average.items()}
        if self.updates == 0:
            return {name: _master(tensor).clone() for name, tensor in self._current().items()}
        share = 1 - self.momentum**self.updates
        return {name: tensor / share for name, tensor in self._average.items()}

    def state_dict(self) -> dict[str, Any]:
        """What continues the average bit for bit: `updates`, `momentum`, `correction`, `average` by name."""
        return {
            "updates": self.updates,
            "momentum": self.momentum,
            "correction": self.correction,
            "average": {name: tensor.clone() for name, tensor in self._average.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            TetherError: it is of another momentum or correction, or of other tensors.
        """
        for name in ("momentum", "correction"):
            if state[name] != getattr(self, name):
                raise TetherError(
                    f"The saved average has {name} {state[name]!r}, this one {getattr(self, name)!r}; "
                    f"continue with the saved value."
                )
        saved: Mapping[str, Tensor] = state["average"]
        wrong = [name for name in saved if name not in self._average]
        for name, average in self._average.items():
            if name not in saved or saved[name].shape != average.shape:
                wrong.append(name)
        if wrong:
            raise TetherError(f"The saved average is of other tensors; it differs in {', '.join(wrong[:6])}.")
        for name, average in self._average.items():
            average.copy_(saved[name])
        self.updates = int(state["updates"])

    def _current(self) -> dict[str, Tensor]:
        tensors = self._parameters() if callable(self._parameters) else self._parameters
        return {name: tensor.detach() for name, tensor in tensors.items()}


def _master(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
