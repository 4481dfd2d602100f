import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "golden_optimizers.py"


@pytest.fixture(scope="session")
def formulas() -> ModuleType:
    """The methods' formulas in NumPy float64, written apart from the library."""
    spec = importlib.util.spec_from_file_location("golden_optimizers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equality must not hang on how many threads share a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
