import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import nn

from tether.errors import TetherError
from tether.models import Select, load, sites

from .image_models import CONVNEXT
from .image_models import TIMM_SWIN as SWIN

VIT = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def saved(
    folder: Path, name: str, options: dict, size: tuple[int, int], classes: int = 5, **data: object
) -> nn.Module:
    """A random model in the folder layout of timm's hub, written by timm itself."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes, **options).eval()
    module.pretrained_cfg = module.pretrained_cfg | {"input_size": (3, *size)} | data
    save_for_hf(module, folder, model_args=options, safe_serialization=True)
    return module


@pytest.fixture
def swin(tmp_path: Path) -> tuple[Path, nn.Module]:
    folder = tmp_path / "swin"
    return folder, saved(folder, "swin_tiny_patch4_window7_224", SWIN, (32, 32), crop_pct=0.9)


def test_a_folder_gives_the_features_before_the_classifier(swin) -> None:
    folder, module = swin
    model = load(folder)
    assert (model.family, model.source, model.dim, model.has_text) == ("timm", str(folder), 48, False)
    assert (model.image.size, model.image.before_crop, model.image.resize) == (32, 35, "shortest")
    assert model.image.mean == (0.485, 0.456, 0.406)
    assert model.activation == "gelu"
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(model.features(pixels), expected)
        torch.testing.assert_close(model.encode_image(pixels).norm(dim=1), torch.ones(2))
    assert not any(name.startswith("head.fc") for name, _ in model.module.named_parameters())
    assert len(sites(model.module, Select(kinds=("mlp",)), "after")) == 3


def test_feature_maps_of_stages(swin) -> None:
    model = load(swin[0])
    maps = model.feature_maps(torch.randn(2, 3, 32, 32))
    assert model.strides == (2, 4)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 16, 16), (2, 48, 8, 8)]


def test_a_plain_vit_gives_its_patches_behind_the_final_norm(tmp_path: Path) -> None:
    """Also of pictures that are wider than high."""
    module = saved(tmp_path / "vit", "vit_tiny_patch16_224", VIT, (32, 48), crop_mode="squash", crop_pct=1.0)
    model = load(tmp_path / "vit")
    assert (model.image.size, model.image.resize, model.image.before_crop) == ((32, 48), "squash", None)
    pixels = torch.randn(2, 3, 32, 48)
    (grid,) = model.feature_maps(pixels)
    assert model.strides == (8,)
    with torch.no_grad():
        tokens = module.forward_features(pixels)
        torch.testing.assert_close(grid, tokens[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6))
        torch.testing.assert_close(model.features(pixels), tokens[:, 0])
    assert {site.grid for site in sites(model.module)} == {(4, 6)}


def test_convnext(tmp_path: Path) -> None:
    saved(tmp_path / "convnext", "convnext_tiny", CONVNEXT, (64, 64))
    model = load(tmp_path / "convnext")
    pixels = torch.randn(1, 3, 64, 64)
    assert model.features(pixels).shape == (1, model.dim) == (1, 40)
    assert model.strides == (4, 8, 16, 32)
    assert [one.shape[1:] for one in model.feature_maps(pixels)] == [
        (16, 16, 16),
        (24, 8, 8),
        (32, 4, 4),
        (40, 2, 2),
    ]


def test_saved_again_it_is_the_same_model(swin, tmp_path: Path) -> None:
    model = load(swin[0])
    with torch.no_grad():
        model.module.layers[0].blocks[0].mlp.fc2.bias.add_(1)
    model.save(tmp_path / "again")
    again = load(tmp_path / "again")
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.features(pixels), model.features(pixels))
    assert again.fingerprint() == model.fingerprint() != load(swin[0]).fingerprint()
    assert again.image == model.image


def test_what_needs_texts_says_that_there_are_none(swin) -> None:
    model = load(swin[0])
    for use in (
        lambda: model.tokenize(["a"]),
        lambda: model.encode_text(torch.zeros(1, 4, dtype=torch.long)),
        lambda: model.logit_scale,
        lambda: model.logit_bias,
    ):
        with pytest.raises(TetherError, match=r"has no text tower, so .*objective\.method=cross_entropy"):
            use()


def test_names_come_with_published_weights(tmp_path: Path, hub) -> None:
    published = tmp_path / "published"
    state = saved(published, "test_vit", {}, (160, 160), classes=1000).state_dict()
    hub("timm/test_vit.r160_in1k", published)
    for name in ("test_vit", "test_vit.r160_in1k"):
        model = load(f"timm:{name}")
        assert (model.source, model.dim, model.image.size) == (f"timm:{name}", 64, 160)
        for key, tensor in model.module.state_dict().items():
            assert torch.equal(tensor, state[key])
    assert load("hf:timm/test_vit.r160_in1k").fingerprint() == model.fingerprint()


def test_random_weights_are_asked_for(hub) -> None:
    torch.manual_seed(0)
    first = load("timm:test_vit", pretrained=False)
    torch.manual_seed(0)
    assert load("timm:test_vit", pretrained=False).fingerprint() == first.fingerprint()
    with pytest.raises(TetherError, match="not in the local hub cache"):
        load("timm:test_vit")


def test_unknown_names_say_what_there_is(hub) -> None:
    with pytest.raises(TetherError, match="did you mean 'swin_tiny_patch4_window7_224'"):
        load("timm:swin_tiny_patch4_window7_22")
    with pytest.raises(TetherError, match=r"no weights 'test_vit.r160'; did you mean 'test_vit.r160_in1k'"):
        load("timm:test_vit.r160")
    with pytest.raises(TetherError, match="pretrained=False is for"):
        load("builtin", pretrained=False)
    with pytest.raises(TetherError, match="says its activation itself"):
        load("timm:test_vit", activation="gelu")


def test_a_model_of_ours_has_no_published_weights() -> None:
    from tether.models import hybrid  # noqa: F401

    with pytest.raises(
        TetherError, match=r"publishes no weights of tether_vit_lite0.*none.*pretrained=False"
    ):
        load("timm:tether_vit_lite0")


@pytest.mark.parametrize("change", ["missing", "shape", "infinite", "absent"])
def test_weights_that_do_not_fit_are_refused(change: str, swin) -> None:
    folder, _ = swin
    file = folder / "model.safetensors"
    state = load_file(file)
    name = "layers.0.blocks.0.mlp.fc1.weight"
    if change == "missing":
        del state[name]
    elif change == "shape":
        state[name] = state[name][:-1].contiguous()
    else:
        state[name][0, 0] = torch.inf
    save_file(state, file)
    if change == "absent":
        file.unlink()
    with pytest.raises(TetherError, match="has no model.safetensors" if change == "absent" else name):
        load(folder)


def test_a_description_cannot_make_timm_read_other_files(swin, tmp_path: Path) -> None:
    """`checkpoint_path` would be unpickled; a location would be fetched instead of the folder's own weights."""
    folder, _ = swin
    config = json.loads((folder / "config.json").read_text())
    harmful = tmp_path / "harmful.pth"
    torch.save({"a": torch.zeros(1)}, harmful)
    changed = config | {"model_args": config["model_args"] | {"checkpoint_path": str(harmful)}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(TetherError, match="asks timm for checkpoint_path"):
        load(folder)
    before = config["pretrained_cfg"]
    changed = config | {
        "pretrained_cfg": before | {"source": "hf-hub", "hf_hub_id": "a/b", "file": str(harmful)}
    }
    (folder / "config.json").write_text(json.dumps(changed))
    load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "local-dir:/tmp"}))
    with pytest.raises(TetherError, match="timm has no model 'local-dir:/tmp'"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"embed_dim": 2**20}}, "asks for far more than its weights fill"),
        ({"model_args": [1]}, "model_args of .* should hold settings by name"),
        ({"model_args": {"depths": "many"}}, "timm cannot build the model"),
        ({"pretrained_cfg": 3}, "pretrained_cfg of .* should hold settings by name"),
        ({"architecture": 7}, "timm has no model 7"),
        ({"num_classes": 10**9}, "asks for far more than its weights fill"),
    ],
)
def test_a_description_that_cannot_be_meant(change: dict, message: str, swin, unchecked: None) -> None:
    config = json.loads((swin[0] / "config.json").read_text())
    (swin[0] / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(TetherError, match=message):
        load(swin[0])


def test_a_size_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "swin", "swin_tiny_patch4_window7_224", SWIN, (32, 32))
    config = json.loads((tmp_path / "swin" / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 64, 64], "fixed_input_size": False}
    (tmp_path / "swin" / "config.json").write_text(json.dumps(config))
    with pytest.raises(TetherError, match=r"prepared with 64 × 64 pixels, the model takes 32 × 32"):
        load(tmp_path / "swin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
    ],
)
def test_a_preparation_that_is_not_supported_is_refused(change: dict, message: str, swin) -> None:
    config = json.loads((swin[0] / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (swin[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(TetherError, match=message):
        load(swin[0])


def test_an_adapter_goes_onto_a_backbone_and_into_its_folder(swin, tmp_path: Path) -> None:
    """Attached, saved, put onto the same base again, merged, written as a folder of timm and read back."""
    from tether.adapters import RAdapterConfig, attach, save_adapter
    from tether.adapters.files import apply

    pixels = torch.randn(2, 3, 32, 32)
    model = load(swin[0])
    before = model.features(pixels).detach()
    attached = attach(model, RAdapterConfig(rank=4))
    attached.eval_mode()
    for parameter in attached.named_parameters().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tuned = model.features(pixels).detach()
    assert not torch.allclose(tuned, before, atol=1e-3)
    save_adapter(tmp_path / "adapter", attached)
    other = load(swin[0])
    again = apply(other, tmp_path / "adapter")
    again.eval_mode()
    torch.testing.assert_close(other.features(pixels), tuned, atol=2e-2, rtol=1e-2)  # kept in half precision
    again.merge(1.0)
    other.save(tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged").features(pixels), other.features(pixels))
    with pytest.raises(TetherError, match="base"):
        apply(load(tmp_path / "merged"), tmp_path / "adapter")
