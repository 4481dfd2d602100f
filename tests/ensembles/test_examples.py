"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "ensembles.fisher.formulas",
        "ensembles.model_average",
        "ensembles.output",
        "ensembles.views",
        "ensembles.vrf.method",
        "models.shared_copy",
    ],
)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"tether.{name}"))
    assert result.attempted > 0 and result.failed == 0
