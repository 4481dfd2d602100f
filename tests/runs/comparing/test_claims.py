"""Claims: one living process has one, and its end gives it back."""

import os
import subprocess
import sys

import pytest

from tether._files import read_json
from tether.errors import TetherError
from tether.runs.comparing import claims
from tether.runs.comparing.claims import claim

HOLDS = """
import sys
from pathlib import Path
from tether.runs.comparing.claims import claim
with claim(Path(sys.argv[1]), "run") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path):
    path = tmp_path / ".x.claim"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **pipes) as other:
        assert other.stdout.readline() == "True\n"
        with claim(path, "run") as mine:
            assert not mine
        assert read_json(path)["pid"] == other.pid
        other.kill()
        other.wait()
        with claim(path, "run") as mine:
            assert mine and read_json(path)["pid"] == os.getpid()
    assert not path.exists()


def test_a_claim_that_its_holder_removed_meanwhile_is_claimed_anew(tmp_path, monkeypatch):
    path, lockf, calls = tmp_path / ".x.claim", claims.fcntl.lockf, []

    def lock_late(file, how):
        if not calls:
            path.unlink()  # its holder finished between our opening and our locking
        calls.append(how)
        lockf(file, how)

    monkeypatch.setattr(claims.fcntl, "lockf", lock_late)
    with claim(path) as mine:
        assert mine and path.exists() and len(calls) == 2


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(claims.fcntl, "lockf", none)
    with pytest.raises(TetherError, match="no file locks"), claim(tmp_path / ".x.claim"):
        pass
