import pytest
import torch

from tether.errors import TetherError
from tether.models import ImageSpec, load
from tether.models.backbone import Backbone

NORMAL = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_a_square_is_one_number() -> None:
    square, wide = ImageSpec(size=(32, 32), **NORMAL), ImageSpec(size=(32, 64), **NORMAL)
    assert square == ImageSpec(size=32, **NORMAL)
    assert (square.size, square.height, square.width, square.scaled) == (32, 32, 32, (32, 32))
    assert (wide.size, wide.height, wide.width, wide.scaled) == ((32, 64), 32, 64, (32, 64))


def test_what_is_cropped_off_is_said_only_where_something_is() -> None:
    whole, cropped = (
        ImageSpec(size=32, before_crop=32, **NORMAL),
        ImageSpec(size=32, before_crop=(36, 36), **NORMAL),
    )
    assert whole == ImageSpec(size=32, **NORMAL)
    assert cropped.scaled == (36, 36)
    assert (
        "before_crop" not in whole.described()
    )  # as it was before there was such a field: fingerprints stay
    assert cropped.described()["before_crop"] == 36


@pytest.mark.parametrize("kind", ["open_clip", "timm tower", "no projection", "clip", "siglip", "siglip2"])
def test_the_width_of_a_dual_encoders_features(kind: str, save_open_clip, save_transformers) -> None:
    if kind == "open_clip":
        folder = save_open_clip()[0]
    elif kind == "timm tower":
        vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}
        folder = save_open_clip({"size": 160}, custom_text=True, vision_cfg=vision)[0]
    elif kind == "no projection":
        vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"}
        folder = save_open_clip({"size": 160}, custom_text=True, vision_cfg=vision)[0]
    else:
        folder = save_transformers(kind)[0]
    model = load(folder)
    assert isinstance(model, Backbone)
    assert model.has_text
    pixels = torch.randn(2, 3, model.image.height, model.image.width)
    with torch.no_grad():
        features = model.features(pixels)
        assert features.shape == (2, model.dim)
        assert torch.equal(model.encode_image(pixels), torch.nn.functional.normalize(features, dim=-1))
    if kind == "siglip2":
        with pytest.raises(TetherError, match="gives no feature maps"):
            model.feature_maps(pixels)
        return
    with torch.no_grad():
        maps = model.feature_maps(pixels)
        assert not torch.allclose(maps[0][0], maps[0][1], atol=1e-3)
    assert [(len(one), model.image.height // one.shape[2]) for one in maps] == [(2, s) for s in model.strides]


def test_the_built_in_models_map_is_what_its_features_are_pooled_of() -> None:
    model = load("builtin")
    pixels = torch.randn(2, 3, model.image.height, model.image.width)
    with torch.no_grad():
        (one,) = model.feature_maps(pixels)
        visual = model.module.visual
        features = visual.head(visual.trunk.forward_head(one.flatten(2).transpose(1, 2)))
        assert torch.allclose(features, model.features(pixels), atol=1e-4)


@pytest.mark.parametrize("size", [0, (32, -1), (32,), "32", (1.5, 2)])
def test_a_size_that_is_none_is_refused(size: object, unchecked: None) -> None:
    with pytest.raises(TetherError, match=r"number of pixels, or \(height, width\), greater than 0; found"):
        ImageSpec(size=size, **NORMAL)
