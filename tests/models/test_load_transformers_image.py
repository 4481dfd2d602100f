import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn

from tether.data.transforms import test_transform as plain_transform
from tether.errors import TetherError
from tether.models import load, sites

from .image_models import CONVNEXT_OF_TRANSFORMERS, SWIN_OF_TRANSFORMERS, VIT_OF_TRANSFORMERS

SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
KINDS = {  # options of the configuration, image processor, its options, shapes of the maps, strides
    "ViT": (VIT_OF_TRANSFORMERS, "ViT", SQUARE, [(32, 4, 4)], (8,)),
    "DeiT": (
        VIT_OF_TRANSFORMERS,
        "DeiT",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}},
        [(32, 4, 4)],
        (8,),
    ),
    "Dinov2": (VIT_OF_TRANSFORMERS, "Bit", CROPPED, [(32, 4, 4)], (8,)),
    "Dinov2WithRegisters": (VIT_OF_TRANSFORMERS, "Bit", CROPPED, [(32, 4, 4)], (8,)),
    "Swin": (SWIN_OF_TRANSFORMERS, "ViT", SQUARE, [(24, 16, 16), (48, 8, 8)], (2, 4)),
    "Swinv2": (SWIN_OF_TRANSFORMERS, "ViT", SQUARE, [(24, 16, 16), (48, 8, 8)], (2, 4)),
    "ConvNext": (
        CONVNEXT_OF_TRANSFORMERS,
        "ConvNext",
        {"size": {"shortest_edge": 32}},
        [(16, 8, 8), (24, 4, 4), (32, 2, 2), (40, 1, 1)],
        (4, 8, 16, 32),
    ),
    "ConvNextV2": (
        CONVNEXT_OF_TRANSFORMERS,
        "ConvNext",
        {"size": {"shortest_edge": 32}},
        [(16, 8, 8), (24, 4, 4), (32, 2, 2), (40, 1, 1)],
        (4, 8, 16, 32),
    ),
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """Save a tiny image model with its image processor; gives the folder and the module that was saved."""

    def save(kind: str, classes: bool = True, **changes) -> tuple[Path, nn.Module]:
        options, processor, prepare, *_ = KINDS[kind]
        torch.manual_seed(0)
        config = getattr(hf, f"{kind}Config")(image_size=32, num_labels=3, **options | changes)
        module = getattr(hf, f"{kind}ForImageClassification" if classes else f"{kind}Model")(config)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        folder = tmp_path / kind
        module.save_pretrained(folder)
        getattr(hf, f"{processor}ImageProcessor")(**prepare).save_pretrained(folder)
        return folder, module.eval()

    return save


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_classifier_reads(kind: str, save, tmp_path: Path) -> None:
    folder, module = save(kind)
    model = load(folder)
    assert (model.family, model.has_text, model.strides) == ("transformers", False, KINDS[kind][4])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.features(pixels)
        assert features.shape == (2, model.dim)
        torch.testing.assert_close(module.classifier(features), module(pixel_values=pixels).logits)
        assert [tuple(one.shape[1:]) for one in model.feature_maps(pixels)] == KINDS[kind][3]
    assert len(sites(model.module)) > 0
    model.save(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint() == model.fingerprint()


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Swin", "ConvNext"])
def test_a_bare_model_is_the_same(kind: str, save) -> None:
    folder, module = save(kind, classes=False)
    model, pixels = load(folder), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last = module(pixel_values=pixels).last_hidden_state
        ours = model.module(pixel_values=pixels).last_hidden_state
    assert torch.equal(ours, last)
    assert not any("pooler" in name for name, _ in model.module.named_parameters())


def test_maps_are_of_patches_alone(save) -> None:
    folder, _ = save("Dinov2WithRegisters")
    model, pixels = load(folder), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        (grid,) = model.feature_maps(pixels)
        tokens = model.module(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(grid, tokens[:, 5:].transpose(1, 2).reshape(1, 32, 4, 4))


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2", "ConvNext"])
def test_pictures_are_prepared_as_the_processor_does(kind: str, save) -> None:
    folder, _ = save(kind)
    model = load(folder)
    picture = Image.effect_mandelbrot((80, 50), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(plain_transform(model.image)(picture), expected, atol=1e-5, rtol=1e-5)


def test_large_pictures_of_convnext_are_squashed(save) -> None:
    folder, _ = save("ConvNext")
    hf.ConvNextImageProcessor(size={"shortest_edge": 384}).save_pretrained(folder)
    image = load(folder).image
    assert (image.size, image.before_crop, image.resize) == (384, None, "squash")


def test_what_does_not_fit_is_refused(save) -> None:
    folder, _ = save("ViT")
    hf.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    with pytest.raises(TetherError, match=r"prepared with 64 × 64 pixels, the model takes 32 × 32"):
        load(folder)
    hf.ViTImageProcessor(**SQUARE, do_normalize=False).save_pretrained(folder)
    with pytest.raises(TetherError, match="do_normalize=False"):
        load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TetherError, match=r"image processor .*could not be loaded"):
        load(folder)
    folder, _ = save("Dinov2")
    hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 30, "width": 30}).save_pretrained(
        folder
    )
    with pytest.raises(TetherError, match="patches of 8 × 8 do not fit into"):
        load(folder)
    with pytest.raises(TetherError, match="says its activation itself"):
        load(folder, activation="gelu")


def test_weights_that_do_not_fit_are_refused(save) -> None:
    folder, _ = save("Swin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depths": [2, 2]}))
    with pytest.raises(TetherError, match=r"missing: encoder\.layers\.0\.blocks\.1"):
        load(folder)


def test_a_configuration_that_asks_for_more_than_the_weights_hold(save) -> None:
    folder, _ = save("ViT")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 10**9}))
    with pytest.raises(TetherError, match="asks for far more than its weights fill"):
        load(folder)


def test_a_kind_that_is_not_known_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    with pytest.raises(TetherError, match=r"type 'beit'.*Image models it loads: vit, deit, dinov2"):
        load(tmp_path)
