"""Runs' directories, found by the names that one listing of their folder gives: no search per run."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tether._files import read_json
from tether.errors import TetherError
from tether.runs.comparing.jobs import Job, training_hash
from tether.runs.outcome import RESULT, is_finished

State = Literal["open", "finished", "diverged"]


class RunFolders:
    """What the last listing of a folder shows; `refresh` lists it again.

    Args:
        jobs: whose directories are known by name alone. Of any other run, the configuration is read once, when runs
            with the same weights are first asked for.
    """

    def __init__(self, root: Path, jobs: Iterable[Job] = ()) -> None:
        self.root = root
        self._names: dict[str, list[str]] = {}
        self._trainings: dict[str, str | None] = {job.name: job.training for job in jobs}

    def refresh(self) -> None:
        """List the folder."""
        names = defaultdict(list)
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.root)):
                job, _, number = name.rpartition("-")
                if job and number.isdecimal():
                    names[job].append(name)
        self._names = dict(names)

    def state(self, job: Job) -> tuple[Path | None, State]:
        """A job's directory, if there is one, and how far it is."""
        # One that was killed while its directory was made has no environment.json, and is none.
        paths = [self.root / name for name in self._names.get(job.name, ())]
        paths = [path for path in paths if (path / "environment.json").is_file()]
        for path in paths:
            if is_finished(path, job.test):
                return path, "finished"
        if job.may_diverge and paths and any(paths[0].glob("non-finite-step-*.json")):
            return paths[0], "diverged"
        return (paths[0] if paths else None), "open"

    def trained(self, training: str) -> Iterator[Path]:
        """Finished runs with the weights of this hash (`Job.training`)."""
        for job, names in self._names.items():
            for name in names:
                if self._training(job, name) == training and (self.root / name / RESULT).is_file():
                    yield self.root / name

    def _training(self, job: str, name: str) -> str | None:
        """The hash of a run's weights; None for what else lies in the folder."""
        if job in self._trainings:
            return self._trainings[job]
        if name not in self._trainings:
            try:
                self._trainings[name] = training_hash(read_json(self.root / name / "config.json", dict))
            except (TetherError, OSError):
                self._trainings[name] = None
        return self._trainings[name]
