"""A directory that explains the numbers of one run, and belongs to one process at a time.

runs/NAME-001/
    lock                 the process that uses the directory
    environment.json     versions, platform, commit, threads (environment-2.json where a later part differs)
    config.json, ...     whatever was recorded: the resolved configuration, the hashes of splits and base model
    metrics.jsonl        one line per measurement; the truth, of which TensorBoard shows a copy
    checkpoints/         see `tether.training.checkpoint`
    tensorboard/
"""

import errno
import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from tether._distributed import from_main, is_main
from tether._files import read_json, temporary_beside, write_atomically, write_json, write_tensors
from tether.errors import TetherError, is_utf8
from tether.training import lock
from tether.training.checkpoint import clean
from tether.training.environment import environment

_SECONDS_TO_MAKE = 3600.0  # far more than it ever takes


class RunDirectory:
    """The directory of a run; a context manager that gives the directory free at the end.

    With several processes all make it together; the first one writes and the others only know the path.

    >>> with RunDirectory.create("runs", "flowers") as run:
    ...     run.record("config", {"seed": 0})
    ...     run.log("train", step=10, values={"loss": 0.3})
    """

    def __init__(self, path: Path, *, tensorboard: bool = True, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._pending = b""
        self._tracker: Any = None
        self._track = tensorboard and is_main()
        self._warned = False
        self._recorded: set[str] = set()

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        *,
        records: Mapping[str, Mapping[str, Any]] | None = None,
        tensorboard: bool = True,
    ) -> "RunDirectory":
        """Make `root/NAME-001`, or the next number that is free; nothing that exists is ever touched.

        Args:
            records: what is to stand in it from the first moment on, by name as `record` takes it: a process that is
                killed leaves a directory that explains itself, or none.

        Raises:
            TetherError: `name` is no plain file name, or the folder cannot be made.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise TetherError(
                f"A run's name has letters, digits, '.', '_' and '-', begins with a letter or digit, and has "
                f"at most 100 characters; found {name!r}."
            )
        records = records or {}
        path = from_main(lambda: str(_make(Path(root), name, records)))
        run = cls(Path(path), tensorboard=tensorboard)
        run._recorded = {f"{entry}.json" for entry in records}
        return run

    @classmethod
    def open(cls, path: str | Path, *, tensorboard: bool = True, read_only: bool = False) -> "RunDirectory":
        """Take up a run that was stopped or killed, and clear away what a kill left half done.

        Args:
            read_only: only look at it, as at a finished run: it may lie where nothing can be written, others may
                look at the same time, and `record` only compares.

        Raises:
            TetherError: there is no run at `path`, or another process uses it.
        """
        take_up = _existing if read_only else _take_up
        run = Path(from_main(lambda: str(take_up(Path(path)))))
        return cls(run, tensorboard=tensorboard, read_only=read_only)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def record(
        self,
        name: str,
        value: Mapping[str, Any],
        *,
        may_change: Collection[str] = (),
        complete: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda earlier: earlier,
    ) -> None:
        """Write `value` to `NAME.json`, or see that what stands there from before is the same.

        Args:
            may_change: dotted names of entries that may differ; the new value is then kept.
            complete: what an earlier version of tether wrote, with what has come since.

        Raises:
            TetherError: it differs elsewhere: the run would not be a continuation. Lists the differences.
        """
        from_main(lambda: self._record(name, value, may_change, complete))

    def _record(
        self,
        name: str,
        value: Mapping[str, Any],
        may_change: Collection[str],
        complete: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> None:
        path = self.path / f"{name}.json"
        plain = json.loads(json.dumps(value))
        if path.exists():
            changed = differences(complete(read_json(path, dict)), plain)
            refused = [text for entry, text in changed.items() if entry not in may_change]
            if refused:
                raise TetherError(
                    f"{path} is from an earlier part of this run and differs from what is asked for now: "
                    f"{'; '.join(refused)}. Ask for the same to continue, or start a new run."
                )
        if self._read_only:
            return
        write_json(path, plain)
        self._recorded.add(path.name)

    def record_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that explain the run to `NAME.safetensors`, unless it is only looked at."""
        if is_main() and not self._read_only:
            write_tensors(self.path / f"{name}.safetensors", tensors)
            self._recorded.add(f"{name}.safetensors")

    def log(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
        """Append {"kind", "step", **values} to metrics.jsonl; a number that is not finite becomes null.

        A full disk does not stop the run: the lines are kept and written when there is space again.
        """
        if not is_main():
            return
        row: dict[str, Any] = {"kind": kind, "step": step}
        for name, value in values.items():
            row[name] = value if math.isfinite(value) else None
        self._pending += json.dumps(row, allow_nan=False).encode() + b"\n"
        self._write_pending()
        self._show(kind, step, row)

    def sync(self) -> None:
        """See that everything logged so far is on the disk."""
        if is_main() and self.metrics.exists():
            self._write_pending()
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and half a last line: the run goes on from there."""
        if not is_main() or not self.metrics.exists():
            return
        lines = [
            line for line in self.metrics.read_bytes().splitlines(keepends=True) if _is_up_to(line, step)
        ]
        write_atomically(self.metrics, lambda path: path.write_bytes(b"".join(lines)))

    def discard_unused(self) -> bool:
        """Remove the directory of a run that failed before it began: nothing stands in it but what `record` wrote.

        Returns whether that was so. The first process does it, and waits for no other: they may have gone on.
        """
        if not is_main():
            return False
        begin = {"lock", "environment.json", "checkpoints", *self._recorded}
        unused = {path.name for path in self.path.rglob("*")} <= begin
        if unused:
            lock.release(self.path / "lock", remove=True)
            shutil.rmtree(self.path, ignore_errors=True)
        return unused

    def close(self) -> None:
        """Give the directory free."""
        if is_main() and self.path.exists() and not self._read_only:
            self.sync()
            if self._tracker is not None:
                self._tracker.close()
            lock.release(self.path / "lock")

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_pending(self) -> None:
        try:
            with open(self.metrics, "ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    written = file.write(self._pending)
                except OSError:
                    written = 0
                if written < len(self._pending):
                    file.truncate(size)
                    raise OSError("no space left")
            self._pending = b""
        except OSError as error:
            self._warn(f"Could not write to {self.metrics}: {error}. Training goes on; the lines are kept.")

    def _show(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        """Copy a row to TensorBoard; whatever goes wrong there, the run goes on without it."""
        if not self._track:
            return
        try:
            if self._tracker is None:
                from torch.utils.tensorboard import SummaryWriter

                self._tracker = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._tracker.add_scalar(f"{kind}/{name}", value, step)
        except Exception as error:
            self._track = False
            self._warn(f"TensorBoard failed ({error}); the run goes on, and {self.metrics} has everything.")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=3)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, also while the run is going on (half a last line is left out)."""
    lines = (Path(path) / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def differences(old: Any, new: Any, name: str = "") -> dict[str, str]:
    """Where two nested values differ: dotted name → "name was OLD and is NEW"."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = {}
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else str(key)
            changes.update(differences(old.get(key, "not there"), new.get(key, "not there"), inner))
        return changes
    return {} if old == new else {name: f"{name} was {old!r} and is {new!r}"}


def _make(root: Path, name: str, records: Mapping[str, Mapping[str, Any]]) -> Path:
    if not is_utf8(str(root)):
        raise TetherError(f"The folder {str(root)!a} for runs is not named in UTF-8. Choose another.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(root, name)
        temporary = temporary_beside(root / name)
        temporary.mkdir()
        (temporary / "checkpoints").mkdir()
        lock.acquire(temporary / "lock")
        write_json(temporary / "environment.json", environment())
        for entry, value in records.items():
            write_json(temporary / f"{entry}.json", json.loads(json.dumps(value)))
        return _rename(temporary, root, name)
    except OSError as error:
        raise TetherError(f"Could not make a run directory in {root}: {error.strerror}.") from error


def _rename(temporary: Path, root: Path, name: str) -> Path:
    """Give a whole directory its name, with the next number that is free."""
    suffixes = [path.name.removeprefix(f"{name}-") for path in root.glob(f"{name}-*")]
    number = 1 + max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
    while True:
        path = root / f"{name}-{number:03d}"
        try:
            return temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            number += 1  # another process was faster


def _clear_abandoned(root: Path, name: str) -> None:
    """Remove what processes left that were killed while they made a directory."""
    for path in root.glob(f".{name}.*.tmp"):
        if path.stat().st_mtime < time.time() - _SECONDS_TO_MAKE:
            shutil.rmtree(path, ignore_errors=True)


def _existing(path: Path) -> Path:
    if not (path / "environment.json").exists():
        raise TetherError(f"There is no run at {path}: expected a directory made by an earlier training.")
    return path


def _take_up(path: Path) -> Path:
    _existing(path)
    lock.acquire(path / "lock")
    clean(path)
    clean(path / "checkpoints")
    parts = sorted(path.glob("environment*.json"), key=lambda part: part.stat().st_mtime_ns)
    now = environment()
    if read_json(parts[-1]) != now:
        write_json(path / f"environment-{len(parts) + 1}.json", now)
    return path


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
