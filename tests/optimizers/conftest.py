from types import ModuleType

import pytest
import torch

from scripts import golden_optimizers


@pytest.fixture(scope="session")
def formulas() -> ModuleType:
    """The methods' formulas in NumPy float64, written apart from the library."""
    return golden_optimizers


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equality must not hang on how many threads share a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
