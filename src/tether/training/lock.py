"""One process per run directory."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tether.errors import TetherError


def acquire(path: Path) -> None:
    """Write this process's name into the lock file, taking it over from a process of this host that is gone.

    Raises:
        TetherError: another process, or this one, has it; or one on another host, of which nobody here can
            tell whether it lives.
    """
    with _held_for_a_moment(path) as file:
        holder = _parse(file)
        if holder is not None and _may_live(holder):
            raise TetherError(
                f"{path.parent} is in use by process {holder['pid']} on {holder['host']}. Wait for it to "
                f"end, or choose another directory. If you are sure that it is gone, delete {path}."
            )
        _write(file, json.dumps(_this_process()))


def release(path: Path) -> None:
    """Give the lock back if this process has it."""
    if path.exists():
        with _held_for_a_moment(path) as file:
            if _parse(file) == _this_process():
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


def _parse(file: TextIO) -> dict[str, Any] | None:
    """The holder, or None: nobody, or one that died while writing its name."""
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except ValueError:
        return None


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _may_live(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_of(holder["pid"]) == holder["started"]  # else: the number was given to a new process


def _start_of(pid: int) -> str | None:
    """Boot and time at which a process started; None for a zombie and where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else f"{boot}:{fields[18]}"
