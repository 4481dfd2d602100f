"""The gradient of a step: forward and backward, piece by piece, averaged over the processes and clipped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from signal import SIGINT, SIGTERM
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tether._distributed import average_gradients
from tether.training.config import FitConfig
from tether.training.interrupts import Interrupts
from tether.training.loading import Key, to_device


@dataclass(frozen=True)
class Gradient:
    """What is known of a step's gradient, which itself is in `.grad` of the parameters; all on the device."""

    values: dict[str, Tensor]
    """The loss and further scalars, of this process's examples."""
    loss: Float[Tensor, ""]
    """Mean over the processes."""
    norm: Float[Tensor, ""]
    """Of all parameters together, before clipping."""
    signals: Float[Tensor, "2"]
    """Shares of the processes that have received SIGINT and SIGTERM."""


class Gradients:
    """Computes the gradients of a task, step after step.

    Attributes:
        connected: whether the loss of any step so far depended on a trained parameter.
    """

    def __init__(self, task: Any, parameters: Mapping[str, Tensor], config: FitConfig) -> None:
        self.connected = False
        self._task, self._config = task, config
        self._parameters = list(parameters.values())
        self._device = self._parameters[0].device

    def compute(
        self, step: int, pieces: list[list[Key]], batches: Iterator[Any], interrupts: Interrupts
    ) -> Gradient:
        """Leave the gradient of a step in `.grad` of the parameters.

        Args:
            pieces: keys of this process's examples; only their numbers count here.
            batches: gives the batch of each piece.
            interrupts: a signal that comes to this process before its gradient is there is told to the others.
        """
        for parameter in self._parameters:
            parameter.grad = None
        values = self._backward(step, pieces, batches)
        signals = [float(interrupts.received == number) for number in (SIGINT, SIGTERM)]
        extras = torch.cat([values["loss"].float()[None], torch.tensor(signals, device=self._device)])
        extras = average_gradients(self._parameters, extras)
        norm = get_total_norm([parameter.grad for parameter in self._parameters])
        if self._config.clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self._config.clip_norm, norm)
        return Gradient(values, extras[0], norm, extras[1:])

    def _backward(self, step: int, pieces: list[list[Key]], batches: Iterator[Any]) -> dict[str, Tensor]:
        """Gradients of this process's loss, piece by piece; gives the measurements."""
        begin_step = getattr(self._task, "begin_step", None)
        examples = sum(map(len, pieces))
        sums: dict[str, Tensor] = {}
        for piece in pieces:
            batch = to_device(next(batches), self._device)
            weight = len(piece) / examples
            if begin_step is not None:
                begin_step(step, batch)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
                loss, scalars = self._task.loss(batch, step)
            if loss.requires_grad:  # not where every adapter is dropped
                (loss * weight).backward()
                self.connected = True
            for name, value in {"loss": loss, **scalars}.items():
                part = value.detach() * weight
                sums[name] = sums[name] + part if name in sums else part
        return sums
