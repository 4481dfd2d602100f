"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["fisher", "model_average", "output_space", "shared_copy", "views", "vrf"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"tether.ensembles.{name}"))
    assert result.attempted > 0 and result.failed == 0
