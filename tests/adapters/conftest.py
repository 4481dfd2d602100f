"""What tests of adapters share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers whatever ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No check of annotations at run time, as for users."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
