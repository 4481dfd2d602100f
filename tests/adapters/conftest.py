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
