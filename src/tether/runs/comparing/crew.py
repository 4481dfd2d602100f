"""Processes that do the work of a comparison together with the one that was started."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from tether._text import printable
from tether.errors import TetherError

Work = Callable[..., None]
"""What a further process does: called with the crew's arguments, its device and, where it has a log, `announce`."""


class Crew:
    """Nobody else; what processes beside this one have in common. Leaving the context ends them.

    Attributes:
        does_everything: whether this process only waits for the others.
    """

    does_everything = False

    def start(self) -> str:
        """There is work: start the processes, unless that was done. Gives what people should know of it."""
        return ""

    def has_ended(self) -> bool:
        """Whether nobody is left who might do what is open."""
        return False

    def last_words(self, waiting: str) -> str:
        """Why what is waited for is not done, after `has_ended`."""
        raise NotImplementedError

    def stop(self, *, failed: bool) -> None:
        """The comparison is done, or has `failed` or was interrupted."""

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(failed=error is not None)


class LocalProcesses(Crew):
    """Further processes of this machine, with which this one shares its processors and the GPUs.

    The end of this process, however it comes, ends them: a training step is finished and its checkpoint written.

    Args:
        count: how many there are beside this one.
        work: a function that a new process can import.
    """

    def __init__(self, count: int, work: Work, *arguments: Any, device: torch.device | str = "cpu") -> None:
        self._work = (work, *arguments)
        self._count, self._device = count, torch.device(device)
        self._processes: list[multiprocessing.Process] = []
        self._threads = torch.get_num_threads()

    def start(self) -> str:
        if self._processes or not self._count:
            return ""
        context = multiprocessing.get_context("spawn")
        share = max(1, self._threads // (self._count + 1))
        for number in range(1, self._count + 1):
            arguments = (number, share, worker_device(self._device, number), *self._work)
            self._processes.append(context.Process(target=_work, args=arguments))
        for process in self._processes:
            process.start()
        torch.set_num_threads(share)
        return ""

    def stop(self, *, failed: bool) -> None:
        torch.set_num_threads(self._threads)
        for process in self._processes:
            if failed:
                process.terminate()
        for process in self._processes:  # the last one may still be writing its report
            process.join()


def worker_device(device: torch.device | str, number: int) -> torch.device:
    """Where worker `number` of this machine computes: the GPUs go round."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def _work(number: int, threads: int, device: torch.device, work: Work, *arguments: Any) -> None:
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else each has a context and its random stream on the first GPU
    try:
        work(*arguments, device)
    except KeyboardInterrupt:
        pass
    except TetherError as error:  # whoever meets the run next, which is open again, may have more memory
        line = printable(f"Worker {number} stopped, the others go on: {error}")
        print(line, file=sys.stderr, flush=True)


def _stop_without_parent() -> None:
    """Wait for the process that began this one to end; if it was killed, stop as at a SIGTERM, with a checkpoint."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
