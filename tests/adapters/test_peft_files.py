"""Folders of peft's: what tether writes answers alike in peft, and what peft trained answers alike in tether."""

import copy
import json

import peft
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from tether.adapters import (
    LoRAConfig,
    MonaConfig,
    RAdapterConfig,
    apply,
    attach,
    load_peft,
    save_adapter,
    save_peft,
)
from tether.adapters.r_adapter.rank import Factored
from tether.errors import TetherError
from tether.models.site import Select

from .models import features, open_clip_model, pixels, timm_model, transformers_model
from .r_adapter.test_method import disturb

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # peft 0.21 with transformers 5.23
    "ignore:Adapter 'default'. 8 LoRA tensor.s. have invalid shape",  # peft 0.21 takes its own biases for broken
)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def loaded_by_peft(make, folder):
    return peft.PeftModel.from_pretrained(make(), folder).eval()


@pytest.mark.parametrize(
    ("make", "config", "alpha"),
    [
        (transformers_model, RAdapterConfig(rank=2), {"image": 0.25, "text": 1.0}),
        (timm_model, RAdapterConfig(rank=3, scale=None), 0.5),
        (open_clip_model, RAdapterConfig(rank=2, select=Select(kinds=("mlp",), tower="text")), 1.0),
        (open_clip_model, LoRAConfig(rank=2), {"image": 0.25, "text": 1.0}),
        (timm_model, LoRAConfig(rank=2, variant="rslora", bias=True), 0.5),
        (timm_model, LoRAConfig(rank=2, variant="dora"), 1.0),
    ],
    ids=["r_adapter CLIP", "r_adapter ViT", "r_adapter text", "lora fused", "rslora", "dora"],
)
@torch.no_grad()
def test_what_is_written_answers_alike_in_peft_and_when_it_is_read_again(make, config, alpha, tmp_path):
    module = make()
    attached = attach(module, config)
    disturb(attached, 0.3)
    attached.eval_mode()
    base = features(make())
    save_peft(tmp_path / "out", attached, alpha=alpha)
    attached.merge(alpha)
    expected = features(module)
    assert not all(torch.equal(one, other) for one, other in zip(expected, base, strict=True))
    theirs = loaded_by_peft(make, tmp_path / "out")
    assert_close(features(theirs.base_model.model), expected)
    layers = [path for path, part in theirs.named_modules() if hasattr(part, "lora_A")]
    assert len(layers) == len(attached.sites or attached.targets)  # and on no other
    again = make()
    adapter = load_peft(tmp_path / "out", again)
    apply(again, adapter).merge(1.0)
    assert_close(features(again), expected)


@torch.no_grad()
def test_ranks_may_differ_in_what_is_written_and_read(tmp_path):
    module = timm_model()
    attached = attach(module, RAdapterConfig(rank=5))
    disturb(attached, 0.3)
    attached.eval_mode()
    factored = Factored(attached.state_dict())
    state = {name: tensor for name, tensor in factored.at_rank(2).items() if "blocks.0" in name}
    state |= {name: tensor for name, tensor in factored.at_rank(4).items() if "blocks.1" in name}
    save_peft(tmp_path / "out", attached, state=state)
    attached.merge(1.0, state)
    assert_close(features(loaded_by_peft(timm_model, tmp_path / "out").base_model.model), features(module))
    options = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["qkv", "fc1"],
        rank_pattern={"fc1": 4},
        alpha_pattern={"blocks.1.mlp.fc1": 7},
    )
    theirs = trained_by_peft(timm_model(), options)
    theirs.save_pretrained(tmp_path / "theirs")
    again = timm_model()
    apply(again, load_peft(tmp_path / "theirs", again))
    assert_close(features(again), features(theirs.base_model.model))


def trained_by_peft(module, options):
    theirs = peft.get_peft_model(module, options).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return theirs


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}])
@torch.no_grad()
def test_a_lora_that_peft_trained_is_an_adapter_at_any_alpha(options, tmp_path):
    options = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "fc2"], **options)
    theirs = trained_by_peft(transformers_model(), options)
    theirs.save_pretrained(tmp_path / "theirs")
    module = transformers_model()
    base, expected = features(module), features(theirs.base_model.model)
    adapter = load_peft(tmp_path / "theirs", module)
    assert (adapter.config.rank, adapter.config.lora_alpha) == (2, pytest.approx(6))
    assert_close(features(module), base)  # nothing stays attached
    save_adapter(tmp_path / "ours", adapter)
    attached = apply(module, tmp_path / "ours")
    assert_close(features(module), expected)
    with attached.path() as path:
        path.set(1.0)
        assert_close(features(module), expected)
        path.set(0.0)
        assert all(torch.equal(one, other) for one, other in zip(features(module), base, strict=True))


@torch.no_grad()
def test_a_lora_inside_of_a_model_with_a_head_fits_the_model_without(tmp_path):
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    module = ViTForImageClassification(config).eval()
    theirs = trained_by_peft(copy.deepcopy(module), peft.LoraConfig(target_modules=["fc1"]))
    theirs.save_pretrained(tmp_path / "theirs")
    attached = apply(module.vit, load_peft(tmp_path / "theirs", module.vit))
    assert len(attached.targets) == 2
    assert_close([module(pixels()).logits], [theirs(pixels()).logits])


def test_what_is_no_lora_is_not_written(tmp_path):
    cases = (
        (RAdapterConfig(), r"has full rank.*tether rank ADAPTER --out SMALL"),
        (MonaConfig(hidden=4), "method mona is no LoRA"),
    )
    for config, message in cases:
        attached = attach(timm_model(), config)
        with pytest.raises(TetherError, match=message):
            save_peft(tmp_path / "out", attached)
    with pytest.raises(TetherError, match=r"attn.out_proj is the output projection of a fused attention"):
        save_peft(tmp_path / "out", attach(open_clip_model(), RAdapterConfig(rank=2)))
    with pytest.raises(TetherError, match=r"finds a parameter by the end of its name.*visual\.transformer"):
        save_peft(
            tmp_path / "out",
            attach(open_clip_model(), LoRAConfig(select=Select(tower="text"))),
        )
    attached = attach(timm_model(), LoRAConfig(variant="dora"))
    with pytest.raises(TetherError, match=r"DoRA is not linear.*--alpha 1"):
        save_peft(tmp_path / "out", attached, alpha=0.5)
    attached.unfreeze({"norm.bias": torch.zeros(16)})
    with pytest.raises(TetherError, match=r"norm\.bias was trained beside the adapter"):
        save_peft(tmp_path / "out", attached)
    attached = attach(timm_model(), LoRAConfig())
    with torch.no_grad():
        next(iter(attached.named_parameters().values())).fill_(torch.nan)
    with pytest.raises(TetherError, match="holds NaN or infinity, so it is not saved"):
        save_peft(tmp_path / "out", attached)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(TetherError, match="exists already, and nothing is overwritten"):
        save_peft(tmp_path / "out", attached)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "adapter of type LOHA, and LORA is what can be read"),
        ({"init_lora_weights": "pissa_niter_4"}, "takes its first values out of the base"),
        ({"use_qalora": True}, "use_qalora=True, with which peft computes something else"),
    ],
)
def test_other_kinds_of_peft_are_not_read(change, message, tmp_path):
    peft.get_peft_model(timm_model(), peft.LoraConfig(target_modules=["fc1"])).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(TetherError, match=message):
        load_peft(tmp_path / "a", timm_model())


def test_tensors_without_a_place_are_not_read(tmp_path):
    options = {"norm": peft.LoraConfig(target_modules=["fc1"], modules_to_save=["norm"])}
    options["attention"] = peft.LoraConfig(target_modules=["attn"])
    for name, make in (("norm", timm_model), ("attention", open_clip_model)):
        peft.get_peft_model(make(), options[name]).save_pretrained(tmp_path / name)
    with pytest.raises(
        TetherError, match=r"norm\.(weight|bias) in .* is no tensor of a LoRA.*modules_to_save"
    ):
        load_peft(tmp_path / "norm", timm_model())
    with pytest.raises(TetherError, match=r"nn\.MultiheadAttention, which applies .* twice.*in_proj_weight"):
        load_peft(tmp_path / "attention", open_clip_model())
    module = nn.Sequential(nn.Linear(2, 2))
    peft.get_peft_model(timm_model(), peft.LoraConfig(target_modules=["fc1"])).save_pretrained(tmp_path / "a")
    with pytest.raises(TetherError, match=r"LoRA on blocks\.0\.mlp\.fc1, which the model Sequential has not"):
        load_peft(tmp_path / "a", module)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(TetherError, match="Pickled weights are never loaded"):
        load_peft(tmp_path / "a", module)
    with pytest.raises(TetherError, match=r"no adapter_config\.json, so it is no folder that peft saved"):
        load_peft(tmp_path, module)
