"""Claims: one living process has one, and its end gives it back."""

import subprocess
import sys

from tether.runs.comparing.claims import claim

HOLDS = """
import sys
from pathlib import Path
from tether.runs.comparing.claims import claim
with claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path):
    path = tmp_path / "runs" / ".x.claim"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **pipes) as other:
        assert other.stdout.readline() == "True\n"
        with claim(path) as mine:
            assert not mine
        with claim(path) as mine:  # leaving one that was not had took nothing away
            assert not mine
        other.kill()
        other.wait()
        with claim(path) as mine:
            assert mine
            with claim(path) as again:
                assert not again
    assert not path.exists()
