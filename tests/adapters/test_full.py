"""Full fine-tuning and its smaller relatives: which weights move."""

import pytest
import torch

from tether.adapters import BiasOnlyConfig, FullConfig, LastBlocksConfig, NormOnlyConfig, attach
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError

from .models import Block, open_clip_model, timm_model
from .test_attached import train


def names(config) -> set[str]:
    return set(attach(open_clip_model(), config).named_parameters())


ALL = {name for name, _ in open_clip_model().named_parameters()}


def test_everything_but_the_logit_scale():
    assert names(FullConfig()) == ALL - {"logit_scale"}
    assert names(FullConfig(train_logit_scale=True)) == ALL


def test_exclude_by_prefix_and_by_glob():
    assert names(FullConfig(exclude=("visual",))) == {n for n in ALL if not n.startswith("visual.")} - {
        "logit_scale"
    }
    assert names(FullConfig(exclude=("*.bias",))) == {n for n in ALL if not n.endswith(".bias")} - {
        "logit_scale"
    }
    with pytest.raises(TetherError, match="no parameter matches 'visuel'"):
        names(FullConfig(exclude=("visuel",)))
    with pytest.raises(TetherError, match="finds nothing to train"):
        names(FullConfig(exclude=("*",)))


def test_a_string_is_no_tuple_of_patterns(unchecked):
    with pytest.raises(TetherError, match=r"\('visual',\)"):
        FullConfig(exclude="visual")


def test_biases_norms_and_last_blocks():
    assert names(BiasOnlyConfig()) == {name for name in ALL if name.endswith(("bias",))}
    assert "transformer.resblocks.0.attn.in_proj_bias" in names(BiasOnlyConfig())
    assert names(NormOnlyConfig()) == {name for name in ALL if ".ln_" in name or name.startswith("ln_")}
    assert names(LastBlocksConfig(blocks=1)) == {
        name for name in ALL if ".1." in name and "resblocks" in name
    }
    with pytest.raises(TetherError, match="at least 1"):
        LastBlocksConfig(blocks=0)
    with pytest.raises(TetherError, match="finds nothing to train"):
        attach(Block(4, 8), NormOnlyConfig())


def test_alpha_per_tower_follows_the_names_of_the_towers():
    model = open_clip_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attached = attach(model, FullConfig())
    train(attached)
    attached.merge({"image": 1.0, "text": 0.0})
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])}
    assert changed and all(name.startswith("visual.") for name in changed)
    attached.unmerge()
    attached.merge({"image": 0.0, "text": 1.0})
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])}
    assert {"token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight"} <= changed
    assert not any(name.startswith("visual.") for name in changed)


def test_an_average_of_parameters_is_a_state_although_buffers_are_missing():
    model = timm_model()
    model.norm = torch.nn.BatchNorm1d(5)
    attached = attach(model, FullConfig())
    average = Accumulation(attached.named_parameters(), momentum=0.5)
    with torch.no_grad():
        model.norm.running_mean.add_(1.0)
        model.norm.weight.add_(2.0)
    average.update()
    delta = attached.delta(average.average())
    assert torch.allclose(delta["norm.weight"], torch.ones(5))
    assert torch.allclose(delta["norm.running_mean"], torch.ones(5))
    with pytest.raises(TetherError, match="missing"):
        attached.delta({"norm.weight": torch.ones(5)})
