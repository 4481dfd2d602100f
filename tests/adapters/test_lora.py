"""LoRA and its kin by peft: formulas, what merges, what stays of the base, and what is refused."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tether.adapters import LoRAConfig, apply, attach, load_adapter, save_adapter
from tether.errors import TetherError
from tether.models.site import Select

from .matrix import backbone
from .models import features, open_clip_model, pixels, timm_model, transformers_model
from .r_adapter.test_method import assert_same, disturb, snapshot

VARIANTS = pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])


class Twin(nn.Module):
    """x (W')ᵀ + b, with W' as the papers write it; only the norm of DoRA gets no gradient, as they have it."""

    def __init__(self, linear, tensors, config):
        super().__init__()
        self.linear, self.tensors, self.config = linear, tensors, config

    def forward(self, x):
        config, (down, up) = self.config, (self.tensors[f"lora_{name}.weight"] for name in "AB")
        root = config.rank**0.5 if config.variant == "rslora" else config.rank
        weight = self.linear.weight + config.lora_alpha / root * up @ down
        if config.variant == "dora":
            norm = weight.square().sum(1, keepdim=True).sqrt().detach()
            weight = self.tensors["lora_magnitude_vector"][:, None] * weight / norm
        return F.linear(x, weight, self.linear.bias)


@VARIANTS
def test_forward_and_gradients_are_those_of_the_formula(variant):
    config = LoRAConfig(rank=3, lora_alpha=5.0, variant=variant, modules=("qkv", "mlp.fc2"))
    model = timm_model().double()
    attached = attach(model, config)
    disturb(attached)
    named = attached.named_parameters()
    found = model(pixels().double())
    ours = torch.autograd.grad(found.square().sum(), list(named.values()))
    attached.take_out()
    assert set(attached.targets) == {f"blocks.{i}.{end}" for i in (0, 1) for end in ("attn.qkv", "mlp.fc2")}
    for path in attached.targets:
        tensors = {
            name.removeprefix(f"{path}."): tensor for name, tensor in named.items() if name.startswith(path)
        }
        model.set_submodule(path, Twin(model.get_submodule(path), tensors, config))
    expected = model(pixels().double())
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected.square().sum(), list(named.values()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_fused_attention_has_it_on_queries_keys_and_values_and_keeps_its_base():
    model = open_clip_model()
    attached = attach(model, LoRAConfig(rank=2))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}
    assert "visual.transformer.resblocks.0.attn" in attached.targets
    disturb(attached)
    attached.train_mode()
    for _ in range(3):
        sum(output.square().sum() for output in features(model)).backward()
    assert all(bool(parameter.grad.any()) for parameter in attached.named_parameters().values())
    assert_same({name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}, base)
    attached.eval_mode()
    with torch.no_grad():
        found = features(model)
        with attached.path() as path:
            path.set(1.0)
            for one, other in zip(features(model), found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_alpha_scales_lora_as_it_stands_and_moves_dora_on_the_line_of_weights():
    model = transformers_model()
    for config in (LoRAConfig(rank=2, variant="rslora"), LoRAConfig(rank=2, bias=True)):
        attached = attach(model, config)
        disturb(attached)
        half = {name: tensor / 2 for name, tensor in attached.state_dict().items()}
        for alpha in (0.4, {"image": 0.2, "text": 1.5}):
            assert attached.merge(alpha, state=half, probe=lambda: features(model)).max_error < 1e-5
            attached.unmerge()
        attached.detach()
    attached = attach(model, LoRAConfig(rank=2, variant="dora"))
    disturb(attached)
    assert attached.merge(1.0, probe=lambda: features(model)).max_error < 1e-5
    attached.unmerge()
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    base, delta = snapshot(attached._owners[name.removesuffix(".weight")])["weight"], attached.delta()[name]
    assert bool(delta.any()) and attached.merge(0.5, probe=lambda: features(model)).max_error is None
    torch.testing.assert_close(model.get_parameter(name), base + 0.5 * delta)


@VARIANTS
@torch.no_grad()
def test_nothing_changes_at_the_start_and_a_folder_copies_and_detaching_are_exact(variant, tmp_path):
    model = timm_model().bfloat16() if variant == "dora" else timm_model()
    x = pixels().to(model.norm.weight.dtype)
    base, expected = snapshot(model), model(x)
    attached = attach(model, LoRAConfig(rank=2, variant=variant, dropout=0.5), seed=3)
    assert torch.equal(model(x), expected) and torch.equal(attached.train_mode() or model(x), expected)
    attached.eval_mode()
    assert all(parameter.dtype == torch.float32 for parameter in attached.named_parameters().values())
    disturb(attached)
    adapted = model(x)
    assert not torch.equal(adapted, expected)
    twin, theirs = copy.deepcopy((model, attached))
    disturb(theirs)
    assert torch.equal(model(x), adapted) and not torch.equal(twin(x), adapted)
    save_adapter(tmp_path / "a", attached)
    with attached.ordinary() as module:
        assert_same(snapshot(module), base)
    attached.detach()
    assert_same(snapshot(model), base)
    again = apply(model, load_adapter(tmp_path / "a"))
    assert torch.equal(model(x), adapted) and again.config == attached.config


def test_the_first_values_follow_the_seed_and_no_other_draw():
    torch.manual_seed(0)
    expected = torch.rand(1)
    first = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        first.append(attach(timm_model(), LoRAConfig(), seed=seed).state_dict())
        assert torch.equal(torch.rand(1), expected)
    assert_same(first[0], first[1])
    name = "blocks.0.attn.qkv.lora_A.weight"
    assert not torch.equal(first[0][name], first[2][name])
    assert not torch.equal(first[0][name], first[0][name.replace("blocks.0", "blocks.1")])


def test_what_is_trained_beside_it_is_named_as_in_the_base(tmp_path):
    model = timm_model()
    attached = attach(model, LoRAConfig(rank=2))
    attached.unfreeze({"blocks.0.mlp.fc1.bias": torch.ones(64)})
    save_adapter(tmp_path / "a", attached)
    again = apply(timm_model(), tmp_path / "a")
    assert list(again.unfrozen()) == ["blocks.0.mlp.fc1.bias"]
    assert torch.equal(model(pixels()), again.module(pixels()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "dorra"}, "did you mean 'dora'"),
        ({"rank": 0}, "rank is a whole number from 1"),
        ({"lora_alpha": 0.0}, "lora_alpha is a positive number"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"variant": "dora", "bias": True}, "no DoRA with a bias"),
        ({"modules": ()}, "modules is a tuple"),
        ({"modules": ("qkv",), "select": Select(kinds=("mlp",))}, "Give one of them"),
    ],
)
def test_a_config_refuses_what_makes_no_sense(options, message, unchecked):
    with pytest.raises(TetherError, match=message):
        LoRAConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, r"attn is a fused attention.* no dropout.*select\.kinds=\[mlp\]"),
        ({"variant": "dora"}, r"attn is a fused attention.*no DoRA"),
        (
            {"modules": ("out_proj",)},
            r"out_proj is read by its attention and never called.*take method r_adapter",
        ),
        ({"modules": ("c_projj",)}, "did you mean 'c_proj'"),
        ({"modules": ("ln_1",)}, "ln_1 is a LayerNorm, and LoRA is on nn.Linear"),
        (
            {"select": Select(kinds=("block",))},
            r"0 is of kind block. Choose sites of kind 'attention' and 'mlp'",
        ),
    ],
)
def test_a_model_refuses_what_it_has_no_place_for(options, message):
    model = open_clip_model()
    base = snapshot(model)
    with pytest.raises(TetherError, match=message):
        attach(model, LoRAConfig(**options))
    assert_same(snapshot(model), base)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_branch_stands_for_its_linears_and_a_linear_for_itself():
    def ends(model, **options):
        attached = attach(model, LoRAConfig(select=Select(depths=(-1, -1), **options)))
        attached.detach()
        return {path.partition(".1.")[2] for path in attached.targets}

    model, fused = transformers_model(), open_clip_model()
    attention = {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
    assert ends(model, kinds=("attention",)) == attention
    assert ends(model, tower="text") == attention | {"mlp.fc1", "mlp.fc2"}
    assert ends(model, kinds=("linear",), pattern="*.v_proj") == {"self_attn.v_proj"}
    assert ends(fused) == {"attn", "mlp.c_fc", "mlp.c_proj"} and ends(fused, kinds=("attention",)) == {"attn"}


def test_linears_without_a_bias_and_at_two_places_are_refused():
    model = timm_model()
    model.blocks[0].attn.qkv.bias = None
    with pytest.raises(TetherError, match=r"qkv has no bias.*bias=False"):
        attach(model, LoRAConfig(bias=True))
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.raises(TetherError, match="at several places"):
        attach(model, LoRAConfig())


def test_a_linear_that_is_never_called_is_refused_in_any_model():
    model = copy.deepcopy(backbone("torchvision Swin"))
    with pytest.raises(TetherError, match=r"qkv is read by its attention and never called.*out of modules"):
        attach(model, LoRAConfig(modules=("qkv",)))
    unknown = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    with pytest.raises(TetherError, match=r"never called.*Name attention, whose queries, keys and values"):
        attach(unknown, LoRAConfig(modules=("out_proj",)))


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TetherError, match=r"LoRA needs the package peft .*pip install '\.\[peft\]'"):
        attach(timm_model(), LoRAConfig())
