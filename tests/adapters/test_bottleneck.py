"""Bottleneck adapters against a twin, their counts, and their published first values."""

import math

import pytest
import torch

from tether.adapters import BottleneckConfig, attach
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
from .models import timm_model

VARIANTS = pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "adapter_plus"])


@VARIANTS
def test_forward_and_gradients_are_those_of_the_formula(variant):
    module = made(BottleneckConfig(variant=variant, hidden=5), site())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    hidden = torch.einsum("hw,bnw->bnh", named["down.weight"], x) + named["down.bias"]
    active = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = torch.einsum("wh,bnh->bnw", named["up.weight"], active) + named["up.bias"]
    if variant == "adapter_plus":
        expected = expected @ torch.diag(named["scale"])
    assert_same_with_gradients(module(x), expected, [x, *named.values()])


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [  # Houlsby's as in the tables of Mona; Adapter+ and Pfeiffer by 2 n m + n + m, and m with the scale
        ("swin_base_patch4_window7_224", BottleneckConfig(), 3_107_328),
        ("swin_large_patch4_window7_224", BottleneckConfig(), 4_659_456),
        ("vit_base_patch16_224", BottleneckConfig(), 2_379_264),
        ("vit_base_patch16_224", BottleneckConfig(variant="pfeiffer"), 12 * (2 * 96 * 768 + 96 + 768)),
        (
            "vit_base_patch16_224",
            BottleneckConfig(variant="adapter_plus"),
            12 * (2 * 8 * 768 + 8 + 768 + 768),
        ),
    ],
)
def test_counts(model, config, expected):
    assert count(model, config) == expected


@torch.no_grad()
@pytest.mark.parametrize(("variant", "std"), [("houlsby", 0.01), ("pfeiffer", 0.02), ("adapter_plus", 0.01)])
def test_the_first_values_are_the_published_ones(variant, std):
    config = BottleneckConfig(variant=variant, hidden=64)
    module = config.module(site(256), torch.Generator().manual_seed(0))
    cut = 0.88  # standard deviation of a normal distribution cut at two of its own
    for linear in (module.down, module.up):
        assert linear.weight.std() == pytest.approx(cut * std, rel=0.05)
        assert linear.weight.abs().max() <= 2 * std and not linear.bias.any()
    assert not hasattr(module, "scale") or (module.scale == 1).all()
    assert config.rate == (0.1 if variant == "adapter_plus" else 0)
    assert not config.identity_at_start
    zero = BottleneckConfig(variant=variant, initialisation="zero").module(site(), torch.Generator())
    assert not zero.up.weight.any() and zero.down.weight.any()


@VARIANTS
@pytest.mark.parametrize("initialisation", ["published", "zero"])
def test_every_parameter_gets_a_gradient(variant, initialisation):
    steps = 1 if initialisation == "published" else 2
    assert_everything_moves(BottleneckConfig(variant=variant, initialisation=initialisation, drop=0.0), steps)


@VARIANTS
def test_a_picture_has_the_same_features_in_any_batch(variant):
    assert_independent_of_the_batch(BottleneckConfig(variant=variant))


def test_a_variant_says_where_it_stands():
    places = {
        variant: [
            (site.kind, site.position)
            for site in attach(timm_model(), BottleneckConfig(variant=variant)).sites
        ]
        for variant in ("houlsby", "pfeiffer", "adapter_plus")
    }
    assert places["houlsby"] == [("attention", "branch"), ("mlp", "branch")] * 2
    assert places["pfeiffer"] == [("mlp", "branch")] * 2
    assert places["adapter_plus"] == [("mlp", "after")] * 2


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(TetherError, match="did you mean 'houlsby'"):
        BottleneckConfig(variant="houlsbi")
    with pytest.raises(TetherError, match="hidden is a whole number from 1"):
        BottleneckConfig(hidden=0)
    with pytest.raises(TetherError, match="initialisation=zero"):
        BottleneckConfig(std=0.0)
    with pytest.raises(TetherError, match=r"place at kinds mlp, and select\.kinds is attention"):
        attach(timm_model(), BottleneckConfig(variant="pfeiffer", select=Select(kinds=("attention",))))
