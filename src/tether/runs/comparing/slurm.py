"""Jobs of a SLURM cluster that do the runs of a comparison, submitted by the package submitit.

Each job is one process that joins by claims, as any other does. One that reaches its time limit, or is preempted,
finishes a training step, writes its checkpoint and is queued again. One that is cancelled writes its checkpoint too.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tether._distributed import joined
from tether.errors import TetherError
from tether.runs.comparing.crew import Crew, Work
from tether.training.interrupts import Interrupted

DEFAULT_MINUTES, RESTARTS = 240, 1000
"""Time limit of a job, where none is given, and how often one that reached it is queued again."""


def slurm_options(text: str) -> dict[str, str]:
    """Options of sbatch by name, from words such as `partition=gpu,gpus=1,time=600`; the time is in minutes.

    Raises:
        TetherError: a word is no `name=value`, a name comes twice, or the time is no number of minutes.
    """
    options: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        name = name.lstrip("-").replace("_", "-")
        if not name or not equals or not value:
            raise TetherError(
                f"--slurm takes options of sbatch, such as partition=gpu,gpus=1,time=600; found {word!r}."
            )
        if name in options:
            raise TetherError(f"--slurm has {name} twice: {options[name]!r} and {value!r}.")
        options[name] = value
    _minutes(options)
    return options


def require_submitit() -> None:
    """See that jobs can be submitted.

    Raises:
        TetherError: the package is not installed.
    """
    if find_spec("submitit") is None:
        raise TetherError("Jobs of SLURM need the package submitit: pip install '.[slurm]'.")


class SlurmJobs(Crew):
    """Jobs that do all the work, while this process waits. Those that are left when it is interrupted are cancelled.

    Args:
        count: how many there are.
        options: of sbatch, by name.
        folder: for their logs and what submitit needs to start them; every machine must see it.
        work: a function that a new process can import.
        cluster: an executor of submitit: "slurm", or "local" for processes of this machine.

    Raises:
        TetherError: submitit is not installed, or an option makes no sense.
    """

    does_everything = True

    def __init__(
        self,
        count: int,
        options: Mapping[str, str],
        folder: Path,
        work: Work,
        *arguments: Any,
        cluster: str = "slurm",
    ) -> None:
        require_submitit()
        self._count, self._folder, self._cluster = count, folder.absolute(), cluster
        self._minutes = _minutes(options)
        self._options = {name: value for name, value in options.items() if name != "time"}
        self._task = _Task(work, *arguments)
        self._jobs: list[Any] = []

    def start(self) -> str:
        """Submit the jobs.

        Raises:
            TetherError: there is no SLURM here, or it refuses them.
        """
        if self._jobs:
            return ""
        import submitit

        try:
            executor = submitit.AutoExecutor(
                self._folder, cluster=self._cluster, slurm_max_num_timeout=RESTARTS
            )
            executor.update_parameters(
                name="tether", timeout_min=self._minutes, slurm_additional_parameters=self._options
            )
            with executor.batch():
                jobs = [executor.submit(self._task) for _ in range(self._count)]
        except (RuntimeError, OSError) as error:
            raise TetherError(f"The jobs could not be submitted to {self._cluster}: {error}") from error
        self._jobs = jobs
        return f"Submitted {', '.join(job.job_id for job in jobs)}; their logs: {self._folder}"

    def has_ended(self) -> bool:
        return bool(self._jobs) and all(job.done() for job in self._jobs)

    def last_words(self, waiting: str) -> str:
        ends = [line for job in self._jobs if (line := _last_line(job))]
        reason = f" One ended with: {ends[0]}." if ends else ""
        return (
            f"All jobs ({len(self._jobs)}) have ended, and these runs are not done: {waiting}."
            f"{reason} Look into {self._folder}; the same command goes on with what is left."
        )

    def stop(self, *, failed: bool) -> None:
        for job in self._jobs:
            if job.done():
                continue
            if failed or job.state == "PENDING":
                job.cancel(check=False)
            else:
                job.wait()  # it finds nothing left to do, or writes its last report


class _Task:
    """What a job does. submitit keeps it as a pickle, and starts it again after a time limit (`checkpoint`)."""

    def __init__(self, work: Work, *arguments: Any) -> None:
        self._work, self._arguments = work, arguments

    def __call__(self) -> None:
        torch.set_num_threads(
            len(os.sched_getaffinity(0))
        )  # OMP_NUM_THREADS is of the machine that submitted
        queue_again, process, asked = signal.getsignal(signal.SIGUSR2), os.getpid(), []

        def stop(number: int, frame: FrameType | None) -> None:
            if os.getpid() == process:  # not in a data worker, which inherits this
                asked.append(number)
                signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGUSR2, stop)
        signal.signal(signal.SIGTERM, _leave)
        try:
            with joined() as device:
                self._work(*self._arguments, device, announce=partial(print, flush=True))
        except Interrupted:
            if asked:
                queue_again(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """The task to be queued again, as submitit takes it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _leave(number: int, frame: FrameType | None) -> None:
    """Outside of training, where there is no step to finish."""
    raise Interrupted(number, "Stopped by the scheduler.")


def _minutes(options: Mapping[str, str]) -> int:
    text = options.get("time", str(DEFAULT_MINUTES))
    if not text.isdecimal() or int(text) < 1:
        raise TetherError(
            f"--slurm time={text}: the time limit is a whole number of minutes, such as time=600."
        )
    return int(text)


def _last_line(job: Any) -> str:
    """What a job that failed said last; "" of one that did not, or left nothing."""
    with suppress(Exception):  # whatever submitit meets in its files, the reader is told where these are
        if job.exception() is not None:
            return next(
                (line.strip() for line in reversed((job.stderr() or "").splitlines()) if line.strip()), ""
            )
    return ""
