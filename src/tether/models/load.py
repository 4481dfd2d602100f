"""One door for every source of models."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tether._files import read_json
from tether.errors import TetherError
from tether.models.activation import Activation
from tether.models.hub import DESCRIPTIONS, fetch
from tether.models.model import Model

NAMED = {"timm": "tether.models.load_timm", "torchvision": "tether.models.load_torchvision"}
"""Libraries whose image models are loaded by name, and the modules of ours that do it."""


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    activation: str | None = None,
    pretrained: bool = True,
) -> Model:
    """Load a contrastive vision-language model, or an image model without texts, in evaluation mode.

        load("builtin")                                   # the small model that comes with tether
        load("path/to/folder")                            # saved by open_clip, transformers, timm or tether
        load("hf:openai/clip-vit-large-patch14")          # hub id: local cache first, then download
        load("open_clip:ViT-B-16/openai")                 # open_clip architecture and tag
        load("open_clip:ViT-B-16/weights.safetensors", activation="gelu")
        load("hf:facebook/dinov2-base")                   # ViT, DeiT, DINOv2, Swin, ConvNeXt: no texts
        load("timm:swin_tiny_patch4_window7_224")         # timm's name, with or without a tag
        load("torchvision:swin_t")                        # or torchvision:ARCHITECTURE/WEIGHTS

    Activation, image size and tokenizer are taken from what comes with the weights and checked against each
    other and against the weights. Only safetensors are read; code that comes with a model is never run.

    Args:
        source: see above.
        device: where the weights go.
        dtype: of the weights.
        activation: what weights that do not say it were trained with: "gelu" or "quick_gelu".
        pretrained: False leaves the weights of a "timm:" or "torchvision:" model random, as after
            `torch.manual_seed`.

    Raises:
        TetherError: the source is unknown or not at hand, or its parts do not fit each other.
    """
    if activation not in (None, "gelu", "quick_gelu"):
        raise TetherError(f"activation is 'gelu' or 'quick_gelu', not {activation!r}.")
    model = _load(str(source), activation, pretrained)
    model.module.to(device=device, dtype=dtype)
    return model


def absolute(source: str) -> str:
    """The source as it is found from any folder: a path in it is made absolute, a name stays as it is."""
    path = _path_in(source)
    return source.removesuffix(path) + os.path.abspath(path) if path and Path(path).exists() else source


def is_here(source: str) -> bool:
    """Whether the folder or file that a source names exists; a name (built-in, of a hub, a tag) is always here."""
    path = _path_in(source)
    return path is None or Path(path).exists()


def _path_in(source: str) -> str | None:
    """The path in a source; None where it is a name."""
    kind, colon, name = source.partition(":")
    if colon and kind in ("open_clip", "torchvision"):
        weights = name.partition("/")[2]
        return weights if weights.endswith(".safetensors") else None
    return None if source == "builtin" or (colon and kind in ("hf", "timm")) else source


def _load(source: str, activation: Activation | None, pretrained: bool) -> Model:
    kind, colon, name = source.partition(":")
    if colon and kind in NAMED:
        _refuse_activation(source, activation)
        return import_module(NAMED[kind]).load_name(name, source, pretrained)
    if not pretrained:
        raise TetherError(f"pretrained=False is for timm:NAME and torchvision:NAME, not for {source!r}.")
    if source == "builtin":
        from tether.models import builtin

        return _load_folder(builtin.folder(), source, activation)
    if colon and kind == "open_clip":
        from tether.models.load_open_clip import load_architecture

        return load_architecture(name, source, activation)
    if colon and kind == "hf":
        folder = fetch(name, DESCRIPTIONS)
        ours = (folder / "open_clip_config.json").is_file()
        fetch(name, ("open_clip_*.safetensors",) if ours else ("model.safetensors", "model-*.safetensors"))
        return _load_folder(folder, source, activation)
    if Path(source).is_dir():
        return _load_folder(Path(source), source, activation)
    raise TetherError(
        f"There is no folder {source!r}. A source is a folder, 'builtin', 'hf:org/name', "
        f"'open_clip:ARCHITECTURE/tag', 'timm:NAME' or 'torchvision:NAME'."
    )


def _refuse_activation(source: str, activation: Activation | None) -> None:
    if activation is not None:
        raise TetherError(f"{source} says its activation itself; leave out activation={activation!r}.")


def _image_loader(described: dict[str, Any]) -> str | None:
    """The module that loads what a config.json describes, where that is an image model without texts."""
    if "torchvision" in described:
        return NAMED["torchvision"]
    if "architecture" in described:
        return NAMED["timm"]
    from tether.models.load_transformers_image import KINDS

    return "tether.models.load_transformers_image" if described.get("model_type") in KINDS else None


def _load_folder(folder: Path, source: str, activation: Activation | None) -> Model:
    if (folder / "open_clip_config.json").is_file():
        from tether.models import hybrid  # noqa: F401  (makes the built-in model's image tower known to timm)
        from tether.models.load_open_clip import load_folder

        return load_folder(folder, source, activation)
    if (folder / "config.json").is_file():
        described = read_json(folder / "config.json")
        loader = _image_loader(described) if isinstance(described, dict) else None
        if loader is not None:
            _refuse_activation(source, activation)
            return import_module(loader).load_folder(folder, source)
        from tether.models.load_transformers import load_folder

        return load_folder(folder, source, activation)
    raise TetherError(
        f"{folder} has neither an open_clip_config.json nor a config.json, so it holds no model of open_clip, "
        f"transformers, timm or torchvision."
    )
