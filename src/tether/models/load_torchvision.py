"""Load image models of torchvision: by name, with the weights torchvision publishes, or from a folder of ours."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.convnext import ConvNeXt
from torchvision.models.resnet import ResNet
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2, SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from tether._files import read_json, sha256_file
from tether.errors import TetherError, near_misses
from tether.models.activation import describe_activation
from tether.models.backbone import ImageSpec, channels
from tether.models.model import Model
from tether.models.size_limit import SizeLimit
from tether.models.weights import put_weights, read_weights

HEADS = {VisionTransformer: "heads", SwinTransformer: "head", ConvNeXt: "classifier.2", ResNet: "fc"}
"""The classifier of each family, which is taken off."""
WEIGHTS = "model.safetensors"
KEY = "torchvision"
"""What config.json of a folder holds our description under: torchvision has no folders of its own."""


def load_name(name: str, source: str, pretrained: bool = True) -> Model:
    """The model `ARCHITECTURE`, `ARCHITECTURE/WEIGHTS` (a name such as IMAGENET1K_V1) or `ARCHITECTURE/x.safetensors`.

    Published weights exist only as .pth files. They are read without running anything from them (tensors only), and
    only if they have the hash that torchvision's address of them holds.

    Raises:
        TetherError: torchvision has no such model or weights, or they are not at hand.
    """
    architecture, _, chosen = name.partition("/")
    _check_name(architecture)
    entries = get_model_weights(architecture)
    names = [entry.name for entry in entries]
    file = Path(chosen) if chosen.endswith(".safetensors") else None
    if file is None and chosen and chosen not in names:
        raise TetherError(
            f"torchvision has no weights {chosen!r} of {architecture}{near_misses(chosen, names)}"
        )
    entry = entries[chosen] if chosen and file is None else entries.DEFAULT
    if chosen and not pretrained:
        raise TetherError(f"{source} names weights, which contradicts pretrained=False.")
    image = _image_spec(entry)
    module = _build(architecture, image, len(entry.meta["categories"]))
    if file is not None:
        put_weights(module, read_weights(file), str(file))
    elif pretrained:
        put_weights(module, _published(entry, source), entry.url)
    _take_head_off(module)
    return _wrap(module, architecture, image, source)


def load_folder(folder: Path, source: str) -> Model:
    """The model of a folder that `Model.save` wrote of a torchvision model.

    Raises:
        TetherError: something is missing, cut short, or does not fit the rest.
    """
    file = folder / "config.json"
    config = read_json(file)[KEY]
    try:
        architecture, image = config["architecture"], dict(config["image"])
        for name in ("size", "before_crop"):
            image[name] = tuple(image[name]) if isinstance(image[name], list) else image[name]
        image["mean"] = channels(image["mean"], f"The mean in {file}")
        image["std"] = channels(image["std"], f"The standard deviation in {file}", positive=True)
        image = ImageSpec(**image)
    except (KeyError, TypeError, ValueError) as error:
        raise TetherError(f"{file} does not describe a torchvision model: {error}") from error
    _check_name(architecture)
    state = read_weights(folder / WEIGHTS)
    with SizeLimit([folder / WEIGHTS]):
        module = _build(architecture, image, 1)
    _take_head_off(module)
    put_weights(module, state, str(folder / WEIGHTS))
    return _wrap(module, architecture, image, source)


def _check_name(architecture: str) -> None:
    names = list_models(torchvision.models)
    if architecture not in names:
        raise TetherError(f"torchvision has no model {architecture!r}{near_misses(str(architecture), names)}")


def _build(architecture: str, image: ImageSpec, classes: int) -> nn.Module:
    options = {"image_size": image.height} if architecture.startswith("vit") else {}
    module = get_model(architecture, weights=None, num_classes=classes, **options)
    if not isinstance(module, tuple(HEADS)):
        raise TetherError(
            f"tether knows no features of torchvision's {architecture}; it takes its ViT, Swin, ConvNeXt and ResNet "
            f"models. timm has most others."
        )
    return module


def _published(entry: Any, source: str) -> dict[str, Tensor]:
    file = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if file.is_file() and not sha256_file(file).startswith(file.stem.rpartition("-")[2]):
        raise TetherError(
            f"{file} has another hash than its name says. Delete it, so that it is downloaded again."
        )
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, URLError, RuntimeError) as error:
        raise TetherError(
            f"The weights of {source} are not in torch's cache and could not be downloaded from {entry.url} "
            f"({error}). Run it once where there is a network, or name a file: ARCHITECTURE/FILE.safetensors."
        ) from error


def _take_head_off(module: nn.Module) -> None:
    path, _, name = classifier_of(module).rpartition(".")
    setattr(module.get_submodule(path), name, nn.Identity())


def classifier_of(module: nn.Module) -> str:
    """Path of the classifier, which is an identity in what is loaded."""
    return next(path for kind, path in HEADS.items() if isinstance(module, kind))


def _wrap(module: nn.Module, architecture: str, image: ImageSpec, source: str) -> Model:
    def describe(folder: Path) -> None:
        config = {KEY: {"architecture": architecture, "image": asdict(image)}}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    if isinstance(module, VisionTransformer):
        dim, maps, strides = module.hidden_dim, _patch_map, (module.patch_size,)
    elif isinstance(module, ResNet):
        dim, maps, strides = _out(module.layer4), _resnet_maps, (4, 8, 16, 32)
    else:
        last = module.norm.weight if isinstance(module, SwinTransformer) else module.classifier[0].weight
        patch = module.features[0][0].stride[0]
        stages = sum(1 for _ in _stages(module))
        dim, maps = last.shape[0], _stage_maps
        strides = tuple(patch * 2**stage for stage in range(stages))
    return Model(
        module=module.eval(),
        source=source,
        family="torchvision",
        image=image,
        dim=dim,
        activation=describe_activation(image=module),
        image_features=_features,
        image_maps=maps,
        strides=strides,
        describe=describe,
    )


def _out(layer: nn.Module) -> int:
    return [part for part in layer.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


def _features(module: nn.Module, pixels: Tensor) -> Tensor:
    return module(pixels)


def _stages(module: nn.Module) -> list[int]:
    """Which parts of `features` are stages: not the patch embedding and not what halves the map between stages."""
    between = (PatchMerging, PatchMergingV2)
    parts = list(module.features)[1:]
    halves = [isinstance(part, between) or isinstance(part[-1], nn.Conv2d) for part in parts]
    return [number for number, halving in enumerate(halves, start=1) if not halving]


def _stage_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    stages, maps, x = _stages(module), [], pixels
    for number, part in enumerate(module.features):
        x = part(x)
        if number in stages:
            maps.append(x.movedim(-1, 1) if isinstance(module, SwinTransformer) else x)
    return maps


def _resnet_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    x = module.maxpool(module.relu(module.bn1(module.conv1(pixels))))
    maps = []
    for layer in (module.layer1, module.layer2, module.layer3, module.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def _patch_map(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    x = module._process_input(pixels)
    x = torch.cat((module.class_token.expand(len(x), -1, -1), x), dim=1)
    rows = pixels.shape[-2] // module.patch_size
    return [module.encoder(x)[:, 1:].transpose(1, 2).unflatten(2, (rows, -1))]


def _image_spec(entry: Any) -> ImageSpec:
    """How pictures are prepared for these weights."""
    prepare = entry.transforms()
    (size,), (scaled,) = prepare.crop_size, prepare.resize_size
    return ImageSpec(
        size=size,
        mean=tuple(prepare.mean),
        std=tuple(prepare.std),
        interpolation=prepare.interpolation.value,
        before_crop=scaled,
    )
