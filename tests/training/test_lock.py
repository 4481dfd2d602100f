"""Locks: one living process has one, and its end, however it comes, gives it back."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tether.errors import TetherError
from tether.training import lock

HOLDS = """
import os, sys
from pathlib import Path
from tether.training import lock
lock.acquire(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path):
    """Gives a process that has the lock; it is killed at the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **pipes) as other:
        assert other.stdout.readline() == "\n"
        yield other
        other.kill()


def test_a_living_process_is_named_and_a_killed_one_succeeded(tmp_path):
    path = tmp_path / "lock"
    with held_elsewhere(path) as other:
        for _ in range(2):  # asking takes nothing away
            with pytest.raises(TetherError, match=f"in use by process {other.pid} on {socket.gethostname()}"):
                lock.acquire(path)
        other.kill()
        os.waitid(
            os.P_PID, other.pid, os.WEXITED | os.WNOWAIT
        )  # dead, but its parent has not looked: a zombie
        assert lock.try_acquire(path)
    lock.release(path)
    assert path.read_text() == ""


def test_a_process_refuses_itself_and_gives_back_what_it_has_only(tmp_path):
    path, moved = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    path.parent.mkdir()
    lock.acquire(path)
    path.parent.rename(moved.parent)
    for _ in range(2):
        with pytest.raises(TetherError, match=f"b is in use by process {os.getpid()} .* this one"):
            lock.acquire(moved)
    lock.release(moved)
    lock.release(moved)
    with held_elsewhere(moved):
        lock.release(moved)
        assert not lock.try_acquire(moved)


def test_a_forked_process_has_no_part_in_a_lock(tmp_path):
    """As the workers that read pictures, which may outlive their process."""
    path = tmp_path / "lock"
    lock.acquire(path)
    (hear, answer), (wait, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(answer, b"%d" % lock.try_acquire(path))
        lock.release(path)
        os.read(wait, 1)
        os._exit(0)
    assert os.read(hear, 1) == b"0"
    lock.release(path)
    with held_elsewhere(path):  # while the child lives, which has our open file
        pass
    os.write(end, b"x")
    assert os.waitpid(child, 0)[1] == 0
    for handle in (hear, answer, wait, end):
        os.close(handle)


def test_what_stands_in_the_file_decides_nothing(tmp_path):
    path = tmp_path / "lock"
    contents = ('{"host": "els', "[1]", "7", '{"host": "h"}', '{"host": "h", "pid": 1}')
    for content in contents:
        path.write_text(content)
        assert lock.try_acquire(path)
        lock.release(path)
    with held_elsewhere(path):
        for content in contents:
            path.write_text(content)
            known = "process 1 on h" if "pid" in content else "another process"
            with pytest.raises(TetherError, match=f"in use by {known}. Wait for it to end"):
                lock.acquire(path)


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, lockf, calls = tmp_path / "lock", lock.fcntl.lockf, []

    def lock_late(file, how):
        if not calls:
            path.unlink()  # its holder finished between our opening and our locking
        calls.append(how)
        lockf(file, how)

    monkeypatch.setattr(lock.fcntl, "lockf", lock_late)
    assert lock.try_acquire(path) and path.exists() and len(calls) == 2
    lock.release(path, remove=True)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with pytest.raises(TetherError, match=r"no file locks .No locks available.* Choose another folder"):
        lock.acquire(tmp_path / "lock")


def test_a_full_disk_leaves_the_lock_free(tmp_path, monkeypatch):
    def full(value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(lock.json, "dumps", full)
        lock.acquire(tmp_path / "lock")
    with held_elsewhere(tmp_path / "lock"):
        pass


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path):
    path = tmp_path / "runs" / ".x.claim"
    path.parent.mkdir()
    with held_elsewhere(path) as other:
        for _ in range(2):  # leaving one that was not had takes nothing away
            with lock.claim(path) as mine:
                assert not mine
        other.kill()
        other.wait()
        with lock.claim(path) as mine:
            assert mine
            with lock.claim(path) as again:
                assert not again
    assert not path.exists()


def test_a_claim_makes_the_folders_it_lies_in(tmp_path):
    with lock.claim(tmp_path / "new" / "runs" / ".x.claim") as mine:
        assert mine and list((tmp_path / "new" / "runs").iterdir())
    assert not list((tmp_path / "new" / "runs").iterdir())
