"""Bottleneck adapters against a twin, their counts, and their published first values."""

import math

import pytest
import timm
import torch

from tether.adapters import BottleneckConfig, attach
from tether.errors import TetherError
from tether.models.site import Select, Site

from .models import pixels, timm_model
from .r_adapter.test_method import disturb

WIDTH = 12
VARIANTS = pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "adapter_plus"])


def site(width: int = WIDTH) -> Site:
    return Site("here", "image", 0, "mlp", width, "BNC", 1, None, False, position="branch")


@VARIANTS
def test_forward_and_gradients_are_those_of_the_formula(variant):
    module = (
        BottleneckConfig(variant=variant, hidden=5).module(site(), torch.Generator().manual_seed(0)).double()
    )
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    hidden = torch.einsum("hw,bnw->bnh", named["down.weight"], x) + named["down.bias"]
    active = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = torch.einsum("wh,bnh->bnw", named["up.weight"], active) + named["up.bias"]
    if variant == "adapter_plus":
        expected = expected @ torch.diag(named["scale"])
    found = module(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(x)
    leaves = [x, *named.values()]
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


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
    with torch.device("meta"):
        module = timm.create_model(model)
    attached = attach(module, config)
    assert sum(tensor.numel() for tensor in attached.named_parameters().values()) == expected


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
    model = timm_model()
    attached = attach(model, BottleneckConfig(variant=variant, initialisation=initialisation, drop=0.0))
    optimizer = torch.optim.SGD(attached.named_parameters().values(), lr=0.1)
    for step in range(2):
        attached.train_mode()
        attached.begin_step(step)
        optimizer.zero_grad()
        model(pixels()).square().sum().backward()
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in attached.named_parameters().values())


@VARIANTS
@torch.no_grad()
def test_a_picture_has_the_same_features_in_any_batch(variant):
    model = timm_model()
    disturb(attach(model, BottleneckConfig(variant=variant)))
    together = model(pixels())
    alone = torch.cat([model(picture[None]) for picture in pixels()])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


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
    with pytest.raises(TetherError, match="from 1, or None"):
        BottleneckConfig(hidden=0)
    with pytest.raises(TetherError, match="initialisation=zero"):
        BottleneckConfig(std=0.0)
    with pytest.raises(TetherError, match=r"place at kinds mlp, and select\.kinds is attention"):
        attach(timm_model(), BottleneckConfig(variant="pfeiffer", select=Select(kinds=("attention",))))
