"""Examples besides the training data, as a step takes them: in batches on the device, with their loss."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tether._distributed import rank, world_size
from tether.errors import TetherError
from tether.training.config import FitConfig
from tether.training.loading import Key, load, parts, to_device
from tether.training.sampler import Batches, shuffled


class HeldOut:
    """Examples that are neither trained on nor reported, for what is learned besides the weights.

    A batch is a pure function of the run's seed and the batch's number; several processes share it.

    Args:
        task: what is trained, with a method `held_out_loss(batch, step)`: the loss in evaluation mode, without any
            drop.
        data: map-style, as that of `tether.training.fit`.
        config: of the run: its seed, precision and workers, and its batch size where no other is asked for.
        collate: as that of `fit`.

    Raises:
        TetherError: there are no examples, or the task has no such method.
    """

    def __init__(
        self,
        task: Any,
        data: Dataset,
        config: FitConfig,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if not hasattr(task, "held_out_loss"):
            raise TetherError(
                f"{type(task).__name__} needs a method held_out_loss(batch, step) to learn from held-out examples: "
                f"the loss of a batch in evaluation mode."
            )
        if not len(data):
            raise TetherError("Something is to be learned from held-out examples, but there are none.")
        self._task, self._data, self._config, self._collate = task, data, config, collate
        self._device = next(iter(dict(task.named_parameters()).values())).device

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, size: int | None = None) -> Callable[[int], Iterator[Any]]:
        """Called with a number, the batches of `size` examples from that number on, without an end.

        Args:
            size: over all processes; None for that of training. All examples where there are fewer.

        Raises:
            TetherError: the processes cannot share such a batch equally.
        """
        count = len(self)
        size = min(size or self._config.batch_size, count)
        batches = Batches(partial(shuffled, count, self._config.seed), count, size, drop_last=True)
        batches.check_shares(world_size())
        return partial(self._read, batches)

    def loss(self, batch: Any, step: int) -> Tensor:
        """The loss of a batch in evaluation mode, after a step of the run, in the precision of the run."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            return self._task.held_out_loss(batch, step)

    def _read(self, batches: Batches, first: int) -> Iterator[Any]:
        def plan(skip: int) -> Iterator[list[Key]]:
            for number in itertools.count(first + skip):
                epoch, share = batches.share(number, rank(), world_size())
                yield from parts(share, epoch, None)

        loader = load(
            self._data,
            plan,
            workers=min(1, self._config.workers),
            collate=self._collate,
            pin_memory=self._device.type == "cuda",
        )
        with closing(loader):
            for batch in loader:
                yield to_device(batch, self._device)
