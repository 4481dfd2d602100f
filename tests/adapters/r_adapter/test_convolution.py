"""R-Adapters after convolutions: the stem of a hybrid ViT, and ConvNeXt made of convolutions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import tether
from tether.adapters import RAdapterConfig, attach
from tether.adapters.files import apply, save_adapter
from tether.adapters.r_adapter.rank import Factored
from tether.models.hybrid import LiteStem
from tether.models.site import Select

from ..models import randomise, seeded
from .test_method import assert_same, disturb, snapshot

STEM = Select(kinds=("stem", "attention", "mlp"))


@seeded
def hybrid(norms: bool) -> nn.Module:
    """A tiny ViT behind the built-in stem, whose batch norms are folded away, or behind one that has them."""
    stem = LiteStem()
    if norms:
        stem = nn.Sequential(*list(timm.create_model("efficientnet_lite0").children())[:2], _stages())
    embed = timm.layers.HybridEmbed(stem, img_size=32, embed_dim=16)
    model = timm.models.VisionTransformer(
        img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=0, embed_layer=lambda **_: embed
    )
    return randomise(model)


def _stages() -> nn.Module:
    return timm.create_model("efficientnet_lite0").blocks[:3]


@seeded
def convnext() -> nn.Module:
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), num_classes=0)
    return randomise(model)


MAKE = {
    "folded norms": lambda: hybrid(False),
    "batch norms": lambda: hybrid(True),
    "convnext": convnext,
}
EVERY_MODEL = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def select(model: nn.Module) -> Select:
    return STEM if isinstance(model, timm.models.VisionTransformer) else Select()


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@EVERY_MODEL
@pytest.mark.parametrize("rank", [None, 2])
@torch.no_grad()
def test_they_merge_exactly_and_come_back_bit_for_bit(make: Callable[[], nn.Module], rank):
    model = make()
    base, output = snapshot(model), model(pixels())
    attached = attach(model, RAdapterConfig(rank=rank, select=select(model)))
    assert any(isinstance(owner, nn.Conv2d) for owner in attached._owners.values())
    assert torch.equal(model(pixels()), output), "new adapters change nothing"
    disturb(attached)
    adapted = model(pixels())
    assert float((adapted - output).abs().max()) > 1e-3
    for alpha in (0.0, 0.5, 1.0):
        report = attached.merge(alpha, probe=lambda: model(pixels()))
        assert report.relative_error <= 1e-5
        assert {type(part) for part in model.modules()} == {type(part) for part in make().modules()}
        if alpha == 1:
            torch.testing.assert_close(model(pixels()), adapted, atol=1e-5, rtol=1e-4)
        attached.unmerge()
    attached.detach()
    assert_same(snapshot(model), base)


@EVERY_MODEL
def test_a_dropped_picture_is_answered_by_the_frozen_model(make: Callable[[], nn.Module]):
    model = make()
    with torch.no_grad():
        frozen = model(pixels(4))
    attached = attach(model, RAdapterConfig(drop=0.999, scale=None, select=select(model)))
    disturb(attached)
    model.train()
    attached.begin_step(0, torch.arange(4))
    torch.testing.assert_close(model(pixels(4)), frozen, atol=1e-5, rtol=1e-4)


@EVERY_MODEL
def test_pictures_are_dropped_one_by_one_in_any_batch(make: Callable[[], nn.Module]):
    model = make()
    attached = attach(model, RAdapterConfig(drop=0.5, scale=None, select=select(model)))
    disturb(attached, 0.02)
    model.train()
    attached.begin_step(3, torch.arange(4))
    together = model(pixels(4))
    attached.begin_step(3, torch.tensor([2]))
    torch.testing.assert_close(model(pixels(4)[2:3]), together[2:3], atol=1e-5, rtol=1e-4)


def test_every_adapter_learns_and_nothing_else_does():
    model = hybrid(True)
    before = snapshot(model)
    attached = attach(model, RAdapterConfig(select=STEM))
    optimizer = torch.optim.SGD(attached.named_parameters().values(), lr=0.1)
    attached.train_mode()
    for step in range(2):  # the learned scale moves once the matrix has left zero
        attached.begin_step(step, torch.arange(3))
        model(pixels()).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in attached.named_parameters().values())
    attached.detach()
    assert_same(snapshot(model), before)


def test_saved_and_cut_to_a_rank_like_any_other(tmp_path: Path):
    model = hybrid(False)
    attached = attach(model, RAdapterConfig(select=STEM))
    disturb(attached)
    with torch.no_grad():
        expected = model(pixels())
    save_adapter(tmp_path / "adapter", attached)
    fresh = hybrid(False)
    loaded = apply(fresh, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(fresh(pixels()), expected)
    whole = Factored(loaded.state_dict()).at_rank(192)
    assert loaded.delta(whole).keys() == loaded.delta().keys()


def test_the_built_in_model_has_a_stem():
    module = tether.load("builtin").module
    sites = tether.sites(module, Select(kinds=("stem",)))
    assert len(sites) == 12
    assert sites[0].path == "visual.trunk.patch_embed.backbone.lower.2.0.conv_pw"
    assert sites[-1].path == "visual.trunk.patch_embed.proj"
    assert {site.tower for site in sites} == {"image"}
