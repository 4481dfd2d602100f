"""AdaptFormer against a twin, its counts, and that it stands beside the norm and the MLP."""

import pytest
import torch

from tether.adapters import AdaptFormerConfig, attach
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
from .models import pixels, timm_model
from .r_adapter.test_method import disturb

LEARNED = pytest.mark.parametrize("learned", [False, True])


@LEARNED
def test_forward_and_gradients_are_those_of_the_formula(learned):
    module = made(AdaptFormerConfig(hidden=5, learned_scale=learned), site())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    assert ("scale" in named) == learned
    hidden = torch.einsum("hw,bnw->bnh", named["down.weight"], x) + named["down.bias"]
    up = torch.einsum("wh,bnh->bnw", named["up.weight"], hidden * (hidden > 0)) + named["up.bias"]
    assert_same_with_gradients(module(x), named.get("scale", 0.1) * up, [x, *named.values()])


@torch.no_grad()
def test_it_reads_the_stream_before_the_norm_and_adds_behind_the_mlp():
    model = timm_model()
    attached = attach(model, AdaptFormerConfig(hidden=5))
    disturb(attached)
    block, x = model.blocks[0], torch.randn(2, 5, 16)
    found = block(x)
    adapter = block.norm2.adaptformer
    attached.take_out()
    h1 = x + block.ls1(block.attn(block.norm1(x)))
    h2 = h1 + block.ls2(block.mlp(block.norm2(h1)))
    torch.testing.assert_close(found, h2 + adapter(h1))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("swin_base_patch4_window7_224", 1_553_664),
        ("swin_large_patch4_window7_224", 2_329_728),
        ("vit_base_patch16_224", 1_189_632),
    ],
)
def test_counts_are_the_published_ones(model, expected):
    assert count(model, AdaptFormerConfig()) == expected


def test_options_count_as_they_say():
    assert count("vit_base_patch16_224", AdaptFormerConfig(learned_scale=True)) == 1_189_632 + 12
    widths = {96: 2, 192: 2, 384: 6, 768: 2}  # of Swin-T's stages, and their blocks
    expected = sum(blocks * (2 * (m // 12) * m + m // 12 + m) for m, blocks in widths.items())
    assert count("swin_tiny_patch4_window7_224", AdaptFormerConfig(hidden=None)) == expected


@LEARNED
def test_every_parameter_gets_a_gradient(learned):
    assert_everything_moves(AdaptFormerConfig(hidden=5, scale=1.0, learned_scale=learned), 2)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(AdaptFormerConfig(hidden=5, scale=1.0))


@torch.no_grad()
def test_the_first_values_and_what_makes_no_sense(unchecked):
    module = AdaptFormerConfig().module(site(400), torch.Generator().manual_seed(0))
    assert not module.up.weight.any() and not module.up.bias.any() and not module.down.bias.any()
    assert module.down.weight.abs().max() <= 1 / 20
    assert module.down.weight.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.03)
    for options, message in (
        ({"hidden": 0}, "hidden is a whole number"),
        ({"dropout": 1.5}, "dropout is a probability"),
        ({"scale": 0.0}, "nothing would ever move"),
    ):
        with pytest.raises(TetherError, match=message):
            AdaptFormerConfig(**options)


def test_values_are_dropped_in_training_only():
    model = timm_model()
    attached = attach(model, AdaptFormerConfig(hidden=8, scale=1.0, dropout=0.5))
    disturb(attached)
    with torch.no_grad():
        still = model(pixels())
        assert torch.equal(model(pixels()), still)
        attached.train_mode()
        assert not torch.equal(model(pixels()), still)
