"""From example numbers to batches on the device."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tether.errors import TetherError, without_traceback

Key = tuple[int, int]
"""(epoch, index): what a data set is asked for."""


def load(
    data: Dataset,
    plan: Callable[[int], Iterator[list[Any]]],
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Batches of `data[(epoch, index)]` in the order of `plan(0)`; `plan(n)` is the plan without its first n.

    If a worker process dies (killed for its memory, say), loading starts again once where it was.

    Raises:
        TetherError: a worker died a second time.
    """
    done = 0
    for attempt in range(2):
        loader = DataLoader(
            data,
            batch_sampler=_Plan(plan, done),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # else every iterator draws from the run's own random stream
        )
        try:
            for batch in _iterate(loader):
                yield batch
                done += 1
            return
        except TetherError as error:
            raise without_traceback(error) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            if workers == 0 or str(error).startswith("Caught "):  # the data set's own error
                raise
            if attempt:
                raise TetherError(
                    f"A data worker died twice ({error}). Usually memory ran out: use fewer workers, or give "
                    f"the machine more shared memory (/dev/shm; `--shm-size` for a container). The run can "
                    f"be continued from its last checkpoint."
                ) from error


class _Plan:
    def __init__(self, plan: Callable[[int], Iterator[list[Key]]], skip: int) -> None:
        self._plan, self._skip = plan, skip

    def __iter__(self) -> Iterator[list[Key]]:
        return self._plan(self._skip)


def _iterate(loader: DataLoader) -> Iterator[Any]:
    """`iter(loader)`, without torch's SIGCHLD handler.

    That one raises in the middle of whatever the main thread does, a half-done optimizer step for example; a
    dead worker is noticed all the same when the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, handler)
    return iterator


def _outlive_signals(_worker: int) -> None:
    """Leave signals that reach the whole process group to the main process, which still wants batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever the main process does at an alarm
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor in a nested batch on `device`; what is no tensor stays."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: to_device(value, device) for key, value in batch.items()}
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*(to_device(value, device) for value in batch))
        case list() | tuple():
            return type(batch)(to_device(value, device) for value in batch)
    return batch


def parts(examples: Int[np.ndarray, " share"], epoch: int, size: int | None) -> list[list[Key]]:
    """The keys of a process's examples, in pieces of at most `size`."""
    keys = [(epoch, int(index)) for index in examples]
    size = size or len(keys)
    return [keys[start : start + size] for start in range(0, len(keys), size)]
