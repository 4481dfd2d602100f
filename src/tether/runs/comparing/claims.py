"""Who works on what: a claim that one living process has, and that nobody need give back for it.

A claim is a POSIX record lock on a file. The kernel gives it back when its process ends, however that happens, and
over NFS as well, so what a killed process worked on is free at once.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tether._distributed import from_main
from tether.errors import TetherError


@contextmanager
def claim(path: Path, run: str = "") -> Iterator[bool]:
    """Whether this process alone may work on what `path` stands for; False where a living one has it already.

    Args:
        run: name of the run that it is for.

    Raises:
        TetherError: the file system has no locks.
    """
    held: list[TextIO] = []
    mine = from_main(lambda: _acquire(path, run, held))
    try:
        yield mine
    finally:
        for file in held:
            path.unlink(missing_ok=True)  # before the lock goes: see `_acquire`
            file.close()


def _acquire(path: Path, run: str, held: list[TextIO]) -> bool:
    """Lock `path`, if nobody has it, and leave our name there; the open file goes to `held`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it stays open as long as the claim)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return False
        except OSError as error:
            file.close()
            raise TetherError(
                f"The file system of {path.parent} has no file locks ({error.strerror}), by which processes agree "
                f"who does what. Choose another --runs."
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder removed it between our opening and locking
    held.append(file)
    _free_run_of(_parse(file), path.parent)
    file.truncate(0)
    file.write(json.dumps({"run": run, "host": socket.gethostname(), "pid": os.getpid()}))
    file.flush()
    return True


def _free_run_of(holder: dict[str, Any], root: Path) -> None:
    """Remove the lock that a claim's former holder left in its run's directory: without its claim, it is gone.

    The lock alone cannot tell, where its process was on another machine.
    """
    run = holder.get("run")
    for lock in root.glob("*/lock") if run else ():
        if not lock.parent.name.startswith(f"{run}-"):
            continue
        with open(lock, encoding="utf-8") as file:
            found = _parse(file)
        if all(found.get(key) == holder.get(key) for key in ("host", "pid")):
            lock.unlink()


def _parse(file: TextIO) -> dict[str, Any]:
    """The holder that a file names; nothing if nobody, one that died while writing its name, or something else."""
    file.seek(0)
    try:
        value = json.loads(file.read())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
