"""TPGM in a run: after a step the radii of its projection are learned on held-out examples."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from tether._distributed import average_gradients
from tether.errors import TetherError
from tether.optimizers.tpgm.method import TPGM


@dataclass(frozen=True, kw_only=True)
class RadiiConfig:
    """When TPGM learns its radii, and on how many examples; the defaults are those of its DomainNet runs."""

    every: int | None = 1
    """Steps from one learning of the radii to the next; the steps between only project. None: only after the
    last step of the run, without any projection before (the authors' ImageNet runs, with 200 iterations)."""
    iterations: int = 1
    """Batches in a row, with a move of the radii for each."""
    batch_size: int | None = None
    """Examples per batch, over all processes; None for that of training, or all where there are fewer."""

    def __post_init__(self) -> None:
        for name in ("every", "iterations", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TetherError(f"radii.{name} must be at least 1, found {value}.")


@runtime_checkable
class HeldOutExamples(Protocol):
    """What the radii are learned on; `tether.training.HeldOut` is such."""

    def __len__(self) -> int: ...

    def batches(self, size: int | None) -> Callable[[int], Iterator[Any]]:
        """Called with a number, the batches of `size` examples from that number on, without an end."""

    def loss(self, batch: Any, step: int) -> Tensor:
        """The loss of a batch in evaluation mode, after a step of the run."""


class RadiusLearner:
    """What `tether.training.fit` does after a step of TPGM: learn the radii and project, or only project.

    Which batches are drawn follows from the number of steps done, so a run that goes on draws what it would have
    drawn. Several processes average the gradients, so that all learn the same radii.

        fit(task, data, optimizer, config, after_step=RadiusLearner(optimizer, HeldOut(task, held_out, config)))

    Args:
        held_out: examples that are neither trained on nor reported.

    Raises:
        TetherError: the optimizer is not TPGM, or the examples do not make a batch.
    """

    def __init__(
        self, optimizer: Optimizer, held_out: HeldOutExamples, config: RadiiConfig | None = None
    ) -> None:
        if not isinstance(optimizer, TPGM):
            raise TetherError(f"Radii are learned for TPGM only, not for {type(optimizer).__name__}.")
        self._optimizer, self._held_out, self._config = optimizer, held_out, config or RadiiConfig()
        self._parameters = [param for group in optimizer.param_groups for param in group["params"]]
        self._draw = held_out.batches(self._config.batch_size)
        self._batches: Iterator[Any] | None = None
        self._next = 0  # number of the batch that comes next, since the beginning of the run

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        return {"radii": {**asdict(self._config), "examples": len(self._held_out)}}

    def __call__(self, done: int, *, last: bool) -> None:
        """Learn the radii and project, or only project, or nothing, as is due after `done` steps.

        Args:
            last: no step comes after this one.

        Raises:
            TetherError: the held-out loss or its gradient is not finite; the weights stay as they were.
        """
        every, iterations = self._config.every, self._config.iterations
        if last if every is None else done % every == 0:
            self._skip_to(0 if every is None else (done // every - 1) * iterations)
            self._optimizer.radius_step(
                partial(self._loss, done - 1),
                iterations=iterations,
                after_backward=partial(self._average, done - 1),
            )
        elif every is not None:
            self._optimizer.project()

    def close(self) -> None:
        """Stop reading examples."""
        if self._batches is not None:
            self._batches.close()

    def _loss(self, step: int) -> Tensor:
        self._next += 1
        return self._held_out.loss(next(self._batches), step)

    def _average(self, step: int, loss: Tensor) -> None:
        mean = average_gradients(self._parameters, loss.float()[None])
        norm = get_total_norm([parameter.grad for parameter in self._parameters])
        if not torch.isfinite(mean + norm):
            raise TetherError(
                f"The held-out loss after step {step} or its gradient is not finite: loss {float(mean)}, "
                f"gradient norm {float(norm)}. Look at the held-out examples, or lower the learning rate."
            )

    def _skip_to(self, batch: int) -> None:
        """Have that batch of the run come next: the first time, or after steps that were left out."""
        if self._batches is None:
            self._batches, self._next = self._draw(batch), batch
        while self._next < batch:
            next(self._batches)
            self._next += 1
