"""Processes share the pictures of a split, and each gets the result that one process alone gets."""

from pathlib import Path

import torch


def test_two_processes_give_the_result_of_one(alone_and_shared):
    expected, both = alone_and_shared(Path(__file__).with_name("two_processes.py"))
    assert not torch.equal(expected["odd ranks"], expected["odd tuned ranks"])
    for shared in both:
        assert shared.keys() == expected.keys()
        for name, tensor in shared.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
