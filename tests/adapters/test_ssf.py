"""Scales and shifts against plain hooks, what they merge to, and the published count."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor

from tether.adapters import Adapter, SSFConfig, attach
from tether.adapters.ssf import operations
from tether.errors import TetherError
from tether.models.site import Select
from tether.runs.average import average_adapters

from ..models.image_models import IMAGE_MODELS
from .matrix import backbone, outputs
from .models import features, open_clip_model, pixels, timm_model
from .r_adapter.test_method import disturb


def test_forward_and_gradients_are_those_of_hooks():
    model = timm_model().double()
    attached = attach(model, SSFConfig())
    disturb(attached)
    named = attached.named_parameters()
    x = pixels().double()
    found = model.forward_features(x)
    weights = torch.randn_like(found)
    leaves = list(named.values())
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    attached.take_out()
    handles = []
    for name, scale in named.items():
        if not name.endswith(".scale"):
            continue
        path = name.removesuffix(".ssf.scale")
        shift = named[f"{path}.ssf.shift"]

        def change(
            part: torch.nn.Module, given: tuple, y: Tensor, g: Tensor = scale, h: Tensor = shift
        ) -> Tensor:
            if y.dim() == 4:
                return y * g[:, None, None] + h[:, None, None]
            return y * g + h

        handles.append(model.get_submodule(path).register_forward_hook(change))
    expected = model.forward_features(x)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    for handle in handles:
        handle.remove()


def test_the_count_is_the_published_one():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    attached = attach(model, SSFConfig())
    assert sum(tensor.numel() for tensor in attached.named_parameters().values()) == 205_824


@torch.no_grad()
def test_merged_equals_unmerged_at_every_alpha_and_with_another_state():
    model = open_clip_model()
    attached = attach(model, SSFConfig(select=Select()))
    disturb(attached)
    half = {name: tensor / 2 for name, tensor in attached.state_dict().items()}
    for alpha in (0.0, 0.4, 1.0, {"image": 0.2, "text": 1.5}):
        for state in (None, half):
            report = attached.merge(alpha, state=state, probe=lambda: features(model))
            assert report.max_error < 1e-5
            attached.unmerge()
    delta = attached.delta()
    assert "visual.transformer.resblocks.0.attn.out_proj.bias" in delta
    assert not any("in_proj" in name for name in delta)


@torch.no_grad()
def test_the_mean_of_adapters_merges_to_the_mean_of_their_merges():
    model = timm_model()
    adapters, deltas = [], []
    for seed in (0, 1):
        attached = attach(model, SSFConfig(), seed=seed)
        deltas.append(attached.delta())
        state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
        adapters.append(Adapter(attached.config, state, "same"))
        attached.detach()
    mean = average_adapters(adapters)
    attached = attach(model, mean.config)
    for name, tensor in attached.delta(mean.state).items():
        torch.testing.assert_close(tensor, (deltas[0][name] + deltas[1][name]) / 2)
    with pytest.raises(TetherError, match="Only adapters alike"):
        average_adapters([adapters[0], replace(adapters[1], config=SSFConfig(initialisation="identity"))])


def test_operations_of_whole_towers_and_of_chosen_blocks():
    paths = [one.path for one in operations(timm_model(), SSFConfig().select)]
    inside = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert set(paths) == {
        "patch_embed.proj",
        "norm",
        *(f"blocks.{depth}.{name}" for depth in (0, 1) for name in inside),
    }
    last = operations(timm_model(), Select(tower="image", depths=(-1, -1)))
    assert {one.path for one in last} == {f"blocks.1.{name}" for name in inside}
    paths = [one.path for one in operations(IMAGE_MODELS["timm Swin"][0](), SSFConfig().select)]
    assert {"patch_embed.norm", "layers.1.downsample.reduction", "norm"} <= set(paths)
    assert not any("cpb" in path or path == "head.fc" for path in paths)
    both = operations(open_clip_model(), Select())
    assert {one.tower for one in both} == {"image", "text"}
    assert {one.path for one in both} >= {"visual.conv1", "visual.ln_pre", "visual.ln_post", "ln_final"}


@pytest.mark.parametrize("name", ["timm ConvNeXt of convolutions", "transformers Swin 2", "timm EVA"])
@torch.no_grad()
def test_more_backbones_merge(name):
    model = IMAGE_MODELS[name][0]().eval()
    attached = attach(model, SSFConfig())
    disturb(attached, 0.02)
    assert attached.merge(1.0, probe=lambda: outputs(model)).relative_error < 1e-5


def test_the_first_values_are_near_one_and_zero():
    attached = attach(backbone("timm Swin"), SSFConfig(), seed=1)
    for kind, mean in (("scale", 1.0), ("shift", 0.0)):
        values = torch.cat(
            [one.detach() for name, one in attached.named_parameters().items() if name.endswith(kind)]
        )
        assert values.mean() == pytest.approx(mean, abs=0.002) and values.std() == pytest.approx(
            0.02, rel=0.1
        )
    assert not attached.identity_at_start
    attached.detach()


def test_every_parameter_gets_a_gradient():
    model = timm_model()
    attached = attach(model, SSFConfig())
    attached.train_mode()
    attached.begin_step(0)
    model.forward_features(pixels()).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in attached.named_parameters().values())


@torch.no_grad()
def test_what_has_no_bias_is_only_scaled():
    model = timm_model()
    model.blocks[0].attn.qkv.bias = None
    attached = attach(model, SSFConfig())
    names = attached.named_parameters()
    assert "blocks.0.attn.qkv.ssf.scale" in names and "blocks.0.attn.qkv.ssf.shift" not in names
    disturb(attached)
    assert attached.merge(1.0, probe=pixels()).max_error < 1e-5


@torch.no_grad()
def test_a_picture_has_the_same_features_in_any_batch():
    model = timm_model()
    disturb(attach(model, SSFConfig()))
    alone = torch.cat([model(picture[None]) for picture in pixels()])
    torch.testing.assert_close(model(pixels()), alone, rtol=1e-5, atol=1e-5)


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(TetherError, match="did you mean 'identity'"):
        SSFConfig(initialisation="identify")
    model = timm_model()
    model.norm.forward = model.norm.forward
    with pytest.raises(TetherError, match=r"forward of norm .* was replaced"):
        attach(model, SSFConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())
