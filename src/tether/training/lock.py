"""One process per run directory."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tether.config import build
from tether.errors import TetherError


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """What stands in a lock file: a process, and when it started."""

    host: str
    pid: int
    started: str | None


def acquire(path: Path) -> None:
    """Write this process's name into the lock file, taking it over from a process of this host that is gone.

    Raises:
        TetherError: another process, or this one, has it; or one on another host, of which nobody here can
            tell whether it lives.
    """
    with _held_for_a_moment(path) as file:
        holder = _parse(file, path)
        if holder is not None and _may_live(holder):
            raise TetherError(
                f"{path.parent} is in use by process {holder.pid} on {holder.host}. Wait for it to "
                f"end, or choose another directory. If you are sure that it is gone, delete {path}."
            )
        _write(file, json.dumps(asdict(_this_process())))


def release(path: Path) -> None:
    """Give the lock back if this process has it."""
    if path.exists():
        with _held_for_a_moment(path) as file:
            if _parse(file, path) == _this_process():
                _write(file, "")


@contextmanager
def _held_for_a_moment(path: Path) -> Iterator[TextIO]:
    """The open lock file, with the system's own lock for the time of reading and writing it.

    The system's lock is not kept for the whole run: forked data workers would inherit it and hold on to it
    after a kill.
    """
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _parse(file: TextIO, path: Path) -> _Holder | None:
    """The holder, or None: nobody, or one that died while writing its name.

    Raises:
        TetherError: something stands there that no process of ours wrote.
    """
    file.seek(0)
    try:
        value = json.loads(file.read())
    except (ValueError, RecursionError):
        return None
    try:
        holder = build(_Holder, value)
        if not 0 < holder.pid < 2**31:
            raise TetherError(f"{holder.pid} is no process.")
    except TetherError as error:
        raise TetherError(
            f"{path} does not say which process uses {path.parent}: {error} If you are sure that none does, delete it."
        ) from error
    return holder


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _this_process() -> _Holder:
    return _Holder(host=socket.gethostname(), pid=os.getpid(), started=_start_of(os.getpid()))


def _may_live(holder: _Holder) -> bool:
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_of(holder.pid) == holder.started  # else: the number was given to a new process


def _start_of(pid: int) -> str | None:
    """Boot and time at which a process started; None for a zombie and where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else f"{boot}:{fields[18]}"
