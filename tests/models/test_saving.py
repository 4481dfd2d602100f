"""Wherever a model came from, it is saved as a folder that loads as the same model."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tether.errors import TetherError
from tether.models import Model, load
from tether.models.saving import check_finite

PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def assert_same(saved: Model, model: Model) -> None:
    for part in ("family", "image", "context_length", "activation"):
        assert getattr(saved, part) == getattr(model, part), part
    assert saved.fingerprint() == model.fingerprint()
    texts = ["a photo of a dog", "two birds"]
    assert torch.equal(saved.tokenize(texts), model.tokenize(texts))
    with torch.no_grad():
        assert torch.equal(saved.encode_image(PIXELS), model.encode_image(PIXELS))


def changed(model: Model) -> Model:
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.5)
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_transformers(kind: str, save_transformers, tmp_path: Path) -> None:
    model = changed(load(save_transformers(kind)[0]))
    model.save(tmp_path / "saved")
    assert_same(load(tmp_path / "saved"), model)


def test_a_hub_id(clip: Path, save_transformers, hub, tmp_path: Path) -> None:
    hub("some/open-clip", clip)
    hub("some/transformers", save_transformers("clip")[0])
    for name in ("open-clip", "transformers"):
        model = changed(load(f"hf:some/{name}"))
        model.save(tmp_path / name)
        assert_same(load(tmp_path / name), model)


def test_an_architecture_with_a_weights_file_keeps_its_activation(architectures, tmp_path: Path) -> None:
    save_file(architectures["tiny"].state_dict(), tmp_path / "weights.safetensors")
    source = f"open_clip:tiny/{tmp_path / 'weights.safetensors'}"
    for activation in ("gelu", "quick_gelu"):
        model = changed(load(source, activation=activation))
        model.save(tmp_path / activation)
        saved = load(tmp_path / activation)
        assert saved.activation == activation
        assert_same(saved, model)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'quick_gelu'}").eval()
    with torch.no_grad():
        features = torch.nn.functional.normalize(theirs.encode_image(PIXELS), dim=-1)
    torch.testing.assert_close(features, model.encode_image(PIXELS).detach())


def test_a_folder_whose_activation_was_given_by_hand(save_open_clip, tmp_path: Path) -> None:
    folder, _ = save_open_clip()
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"].pop("quick_gelu", None)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    model = load(folder, activation="quick_gelu")
    model.save(tmp_path / "saved")
    assert_same(load(tmp_path / "saved"), model)


def test_nothing_is_overwritten(clip: Path) -> None:
    with pytest.raises(TetherError, match="exists already"):
        load(clip).save(clip)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_written(clip: Path, value: float, tmp_path: Path) -> None:
    model = load(clip)
    with torch.no_grad():
        model.module.visual.proj[0, 0] = value
    with pytest.raises(
        TetherError, match=r"visual\.proj of the model holds NaN or infinity, so it is not saved"
    ):
        model.save(tmp_path / "saved")
    assert not list(tmp_path.glob("*saved*"))


def test_a_mask_of_infinities_is_no_fault() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf))
    check_finite(module)
    module.running_var[0] = torch.nan
    with pytest.raises(TetherError, match="running_var of the model holds NaN"):
        check_finite(module)
