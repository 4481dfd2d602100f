"""Two processes fit the ensembles and the probe that one process fits, and answer like it."""

from pathlib import Path

import torch


def test_two_processes_give_the_result_of_one(alone_and_shared):
    expected, both = alone_and_shared(Path(__file__).with_name("two_processes.py"))
    assert len(expected["failures"]) > 1
    for shared in both:
        assert shared.keys() == expected.keys()
        for name, tensor in shared.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
