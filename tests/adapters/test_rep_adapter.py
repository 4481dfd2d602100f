"""RepAdapter against a twin of one group at a time, its merge into what reads it, and its count."""

import pytest
import torch
from torch import nn

from tether.adapters import RepAdapterConfig, attach
from tether.adapters.rep_adapter import readers
from tether.errors import TetherError
from tether.models import sites

from ..models.image_models import IMAGE_MODELS
from .checks import (
    WIDTH,
    assert_everything_moves,
    assert_independent_of_the_batch,
    assert_same_with_gradients,
    count,
    made,
    site,
)
from .models import features, open_clip_model, pixels, timm_model
from .r_adapter.test_method import disturb


@pytest.mark.parametrize("groups", [1, 2])
def test_forward_and_gradients_are_those_of_the_formula(groups):
    module = made(RepAdapterConfig(hidden=4, groups=groups, scale=0.5), site())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    z = x @ named["down.weight"].T + named["down.bias"]
    parts = [
        z[..., g * 4 // groups : (g + 1) * 4 // groups] @ named["up"][g].T for g in range(groups)
    ]  # each group of outputs sees its own channels
    expected = 0.5 * (torch.cat(parts, dim=-1) + named["bias"])
    assert_same_with_gradients(module(x), expected, [x, *named.values()])


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_merged_equals_unmerged_at_every_alpha_and_with_another_state(batch_first):
    model = open_clip_model(batch_first=batch_first)
    attached = attach(model, RepAdapterConfig(hidden=4))
    disturb(attached)
    half = {name: tensor / 2 for name, tensor in attached.state_dict().items()}
    for alpha in (0.0, 0.4, 1.0, {"image": 0.2, "text": 1.5}):
        for state in (None, half):
            report = attached.merge(alpha, state=state, probe=lambda: features(model))
            assert report.max_error < 1e-5
            attached.unmerge()
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in attached.delta()


def test_what_reads_a_norm_is_found():
    model = timm_model()
    found = [readers(model, one) for one in sites(model, position="parallel_normalized")]
    assert found[:2] == [
        [("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias")],
        [("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias")],
    ]
    model = IMAGE_MODELS["transformers ViT"][0]()
    first = sites(model, position="parallel_normalized")[0]
    assert len(readers(model, first)) == 3  # queries, keys, values
    model = timm_model()
    model.blocks[1].attn.qkv = nn.Linear(16, 48, bias=False)
    with pytest.raises(TetherError, match=r"blocks\.1\.attn\.qkv has no bias.*take convpass"):
        attach(model, RepAdapterConfig())
    model.blocks[1].attn.qkv = nn.Identity()
    with pytest.raises(TetherError, match=r"Nothing linear is known to read what blocks\.1\.norm1 gives"):
        attach(model, RepAdapterConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_counts():
    assert count("vit_base_patch16_224", RepAdapterConfig()) == 24 * (8 * 768 + 8 + 4 * 768 + 768)
    assert count("vit_base_patch16_224", RepAdapterConfig(groups=1)) == 24 * (2 * 8 * 768 + 8 + 768)


@pytest.mark.parametrize("groups", [1, 2])
def test_every_parameter_gets_a_gradient(groups):
    assert_everything_moves(RepAdapterConfig(hidden=4, groups=groups), 2)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(RepAdapterConfig(hidden=8))


def test_values_are_dropped_in_training_only():
    model = timm_model()
    attached = attach(model, RepAdapterConfig(dropout=0.5))
    disturb(attached)
    with torch.no_grad():
        still = model(pixels())
        assert torch.equal(model(pixels()), still)
        attached.train_mode()
        assert not torch.equal(model(pixels()), still)


def test_what_makes_no_sense_is_refused(unchecked):
    for options, message in (
        ({"hidden": 0}, "hidden is a whole number"),
        ({"hidden": 4, "groups": 3}, "groups divides hidden, 4; 3 does not"),
        ({"scale": -1.0}, "scale is a positive number"),
        ({"dropout": 1.0}, "dropout is a probability"),
    ):
        with pytest.raises(TetherError, match=message):
            RepAdapterConfig(**options)
    with pytest.raises(TetherError, match="3 does not divide 16"):
        attach(timm_model(), RepAdapterConfig(hidden=6, groups=3))
