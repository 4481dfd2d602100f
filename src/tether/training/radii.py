"""TPGM in the loop: after a step the radii of its projection are learned on held-out examples.

Which examples these are is a pure function of the seed and the step, so a run that goes on draws what it
would have drawn. Several processes share each batch and average the gradients, so that all learn the same
radii.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.data import Dataset

from tether._distributed import average_gradients, rank, world_size
from tether.errors import TetherError
from tether.optimizers.tpgm import TPGM
from tether.training.config import FitConfig
from tether.training.failures import out_of_memory
from tether.training.loading import Key, load, parts, to_device
from tether.training.sampler import Batches, shuffled


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


class Radii:
    """What comes after a step of TPGM; for any other optimizer there is nothing to do.

    Raises:
        TetherError: TPGM has no held-out examples, or too few, or a task that cannot use them; or another
            optimizer is given held-out examples.
    """

    def __init__(
        self,
        task: Any,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        data: Dataset | None,
        config: RadiiConfig | None,
        fit: FitConfig,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        self._learns = isinstance(optimizer, TPGM)
        if not self._learns:
            if data is not None or config is not None:
                raise TetherError(
                    f"held_out and radii are of use to TPGM only, not to {type(optimizer).__name__}; leave them out."
                )
            return
        if data is None:
            raise TetherError(
                "TPGM learns its radii on held-out examples; give fit(held_out=…) some that are neither trained on "
                "nor reported."
            )
        if not hasattr(task, "held_out_loss"):
            raise TetherError(
                f"{type(task).__name__} needs a method held_out_loss(batch, step) to be trained by TPGM: the "
                f"loss of a batch in evaluation mode."
            )
        config, count = config or RadiiConfig(), len(data)
        if count == 0:
            raise TetherError("TPGM learns its radii on held-out examples, but there are none.")
        size = min(config.batch_size or fit.batch_size, count)
        self._batches = Batches(partial(shuffled, count, fit.seed), count, size, drop_last=True)
        self._batches.check_shares(world_size())
        self._task, self._optimizer, self._parameters, self._config = task, optimizer, parameters, config
        self._data, self._examples, self._fit, self._collate = data, count, fit, collate
        self._device = parameters[0].device
        self._loader: Iterator[Any] | None = None
        self._drawn = 0  # batches, since the beginning of the run

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        return {"radii": {**asdict(self._config), "examples": self._examples}} if self._learns else {}

    def after_step(self, done: int, *, ends: bool, looks: bool) -> None:
        """Learn the radii and project, or only project, or nothing, as is due after `done` steps.

        Args:
            ends: this was the last step.
            looks: whether to see if the loss is finite, for which a GPU is waited for.

        Raises:
            TetherError: the held-out loss or its gradient is not finite (the weights stay as they were), or
                memory ran out.
        """
        if not self._learns:
            return
        every, iterations = self._config.every, self._config.iterations
        due = ends if every is None else done % every == 0
        if due:
            self._skip_to(0 if every is None else (done // every - 1) * iterations)
            try:
                self._optimizer.radius_step(
                    partial(self._loss, done - 1),
                    iterations=iterations,
                    after_backward=partial(self._average, done - 1, looks),
                )
            except torch.OutOfMemoryError as error:
                raise out_of_memory(done - 1, error) from error
        elif every is not None:
            self._optimizer.project()

    def close(self) -> None:
        """Stop loading."""
        if self._learns and self._loader is not None:
            self._loader.close()

    def _loss(self, step: int) -> Tensor:
        batch = to_device(next(self._loader), self._device)
        self._drawn += 1
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._fit.precision == "bf16"):
            return self._task.held_out_loss(batch, step)

    def _average(self, step: int, looks: bool, loss: Tensor) -> None:
        mean = average_gradients(self._parameters, loss.float()[None])
        if looks:
            norm = get_total_norm([parameter.grad for parameter in self._parameters])
            if not torch.isfinite(mean + norm):
                raise TetherError(
                    f"The held-out loss after step {step} or its gradient is not finite: loss {float(mean)}, "
                    f"gradient norm {float(norm)}. Look at the held-out examples, or lower the learning rate."
                )

    def _skip_to(self, batch: int) -> None:
        """Have the loader give that batch of the run next: the first time, or after steps that were left out."""
        if self._loader is None:
            self._drawn = batch
            self._loader = load(
                self._data,
                partial(self._plan, batch),
                workers=min(1, self._fit.workers),
                collate=self._collate,
                pin_memory=self._device.type == "cuda",
            )
        for _ in range(batch - self._drawn):
            next(self._loader)
        self._drawn = batch

    def _plan(self, first: int, skip: int) -> Iterator[list[Key]]:
        for batch in itertools.count(first + skip):
            epoch, share = self._batches.share(batch, rank(), world_size())
            yield from parts(share, epoch, None)
