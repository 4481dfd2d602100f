"""TPGM in one process and in two, for `test_radii.py`.

Usage: two_processes_tpgm.py FOLDER. Every process writes its weights to FOLDER/tpgm-PROCESSES-RANK.safetensors.
"""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import two_processes as processes

from tether._distributed import joined, world_size
from tether.optimizers import RadiiConfig


def work(folder):
    with joined():
        parts = processes.toy.parts(9, tpgm=RadiiConfig(every=2, iterations=2, batch_size=4))
        processes.write(folder, "tpgm", processes.train(folder, f"tpgm-by-{world_size()}", **parts))


def main(folder):
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    pair = [
        processes.start(work, folder, RANK=str(number), LOCAL_RANK=str(number), **place) for number in (0, 1)
    ]
    children = [processes.start(work, folder), *pair]
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
