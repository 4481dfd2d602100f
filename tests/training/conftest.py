import importlib.util
import sys
from pathlib import Path

import pytest


def _module(name):
    path = Path(__file__).parent / f"{name}.py"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def toy():
    return _module("toy")


@pytest.fixture
def run(tmp_path):
    from tether.training import RunDirectory

    with RunDirectory.create(tmp_path / "runs", "toy", tensorboard=False) as run:
        yield run
