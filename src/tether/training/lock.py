"""Files that one process has: a lock that ends with its process, so that nobody need give it back.

It is a POSIX record lock. The kernel gives it back when its process ends, however that happens, so what a killed
process worked on is free at once. Forked data workers do not inherit it. The kernel never refuses it to the process
that has it, and takes it away when that closes any handle of the file: so what is held is noted here, and opened only
once.

Among machines it is the file system that knows who lives; what stands in the file (host and process) is for people
and decides nothing. NFS, GPFS, BeeGFS and Lustre give the lock of a killed process back at once, and that of a machine
that vanished when its lease ends (NFS 4: about 90 seconds; NFS 3: when the machine is up again). Where locks are kept
to the machine by a mount option (Lustre and BeeGFS without file locks, `local_lock` of NFS), processes of two machines
would not see each other: such a folder must not be shared.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tether._distributed import from_main, is_main
from tether.errors import TetherError

_held: dict[tuple[int, int], TextIO] = {}
"""Open files of the locks that this process has, by device and inode: a folder may be renamed meanwhile."""

os.register_at_fork(after_in_child=_held.clear)


def acquire(path: Path) -> None:
    """Take a lock, see `try_acquire`.

    Raises:
        TetherError: a living process has it, or the file system has no locks.
    """
    if not try_acquire(path):
        raise TetherError(
            f"{path.parent} is in use by {_holder(path)}. Wait for it to end, or choose another directory."
        )


def try_acquire(path: Path) -> bool:
    """Lock a file and write this process's name into it; False where a living process has it, this one included.

    Raises:
        TetherError: the file system has no locks.
    """
    while True:
        if path.exists() and _identity(path.stat()) in _held:
            return False
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it stays open as long as the lock is held)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return False
        except OSError as error:
            file.close()
            raise TetherError(
                f"The file system of {path.parent} has no file locks ({error.strerror}), by which processes agree "
                f"who does what. Choose another folder for runs."
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder removed it between our opening and locking
    try:
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
    except OSError:  # a full disk
        with suppress(OSError):
            file.close()
        raise
    _held[_identity(os.fstat(file.fileno()))] = file
    return True


def release(path: Path, *, remove: bool = False) -> None:
    """Give a lock back if this process has it, and empty its file, or `remove` it."""
    file = _held.pop(_identity(path.stat()), None) if path.exists() else None
    if file is None:
        return
    if remove:
        path.unlink()  # before the lock goes: see `try_acquire`
    else:
        file.truncate(0)
    file.close()


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process alone may work on what `path` stands for; False where a living one has it already.

    The file, and the folders it lies in, are made, and the file is removed at the end. Processes that train together
    have a claim together.

    Raises:
        TetherError: the file system has no locks.
    """

    def take() -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        return try_acquire(path)

    mine = from_main(take)
    try:
        yield mine
    finally:
        if mine and is_main():
            release(path, remove=True)


def _holder(path: Path) -> str:
    """Who has a lock, for people."""
    if _identity(path.stat()) in _held:  # opening the file here would end the lock
        return f"process {os.getpid()} on {socket.gethostname()}, which is this one"
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):  # it is writing its name, or ends just now
        return "another process"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
