"""Two processes fit the ensembles and the probe that one process fits, and answer like it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def test_two_processes_give_the_result_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = Path(__file__).with_name("two_processes_ensembling.py")
    environment = {**os.environ, "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    expected = load_file(tmp_path / "alone.safetensors")
    assert len(expected["failures"]) > 1
    for rank in (0, 1):
        shared = load_file(tmp_path / f"{rank}.safetensors")
        assert shared.keys() == expected.keys()
        for name, tensor in shared.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
