"""The examples in the docstrings run."""

import doctest
import importlib

import pytest

MODULES = "car_ft carot function_space geodesic lipsum_ft l2_sp mixup star_ft weighted_sum"


@pytest.mark.parametrize("name", MODULES.split())
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"tether.objectives.{name}"))
    assert result.attempted > 0 and result.failed == 0
