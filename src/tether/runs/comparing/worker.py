"""Runs that several processes share: each takes what no other works on, and waits at the end for the rest.

Nobody hands out work. Whoever has the same list of runs and the same folder joins, on this machine or on another
one that sees the folder (`launch` starts such processes; the same command given twice does as well).

Whoever works on a run holds the claim to its training (`tether.training.lock.claim`): the file `.HASH.claim` beside
the runs' directories. A run whose process was killed is free at once, and the next process goes on from its last
checkpoint. Runs that differ only in what follows training share a claim: the second takes the weights of the first.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from tether._distributed import from_main, is_main
from tether._files import read_json
from tether.data import load_benchmark
from tether.data.records import PictureBenchmark
from tether.errors import TetherError
from tether.evaluation.scoring import Progress
from tether.evaluation.tables import count
from tether.models import load
from tether.recipe import Recipe, to_plain
from tether.runs.comparing.crew import Crew
from tether.runs.comparing.folders import RunFolders, State
from tether.runs.comparing.jobs import Job
from tether.runs.files import whole_training
from tether.runs.outcome import BASE, Base, Outcome, read_outcome
from tether.runs.pictures import Pictures
from tether.runs.train import run
from tether.training.lock import claim

SHORTEST_WAIT, LONGEST_WAIT = 0.25, 10.0
"""Seconds between looks at the runs of others; doubled as long as nothing happens."""
_LISTED = 8


class Worker:
    """A process that takes part in a comparison.

    Args:
        root: where the runs' directories are.
        device: where it computes.
        crew: processes that work for this one; they are started when there is something to do.
        progress: told what is being evaluated, and how far it is.
        announce: told how many runs there are and how many trainings they share, about every run that begins here or
            is found finished, and when there is only waiting.
    """

    def __init__(
        self,
        root: Path,
        *,
        device: torch.device | str = "cpu",
        crew: Crew | None = None,
        progress: Progress | None = None,
        announce: Callable[[str], None] = lambda line: None,
        show_progress: bool = True,
    ) -> None:
        self.root, self.device, self.crew = root, torch.device(device), crew or Crew()
        self.progress, self.announce, self.show_progress = progress, announce, show_progress
        self._sources = _Sources()

    def finish(self, jobs: Sequence[Job]) -> list[Path | None]:
        """See every job done: found, gone on with, made here, or waited for.

        Returns the runs' directories in the order of the jobs; None for one that diverged.

        Raises:
            TetherError: a run fails, was made from another base model or other pictures than are there now, or
                nobody works on it any more.
        """
        folders, done = RunFolders(self.root, jobs), {}
        if jobs:
            trainings = len({job.training for job in jobs})
            self.announce(f"{count(len(jobs), 'run')}, {count(trainings, 'training')}")
        pause, told = SHORTEST_WAIT, False
        while len(done) < len(jobs):
            before = len(done)
            deserted = self.crew.has_ended()  # asked first: the last one may finish meanwhile
            waiting = self._round(jobs, folders, done)
            if len(done) > before:
                pause, told = SHORTEST_WAIT, False
            elif deserted:
                raise TetherError(self.crew.last_words(_some(waiting)))
            elif waiting:
                if not told:
                    self.announce(f"Waiting for other processes: {_some(waiting)}")
                    told = True
                from_main(lambda seconds=pause: time.sleep(seconds))
                pause = min(2 * pause, LONGEST_WAIT)
        return [done[place] for place in range(len(jobs))]

    def help(self, jobs: Sequence[Job]) -> None:
        """Do of the jobs what no other process works on, and leave when there is nothing to take.

        Raises:
            TetherError: as `finish` does.
        """
        folders, done = RunFolders(self.root, jobs), {}
        before = -1
        while before < len(done) < len(jobs):
            before = len(done)
            self._round(jobs, folders, done)

    def outcome(self, job: Job, path: Path) -> Outcome:
        """What a finished run gave."""
        return read_outcome(path, replace(job.recipe, search={}), self.benchmark(job.recipe))

    def benchmark(self, recipe: Recipe) -> PictureBenchmark:
        """The data of a recipe, read once."""
        return self._sources.pictures(recipe).benchmark

    def _round(self, jobs: Sequence[Job], folders: RunFolders, done: dict[int, Path | None]) -> list[str]:
        """Go through the jobs once, and note in `done` what is; gives the labels of those that others work on."""
        waiting = []
        from_main(folders.refresh)
        for place, job in enumerate(jobs):
            if place in done:
                continue
            line = f"[{place + 1}/{len(jobs)}] {job.label}"
            path, state = _state(folders, job)
            if state == "open":
                if started := self.crew.start():
                    self.announce(started)
                with self._claim(job) as mine:
                    if not mine:
                        waiting.append(job.label)
                        continue
                    self.announce(line)
                    path, state = self._make(job, folders)
            else:
                self.announce(line)
            if state == "finished" and (changed := self._sources.changed(path, job.recipe)):
                raise TetherError(
                    f"{path} was made from {changed}, not from what is there now under that name. Choose another "
                    f"--runs."
                )
            done[place] = path if state == "finished" else None
        return waiting

    def _claim(self, job: Job) -> AbstractContextManager[bool]:
        """Gives whether this process alone may work on a job; never where all work is the crew's."""
        return (
            nullcontext(False) if self.crew.does_everything else claim(self.root / f".{job.training}.claim")
        )

    def _make(self, job: Job, folders: RunFolders) -> tuple[Path | None, State]:
        """Do the run, whose claim is ours."""
        from_main(folders.refresh)
        path, state = _state(folders, job)
        if state != "open":  # another process was faster, and has given the claim back
            return path, state
        if is_main():
            _forget_peak_memory(self.device)
        try:
            outcome = run(
                replace(job.recipe, name=job.name, search={}),
                self.root,
                resume=path,
                trained=self._trained(job, folders),
                device=self.device,
                progress=self.progress,
                show_progress=self.show_progress,
                test=job.test,
                check_pictures=self._sources.unchecked(job.recipe),
            )
        except TetherError:
            # Only a loss that is not finite stops all processes alike: after another error some would wait in vain.
            if not job.may_diverge:
                raise
            from_main(folders.refresh)
            path, state = _state(folders, job)
            if state != "diverged":
                raise
            return path, state
        return outcome.run, "finished"

    def _trained(self, job: Job, folders: RunFolders) -> Path | None:
        """A finished run with the weights that the job would train, from what is there now; None: it is to train."""

        def fits(path: Path) -> bool:
            try:
                return bool(whole_training(path)) and not self._sources.changed(path, job.recipe)
            except TetherError:  # what others keep in this folder
                return False

        path = from_main(lambda: str(next(filter(fits, folders.trained(job.training)), "")))
        return Path(path) if path else None


class _Sources:
    """The base models and data sets that are there now, each read once."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, str] = {}
        self._pictures: dict[str, Pictures] = {}
        self._checked: set[str] = set()

    def pictures(self, recipe: Recipe) -> Pictures:
        key = json.dumps(to_plain(recipe)["data"], sort_keys=True)
        if key not in self._pictures:
            self._pictures[key] = Pictures(load_benchmark(recipe.data))
        return self._pictures[key]

    def unchecked(self, recipe: Recipe) -> bool:
        """Whether nobody has looked yet if the pictures can be read; once is enough."""
        key = json.dumps(self.pictures(recipe).digests, sort_keys=True)
        new = key not in self._checked
        self._checked.add(key)
        return new

    def changed(self, path: Path, recipe: Recipe) -> str:
        """What a run was made from that is not there any more; "" if all is as it was."""
        if recipe.model not in self._fingerprints:
            self._fingerprints[recipe.model] = load(recipe.model).fingerprint()
        if not (path / BASE).is_file():
            return "a base model that it does not name (by an earlier version of tether)"
        if read_json(path / BASE, Base).fingerprint != self._fingerprints[recipe.model]:
            return "another base model"
        if self.pictures(recipe).changes(path):
            return "other pictures"
        return ""


def _some(labels: Sequence[str]) -> str:
    """The first few labels, and how many more there are."""
    more = f"; and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    return "; ".join(labels[:_LISTED]) + more


def _state(folders: RunFolders, job: Job) -> tuple[Path | None, State]:
    """As the first process sees it, on all."""

    def look() -> list[str]:
        path, state = folders.state(job)
        return [str(path) if path else "", state]

    path, state = from_main(look)
    return Path(path) if path else None, state


def _forget_peak_memory(device: torch.device) -> None:
    """Let the next run's peak memory be its own, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
