"""Visual prompts against blocks called by hand, their counts, and where there is no place for them."""

import math

import pytest
import torch

from tether.adapters import VPTConfig, attach
from tether.errors import TetherError
from tether.models.site import Select

from ..models.image_models import IMAGE_MODELS
from .checks import assert_everything_moves, assert_independent_of_the_batch, count
from .models import features, open_clip_model, pixels, timm_model

VARIANTS = pytest.mark.parametrize("variant", ["deep", "shallow"])


@VARIANTS
def test_forward_and_gradients_are_those_of_tokens_put_in_by_hand(variant):
    model = timm_model().double()
    attached = attach(model, VPTConfig(variant=variant, tokens=3))
    prompts = list(attached.named_parameters().values())
    x = pixels().double()
    found = model.forward_features(x)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), prompts)
    attached.take_out()
    tokens = model._pos_embed(model.patch_embed(x))
    for depth, block in enumerate(model.blocks):
        if variant == "deep" or depth == 0:
            own = prompts[depth].double().expand(len(x), -1, -1)
            rest = tokens[:, 1:] if depth == 0 else tokens[:, 1 + 3 :]  # fresh ones replace the old
            tokens = torch.cat([tokens[:, :1], own, rest], dim=1)
        tokens = block(tokens)
    expected = model.norm(torch.cat([tokens[:, :1], tokens[:, 1 + 3 :]], dim=1))
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad((expected * weights).sum(), prompts)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("variant", "expected"), [("shallow", 38_400), ("deep", 460_800)])
def test_counts_are_the_published_ones(variant, expected):
    assert count("vit_base_patch16_224", VPTConfig(variant=variant, tokens=50)) == expected


@VARIANTS
def test_every_parameter_gets_a_gradient(variant):
    assert_everything_moves(VPTConfig(variant=variant), 1)


@VARIANTS
def test_a_picture_has_the_same_features_in_any_batch(variant):
    assert_independent_of_the_batch(VPTConfig(variant=variant))


@VARIANTS
@torch.no_grad()
def test_the_layout_of_a_model_does_not_matter(variant):
    outputs = []
    for batch_first in (True, False):
        model = open_clip_model(batch_first=batch_first)
        attach(model, VPTConfig(variant=variant))
        outputs.append(features(model)[0])
    torch.testing.assert_close(*outputs)


def test_the_first_values_follow_the_patch_embedding():
    for name, fan_in in (("timm ViT", 3 * 8 * 8), ("timm hybrid", 12)):
        attached = attach(IMAGE_MODELS[name][0](), VPTConfig(tokens=100))
        bound = math.sqrt(6 / (fan_in + 32))
        for prompts in attached.named_parameters().values():
            assert 0.95 * bound < float(prompts.detach().abs().max()) <= bound


def test_blocks_are_chosen_and_tokens_leave_behind_the_last():
    model = IMAGE_MODELS["timm ViT"][0]()
    select = Select(tower="image", depths=(-1, -1))
    for variant in ("deep", "shallow"):
        attached = attach(model, VPTConfig(variant=variant, select=select))
        assert list(attached.named_parameters()) == ["blocks.1.vpt.prompts"]
        assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 17, 32)
        attached.detach()


def test_prompts_are_there_or_not():
    model = timm_model()
    attached = attach(model, VPTConfig())
    with torch.no_grad():
        tuned = model(pixels())
        with attached.path() as path:
            base = model(pixels())
            path.set(1.0)
            assert torch.equal(model(pixels()), tuned) and not torch.equal(base, tuned)
            path.set({"image": 1.0, "text": 0.5})
            with pytest.raises(TetherError, match="two ends only"):
                path.set(0.5)
            with pytest.raises(TetherError, match="two ends only"):
                path.set({"image": 0.5, "text": 1.0})


@pytest.mark.parametrize("name", ["timm Swin", "transformers Swin", "timm ConvNeXt", "timm EVA"])
def test_where_there_is_no_place_for_them_the_reason_is_said(name):
    with pytest.raises(
        TetherError, match=r"no site at position 'prompt'.*every token sees every other; windows"
    ):
        attach(IMAGE_MODELS[name][0](), VPTConfig())


def test_what_makes_no_sense_is_refused(unchecked):
    for options, message in (
        ({"tokens": 0}, "tokens is a whole number"),
        ({"variant": "dep"}, "did you mean 'deep'"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"drop": 0.1}, "drop is 0, not 0.1"),
    ):
        with pytest.raises(TetherError, match=message):
            VPTConfig(**options)
