import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ConvNeXt, ResNet, SwinTransformer, VisionTransformer, Weights, WeightsEnum
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from tether.errors import TetherError
from tether.models import load, sites


def vit(num_classes: int, image_size: int) -> nn.Module:
    return VisionTransformer(image_size, 8, 2, 4, 32, 64, num_classes=num_classes)


def swin(num_classes: int) -> nn.Module:
    return SwinTransformer([2, 2], 24, [1, 2], [2, 4], [4, 4], 2.0, num_classes=num_classes)


def convnext(num_classes: int) -> nn.Module:
    return ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)], num_classes=num_classes)


def resnet(num_classes: int) -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


TINY = {  # name, builder, width of the features, shapes of the maps for 32 × 32 pixels, strides
    "vit_tether": (vit, 32, [(32, 4, 4)], (8,)),
    "swin_tether": (swin, 48, [(24, 16, 16), (48, 8, 8)], (2, 4)),
    "convnext_tether": (convnext, 24, [(16, 8, 8), (24, 4, 4)], (4, 8)),
    "resnet_tether": (resnet, 512, [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)], (4, 8, 16, 32)),
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Make torchvision know a tiny model with weights at a file's address; gives the module they are of."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    models = dict(torchvision.models._api.BUILTIN_MODELS)
    monkeypatch.setattr(torchvision.models._api, "BUILTIN_MODELS", models)

    def publish(name: str) -> nn.Module:
        torch.manual_seed(0)
        options = {"image_size": 32} if name.startswith("vit") else {}
        module = TINY[name][0](num_classes=3, **options).eval()
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        file = tmp_path / "weights.pth"
        torch.save(module.state_dict(), file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        file = file.rename(tmp_path / f"weights-{digest}.pth")
        prepare = partial(
            ImageClassification, crop_size=32, resize_size=36, interpolation=InterpolationMode.BICUBIC
        )

        class Tiny_Weights(WeightsEnum):
            IMAGENET1K_V1 = Weights(file.as_uri(), prepare, {"categories": ["a", "b", "c"]})
            DEFAULT = IMAGENET1K_V1

        def builder(*, weights: Tiny_Weights | None = None, num_classes: int = 3, **options) -> nn.Module:
            return TINY[name][0](num_classes=num_classes, **options)

        builder.__module__ = "torchvision.models.tiny"
        builder.__annotations__["weights"] = Tiny_Weights | None
        models[name] = builder
        return module

    return publish


@pytest.mark.parametrize("name", TINY)
def test_names_come_with_published_weights(name: str, published, tmp_path: Path) -> None:
    module = published(name)
    _, width, shapes, strides = TINY[name]
    model = load(f"torchvision:{name}")
    assert (model.family, model.dim, model.has_text, model.strides) == ("torchvision", width, False, strides)
    assert (model.image.size, model.image.before_crop, model.image.interpolation) == (32, 36, "bicubic")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.features(pixels)
        maps = model.feature_maps(pixels)
        head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
        torch.testing.assert_close(head(features), module(pixels))
    assert [tuple(one.shape[1:]) for one in maps] == shapes
    if name != "resnet_tether":
        assert len(sites(model.module)) > 0
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.fingerprint() == model.fingerprint()
    assert (again.image, again.dim) == (model.image, model.dim)


def test_maps_are_those_that_features_are_pooled_of(published) -> None:
    published("swin_tether")
    model = load("torchvision:swin_tether")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last = model.feature_maps(pixels)[-1].movedim(1, -1)
        torch.testing.assert_close(model.module.norm(last).mean((1, 2)), model.features(pixels))


def test_weights_by_name_from_a_file_and_at_random(published, tmp_path: Path) -> None:
    module = published("swin_tether")
    named = load("torchvision:swin_tether/IMAGENET1K_V1")
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    file = f"torchvision:swin_tether/{tmp_path / 'own.safetensors'}"
    assert load(file).fingerprint() == named.fingerprint()
    torch.manual_seed(1)
    chance = load("torchvision:swin_tether", pretrained=False)
    assert chance.fingerprint() != named.fingerprint()
    assert chance.image == named.image
    with pytest.raises(TetherError, match="names weights, which contradicts pretrained=False"):
        load(file, pretrained=False)


def test_what_torchvision_does_not_have(published) -> None:
    published("swin_tether")
    with pytest.raises(TetherError, match="did you mean 'swin_tether'"):
        load("torchvision:swin_tethr")
    with pytest.raises(
        TetherError, match=r"no weights 'IMAGENET1K_V2' of swin_tether; did you mean 'IMAGENET1K_V1'"
    ):
        load("torchvision:swin_tether/IMAGENET1K_V2")
    with pytest.raises(TetherError, match="knows no features of torchvision's squeezenet1_1"):
        load("torchvision:squeezenet1_1", pretrained=False)


def test_weights_that_cannot_be_had_or_are_others(published, tmp_path: Path) -> None:
    published("swin_tether")
    (file,) = tmp_path.glob("weights-*.pth")
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(TetherError, match=r"not in torch's cache and could not be downloaded"):
        load("torchvision:swin_tether")
    file.write_bytes(content)
    load("torchvision:swin_tether")
    (cached,) = (tmp_path / "cache" / "checkpoints").iterdir()
    cached.write_bytes(content + b"more")
    with pytest.raises(TetherError, match="another hash than its name says"):
        load("torchvision:swin_tether")


def test_a_broken_folder(published, tmp_path: Path, unchecked: None) -> None:
    published("swin_tether")
    load("torchvision:swin_tether").save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(
        json.dumps({"torchvision": {"architecture": "swin_tether"}})
    )
    with pytest.raises(TetherError, match="does not describe a torchvision model"):
        load(tmp_path / "saved")
    for change in ({"size": "big"}, {"mean": [1, 2]}, {"std": [1, 0, 1]}, {"colour": 1}):
        image = config["torchvision"]["image"] | change
        described = {"torchvision": config["torchvision"] | {"image": image}}
        (tmp_path / "saved" / "config.json").write_text(json.dumps(described))
        with pytest.raises(TetherError, match="does not describe a torchvision model"):
            load(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(TetherError, match="no weights file"):
        load(tmp_path / "saved")
