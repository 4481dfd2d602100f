"""Tiny things for every test of the evaluation."""

import pytest
import torch

from tether.models.model import Model

from .tiny import tiny_delta, tiny_model, tiny_split


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture
def delta(model) -> dict[str, torch.Tensor]:
    return tiny_delta(model)


@pytest.fixture
def make_split(tmp_path):
    return lambda name, n, *rest, **more: tiny_split(tmp_path, name, n, *rest, **more)
