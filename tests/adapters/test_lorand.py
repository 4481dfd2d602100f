"""LoRand against whole matrices, and the published counts of its sizes."""

import math

import pytest
import torch

from tether.adapters import LoRandConfig
from tether.errors import TetherError

from .checks import (
    WIDTH,
    assert_everything_moves,
    assert_independent_of_the_batch,
    assert_same_with_gradients,
    count,
    made,
    site,
)


def test_forward_and_gradients_are_those_of_whole_matrices():
    module = made(LoRandConfig(branches=3, rank=2), site())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())

    def whole(name: str) -> torch.Tensor:
        parts = [named[f"{name}.{factor}"] for factor in "pkq"]
        return sum(p @ k @ q for p, k, q in zip(*parts, strict=True))

    hidden = x @ whole("down") + named["down.bias"]
    active = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = active @ whole("up") + named["up.bias"]
    assert expected.shape == x.shape and hidden.shape[-1] == WIDTH // 2
    assert_same_with_gradients(module(x), expected, [x, *named.values()])


@pytest.mark.parametrize(
    ("branches", "rank", "base", "large"),
    [(2, 8, 1_203_456, 1_799_040), (4, 8, 2_370_816, 3_543_936), (4, 16, 4_754_688, 7_082_880)],
)
def test_counts_are_the_published_ones(branches, rank, base, large):
    config = LoRandConfig(branches=branches, rank=rank)
    assert count("swin_base_patch4_window7_224", config) == base
    assert count("swin_large_patch4_window7_224", config) == large


def test_every_parameter_gets_a_gradient():
    assert_everything_moves(LoRandConfig(branches=2, rank=3), 1)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(LoRandConfig(branches=2, rank=3))


@torch.no_grad()
def test_the_first_values_and_what_makes_no_sense(unchecked):
    config = LoRandConfig()
    module = config.module(site(64), torch.Generator().manual_seed(0))
    for layer, inputs, outputs in ((module.down, 64, 32), (module.up, 32, 64)):
        bounds = {"p": 8, "k": 8, "q": outputs, "bias": inputs}
        for name, fan in bounds.items():
            largest = float(getattr(layer, name).abs().max())
            assert 0.8 / math.sqrt(fan) < largest <= 1 / math.sqrt(fan)
    assert not config.identity_at_start
    with pytest.raises(TetherError, match="rank is a whole number from 1"):
        LoRandConfig(rank=0)
    with pytest.raises(TetherError, match="branches is a whole number from 1"):
        LoRandConfig(branches=0)
