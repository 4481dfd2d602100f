"""Runs that several processes share: each takes what no other holds, and waits at the end for the rest.

Nobody hands out work. Whoever has the same list of runs and the same folder joins, on this machine or on
another one that sees the folder: `tether compare …` started twice, `--workers 4`, or on a SLURM cluster
`srun --ntasks 16 --gpus-per-task 1 tether compare …`.

Whoever works on a run holds the claim to its training (`claims`): the file `.HASH.claim` beside the
runs' directories. A run whose process was killed is free at once, and the next process goes on from its last
checkpoint. Runs that differ only in what follows training share a claim: the second one takes the weights of the first.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tether._distributed import from_main, is_main
from tether._files import read_json
from tether._text import printable
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.evaluation.scoring import Progress
from tether.models import load
from tether.recipe import Recipe, to_plain
from tether.runs.comparing.claims import claim
from tether.runs.files import training_part, without_logs
from tether.runs.outcome import BASE, RESULT, Base, Outcome, is_finished, read_outcome
from tether.runs.pictures import Pictures
from tether.runs.train import run
from tether.training.checkpoint import latest_checkpoint

SHORTEST_WAIT, LONGEST_WAIT = 0.25, 10.0
"""Seconds between looks at the runs of others; doubled as long as nothing happens."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is needed.

    Attributes:
        label: what it is, for people.
        test: whether the test splits are to be looked at.
        may_diverge: whether a loss that is not finite is an answer rather than an error.
    """

    recipe: Recipe
    label: str
    test: bool = True
    may_diverge: bool = False

    @property
    def name(self) -> str:
        """The recipe's name and the hash of what decides its result: the run's directory is NAME-001."""
        options = without_logs(to_plain(self.recipe))
        options.pop("search", None)  # says nothing about a single run
        return f"{self.recipe.name}-{_digest(options)}"

    @property
    def training(self) -> str:
        """Hash of all that decides the trained weights."""
        return _digest(training_part(to_plain(self.recipe)))


def finish(
    jobs: Sequence[Job],
    root: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    show_progress: bool = True,
) -> list[Outcome | None]:
    """The outcome of every job, in order: found, continued, made here, or waited for; None for one that diverged.

    Args:
        root: where the runs' directories are.
        announce: told about every run that begins here or is found finished, and when there is only waiting.

    Raises:
        TetherError: a run fails, or was made from another base model or other pictures than are there now.
    """
    here = _Here()
    done: dict[int, Outcome | None] = {}
    pause, told = SHORTEST_WAIT, False
    while len(done) < len(jobs):
        before, others = len(done), []
        for place, job in enumerate(jobs):
            if place in done:
                continue
            line = f"[{place + 1}/{len(jobs)}] {job.label}"
            path, state = _look(job, root)
            if state == "open":
                with claim(root / f".{job.training}.claim") as mine:
                    if not mine:
                        others.append(job.label)
                        continue
                    announce(line)
                    _make(job, root, here, device, progress, show_progress)
                path, state = _look(job, root)
            else:
                announce(line)
            done[place] = None if state == "diverged" else _read(job, path, here)
            told = False
        if len(done) > before:
            pause = SHORTEST_WAIT
        elif others:
            if not told:
                announce(f"Waiting for other processes: {'; '.join(others)}")
                told = True
            _wait(pause)
            pause = min(2 * pause, LONGEST_WAIT)
    return [done[place] for place in range(len(jobs))]


@dataclass
class _Here:
    """The base models and data sets that are there now, each read once."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    data: dict[str, Pictures] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)

    def pictures(self, recipe: Recipe) -> Pictures:
        """The data."""
        key = json.dumps(to_plain(recipe)["data"], sort_keys=True)
        if key not in self.data:
            self.data[key] = Pictures(load_benchmark(recipe.data))
        return self.data[key]

    def unchecked(self, recipe: Recipe) -> bool:
        """Whether nobody has looked yet if the pictures can be read; once is enough."""
        key = json.dumps(self.pictures(recipe).digests, sort_keys=True)
        new = key not in self.checked
        self.checked.add(key)
        return new

    def other(self, path: Path, recipe: Recipe) -> str:
        """What a run was made from that is not there any more; "" if all is as it was."""
        if recipe.model not in self.fingerprints:
            self.fingerprints[recipe.model] = load(recipe.model).fingerprint()
        if not (path / BASE).is_file():
            return "a base model that it does not name (by an earlier version of tether)"
        if read_json(path / BASE, Base).fingerprint != self.fingerprints[recipe.model]:
            return "another base model"
        if self.pictures(recipe).changes(path):
            return "other pictures"
        return ""


@contextmanager
def local_workers(count: int, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """While inside, `count` more processes of this machine run `work(*arguments, number)`, number from 1 on.

    Leaving ends them, and so does the end of this process, however it comes: a training step is finished and its
    checkpoint written. The processors are shared out.

    Args:
        work: a function that a new process can import.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // (count + 1))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(share, work, *arguments, number))
        for number in range(1, count + 1)
    ]
    for process in processes:
        process.start()
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def own_device(device: torch.device | str, number: int) -> torch.device:
    """Where worker `number` of this machine computes: the GPUs go round."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def _work(threads: int, work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(*arguments)
    except KeyboardInterrupt:
        pass
    except TetherError as error:  # whoever meets the run next, which is open again, may have more memory
        line = printable(f"Worker {arguments[-1]} stopped, the others go on: {error}")
        print(line, file=sys.stderr, flush=True)


def _stop_without_parent() -> None:
    """Wait for the process that began this one to end; if it was killed, stop as at a SIGTERM, with a checkpoint."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _look(job: Job, root: Path) -> tuple[Path | None, str]:
    """The job's directory, if there is one, and whether it is "finished", "diverged" or "open"."""

    def look() -> list[str]:
        # One that was killed while its directory was made has no environment.json, and is none.
        there = [path for path in sorted(root.glob(f"{job.name}-*")) if (path / "environment.json").is_file()]
        for path in there:
            if is_finished(path, job.test):
                return [str(path), "finished"]
        if job.may_diverge and there and any(there[0].glob("non-finite-step-*.json")):
            return [str(there[0]), "diverged"]
        return [str(there[0]) if there else "", "open"]

    path, state = from_main(look)
    return Path(path) if path else None, state


def _make(
    job: Job,
    root: Path,
    here: _Here,
    device: torch.device | str,
    progress: Progress | None,
    show_progress: bool,
) -> None:
    """Do the run, whose claim is ours."""
    path, state = _look(job, root)
    if state != "open":  # another process was faster, and has given the claim back
        return
    named = replace(job.recipe, name=job.name, search={})
    if is_main():
        _forget_peak_memory(torch.device(device))
    try:
        run(
            named,
            root,
            resume=path,
            trained=_trained(job, root, here),
            device=device,
            progress=progress,
            show_progress=show_progress,
            test=job.test,
            check_pictures=here.unchecked(job.recipe),
        )
    except TetherError:
        # Only a loss that is not finite stops all processes alike; after another error some would wait here in vain.
        if not job.may_diverge or _look(job, root)[1] != "diverged":
            raise


def _trained(job: Job, root: Path, here: _Here) -> Path | None:
    """A finished run with the weights that the job would train, from what is there now."""
    wanted = training_part(to_plain(job.recipe))

    def fits(path: Path) -> bool:
        try:
            same = training_part(read_json(path / "config.json", dict)) == wanted
            return same and latest_checkpoint(path / "checkpoints") and not here.other(path, job.recipe)
        except TetherError:  # what others keep in this folder
            return False

    def search() -> str:
        finished = (result.parent for result in sorted(root.glob(f"*/{RESULT}")))
        return str(next(filter(fits, finished), ""))

    found = from_main(search)
    return Path(found) if found else None


def _digest(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:10]


def _read(job: Job, path: Path, here: _Here) -> Outcome:
    if other := here.other(path, job.recipe):
        raise TetherError(
            f"{path} was made from {other}, not from what is there now under that name. Choose another --runs."
        )
    return read_outcome(path, replace(job.recipe, search={}), here.pictures(job.recipe).benchmark)


def _wait(seconds: float) -> None:
    from_main(lambda: time.sleep(seconds))


def _forget_peak_memory(device: torch.device) -> None:
    """Let the next run's peak memory be its own, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
