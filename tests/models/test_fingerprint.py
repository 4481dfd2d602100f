import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tether.models import load
from tether.models.fingerprint import fingerprint


def test_one_changed_bit_changes_it(clip) -> None:
    model = load(clip)
    before = model.fingerprint()
    weight = model.module.visual.proj
    bits = weight.data.view(torch.int32)
    bits[0, 0] ^= 1
    assert model.fingerprint() != before
    bits[0, 0] ^= 1
    assert model.fingerprint() == before


def test_the_same_weights_have_the_same_one(clip) -> None:
    assert load(clip).fingerprint() == load(clip).fingerprint()


def test_half_precision_weights_have_one_whatever_they_are_loaded_as(clip) -> None:
    file = clip / "open_clip_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert load(clip, dtype=torch.float16).fingerprint() == load(clip).fingerprint()


def test_names_and_shapes_count() -> None:
    wide, tall = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        for linear in (wide, tall):
            linear.weight.copy_(torch.arange(6.0).view_as(linear.weight))
    renamed = nn.Sequential(wide)
    assert len({fingerprint(wide), fingerprint(tall), fingerprint(renamed)}) == 3


def test_it_does_not_depend_on_memory_layout() -> None:
    linear = nn.Linear(3, 3)
    before = fingerprint(linear)
    linear.weight.data = linear.weight.data.t().contiguous().t()
    assert fingerprint(linear) == before


def test_integers_and_scalars_are_hashed() -> None:
    norm = nn.BatchNorm1d(2)
    before = fingerprint(norm)
    norm.num_batches_tracked += 1
    assert fingerprint(norm) != before


@pytest.mark.parametrize("change", [{"quick_gelu": True}, {"mean": [0.5] * 3}])
def test_what_the_weights_are_fed_with_counts(change: dict, clip) -> None:
    """The same weights under another activation or normalisation are another base."""
    before = load(clip).fingerprint()
    file = clip / "open_clip_config.json"
    described = json.loads(file.read_text())
    described["model_cfg" if "quick_gelu" in change else "preprocess_cfg"].update(change)
    file.write_text(json.dumps(described))
    assert load(clip).fingerprint() != before


def test_what_is_left_out_does_not_count() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one, without=["bias"]) == fingerprint(other, without={"bias"}) != fingerprint(one)
