"""Convpass against a twin made of sums over neighbours, its count, and what prefix tokens get."""

import pytest
import torch
from torch import Tensor

from tether.adapters import ConvpassConfig, attach
from tether.errors import TetherError
from tether.models.site import Select

from .checks import (
    WIDTH,
    assert_everything_moves,
    assert_independent_of_the_batch,
    assert_same_with_gradients,
    count,
    made,
    site,
)
from .models import open_clip_model, timm_model
from .r_adapter.test_method import disturb

GRID = (3, 4)


def twin(named: dict[str, Tensor], x: Tensor, prefix: int, scale: float) -> Tensor:
    """f(x) of one sequence, pixel by pixel."""

    def q(z: Tensor) -> Tensor:
        return z / (1 + torch.exp(-1.702 * z))

    def mixed(here: dict[tuple[int, int], Tensor], row: int, column: int) -> Tensor:
        total = named["bias"]
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                if (row + i, column + j) in here:
                    total = total + named["kernel"][:, :, 1 + i, 1 + j] @ here[row + i, column + j]
        return total

    z = q(x @ named["down.weight"].T + named["down.bias"])
    places = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    patches = dict(zip(places, z[prefix:], strict=True))
    first = [mixed({(0, 0): token}, 0, 0) for token in z[:prefix]]
    hidden = torch.stack([*first, *(mixed(patches, *place) for place in places)])
    return scale * (q(hidden) @ named["up.weight"].T + named["up.bias"])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_forward_and_gradients_are_those_of_the_formula(prefix):
    module = made(ConvpassConfig(hidden=3, scale=0.7), site(prefix=prefix, grid=GRID))
    x = torch.randn(2, prefix + 12, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    expected = torch.stack([twin(named, row, prefix, 0.7) for row in x])
    assert_same_with_gradients(module(x), expected, [x, *named.values()])


@torch.no_grad()
def test_it_reads_behind_the_norms_and_adds_to_the_branches():
    model = timm_model()
    attached = attach(model, ConvpassConfig(hidden=5))
    disturb(attached)
    block, x = model.blocks[0], torch.randn(2, 5, 16)
    found = block(x)
    first, second = block.norm1.convpass, block.norm2.convpass
    attached.take_out()
    normal = block.norm1(x)
    h1 = x + block.ls1(block.attn(normal) + first(normal))
    normal = block.norm2(h1)
    torch.testing.assert_close(found, h1 + block.ls2(block.mlp(normal) + second(normal)))


def test_the_count_is_the_published_one():
    assert count("vit_base_patch16_224", ConvpassConfig()) == 327_552


def test_every_parameter_gets_a_gradient():
    assert_everything_moves(ConvpassConfig(hidden=5), 2)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(ConvpassConfig(hidden=5))


@torch.no_grad()
def test_the_first_values_hand_every_pixel_on(unchecked):
    module = ConvpassConfig().module(site(grid=GRID), torch.Generator().manual_seed(0))
    z = torch.randn(2, *GRID, 8)
    assert torch.equal(module.convolved(z), z) and torch.equal(module.alone(z), z)
    assert not module.up.weight.any() and module.down.weight.abs().max() <= (6 / (WIDTH + 8)) ** 0.5
    with pytest.raises(TetherError, match="hidden is a whole number"):
        ConvpassConfig(hidden=0)
    with pytest.raises(TetherError, match="nothing would ever move"):
        ConvpassConfig(scale=0.0)
    with pytest.raises(TetherError, match="texts have none"):
        attach(open_clip_model(), ConvpassConfig(select=Select(tower="text")))
