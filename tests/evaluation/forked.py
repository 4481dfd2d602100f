"""The same work in one process and in two, for scripts that a test starts.

Each process writes what it found to FOLDER/{alone,0,1}.safetensors.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tether._distributed import joined


def alone_and_together(folder: Path, find: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Call `find` here, then in two processes that have joined, and end with their exit code."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    save_file(find(), folder / "alone.safetensors")
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            os.environ.update(meeting, RANK=str(rank), LOCAL_RANK=str(rank))
            with joined():
                save_file(find(), folder / f"{rank}.safetensors")
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
