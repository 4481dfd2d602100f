"""Load image models of timm: by name, with the weights timm publishes on the hub, or from a folder of that layout."""

import json
import math
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from tether._files import read_json
from tether.errors import TetherError, near_misses
from tether.models.activation import describe_activation
from tether.models.backbone import ImageSpec, channels
from tether.models.hub import fetch
from tether.models.model import Model
from tether.models.size_limit import SizeLimit
from tether.models.weights import complain, read_weights

WEIGHTS = "model.safetensors"
SIZES = {"center": "shortest", "squash": "squash"}
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
OF_TIMM = (
    "pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir scriptable exportable no_jit "
    "features_only device dtype pretrained_model_args"
).split()
"""Arguments of timm's factory, some of which read other files: no description of a model may give them."""
LOCATIONS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


def load_name(name: str, source: str, pretrained: bool = True) -> Model:
    """The model `ARCHITECTURE` or `ARCHITECTURE.tag` of timm, with the published weights or random ones.

    Raises:
        TetherError: timm has no such model, or its weights are not at hand or not published as safetensors.
    """
    architecture = name.partition(".")[0]
    _check_name(architecture)
    tags = timm.list_pretrained(f"{architecture}.*")
    try:
        published = get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        raise TetherError(f"timm has no weights {name!r}{near_misses(name, tags)}") from error
    config = {"pretrained_cfg": {field.name: getattr(published, field.name) for field in fields(published)}}
    if not pretrained:
        return _assemble(architecture, config, None, source)
    if not published.hf_hub_id:
        raise TetherError(
            f"timm publishes no weights of {name} as safetensors, and pickled ones are never loaded. Published are: "
            f"{', '.join(tags) or 'none'}. Name one of them, or ask for random weights by pretrained=False."
        )
    named = published.hf_hub_filename
    file = f"{named.rsplit('.', 1)[0]}.safetensors" if named else WEIGHTS
    return _assemble(architecture, config, fetch(published.hf_hub_id, (file,)) / file, source)


def load_folder(folder: Path, source: str) -> Model:
    """The model of a folder with timm's config.json and model.safetensors.

    Raises:
        TetherError: something is missing, cut short, or does not fit the rest.
    """
    config = read_json(folder / "config.json")
    _check_name(config["architecture"])
    if not (folder / WEIGHTS).is_file():
        raise TetherError(f"{folder} has no {WEIGHTS}. Pickled weights are never loaded.")
    return _assemble(config["architecture"], config, folder / WEIGHTS, source)


def _check_name(architecture: str) -> None:
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise TetherError(
            f"timm has no model {architecture!r}{near_misses(str(architecture), timm.list_models())}"
        )


def _assemble(architecture: str, config: dict[str, Any], file: Path | None, source: str) -> Model:
    """The model without its classifier; without a weights file its weights are random."""
    described = config.get("pretrained_cfg", config)  # in old folders all is on one level
    for name, value in (("pretrained_cfg", described), ("model_args", config.get("model_args") or {})):
        if not isinstance(value, dict):
            raise TetherError(f"{name} of {source} should hold settings by name, found {value!r:.80}.")
    known = {field.name for field in fields(PretrainedCfg)}.difference(LOCATIONS)
    described = {key: value for key, value in described.items() if key in known and value is not None}
    described["num_classes"] = config.get("num_classes", described.get("num_classes", 1000))
    arguments = dict(config.get("model_args") or {})
    arguments.pop("num_classes", None)
    if forbidden := sorted(arguments.keys() & set(OF_TIMM)):
        raise TetherError(
            f"{source} asks timm for {', '.join(forbidden)}, which no description of a model may set."
        )
    module = _build(architecture, described, arguments, file, source)
    module.pretrained_cfg = described
    module.reset_classifier(0)
    image = _image_spec(module, source)
    maps, strides = maps_of(module)

    def describe(folder: Path) -> None:
        new = {
            "architecture": architecture,
            "num_classes": 0,
            "model_args": arguments,
            "pretrained_cfg": described | {"num_classes": 0},
        }
        (folder / "config.json").write_text(json.dumps(new, indent=2), encoding="utf-8")

    return Model(
        module=module.eval(),
        source=source,
        family="timm",
        image=image,
        dim=_width(module, source),
        activation=describe_activation(image=module),
        image_features=_features,
        image_maps=maps,
        strides=strides,
        describe=describe,
    )


def _build(
    architecture: str,
    described: dict[str, Any],
    arguments: dict[str, Any],
    file: Path | None,
    source: str,
) -> nn.Module:
    options = {"pretrained": file is not None, "pretrained_cfg": described | {"architecture": architecture}}
    if file is not None:  # timm renames what old files call otherwise
        options["pretrained_cfg"] |= {"state_dict": read_weights(file)}
    try:
        with nullcontext() if file is None else SizeLimit([file]):
            module = timm.create_model(
                architecture, num_classes=described["num_classes"], **options, **arguments
            )
    except Exception as error:  # timm does not look at what it is given
        raise TetherError(f"timm cannot build the model that {source} describes: {error}") from error
    values = module.state_dict().items()
    complain(source, infinite=[name for name, tensor in values if not bool(tensor.isfinite().all())])
    return module


def _features(module: nn.Module, pixels: Tensor) -> Tensor:
    return module(pixels)


def _width(module: nn.Module, source: str) -> int:
    """Width of the features, which have to be one vector per picture."""
    if getattr(module, "global_pool", "avg") == "":
        raise TetherError(f"{source} pools nothing (global_pool is empty), so it has no feature per picture.")
    return getattr(module, "head_hidden_size", module.num_features)


def maps_of(module: nn.Module) -> tuple[Any, tuple[int, ...]]:
    """How to get feature maps, and their strides: of every stage, or of the last block where all have one stride."""
    if not hasattr(module, "forward_intermediates") or not isinstance(
        getattr(module, "feature_info", None), list
    ):
        return None, ()
    strides = tuple(int(info["reduction"]) for info in module.feature_info)
    return (_last_map, strides[-1:]) if len(set(strides)) < len(strides) else (_stage_maps, strides)


def _stage_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    return list(module.forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True))


def _last_map(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    maps = module.forward_intermediates(
        pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    return list(maps)


def _image_spec(module: nn.Module, source: str) -> ImageSpec:
    """How pictures are prepared, from what timm knows of the weights."""
    try:
        data = resolve_model_data_config(module)
        depth, height, width = data["input_size"]
        scaled = math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])
    except (TypeError, ValueError, ArithmeticError) as error:
        raise TetherError(
            f"{source} does not say how pictures are prepared: input_size and crop_pct do not fit ({error})."
        ) from error
    embed = getattr(module, "patch_embed", None)
    fixed = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    if fixed is not None and tuple(fixed) != (height, width):
        raise TetherError(
            f"{source} contradicts itself: pictures are prepared with {height} × {width} pixels, the model takes "
            f"{fixed[0]} × {fixed[1]}."
        )
    if depth != 3 or data["crop_mode"] not in SIZES or data["interpolation"] not in INTERPOLATIONS:
        raise TetherError(
            f"{source} prepares pictures of {depth} channels with crop_mode={data['crop_mode']!r} and "
            f"interpolation={data['interpolation']!r}; supported are 3 channels, {', '.join(SIZES)}, and "
            f"{', '.join(INTERPOLATIONS)}."
        )
    return ImageSpec(
        size=(height, width),
        mean=channels(data["mean"], f"The mean of {source}"),
        std=channels(data["std"], f"The standard deviation of {source}", positive=True),
        interpolation=data["interpolation"],
        resize=SIZES[data["crop_mode"]],
        before_crop=scaled,
    )
