"""Who works on what: a lock that one living process has, and whose end gives it back (`tether.training.lock`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tether._distributed import from_main, is_main
from tether.training import lock


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process alone may work on what `path` stands for; False where a living one has it already.

    Raises:
        TetherError: the file system has no locks.
    """
    mine = from_main(lambda: _acquire(path))
    try:
        yield mine
    finally:
        if mine and is_main():
            lock.release(path, remove=True)


def _acquire(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    return lock.try_acquire(path)
