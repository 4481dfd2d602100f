"""Load image models without texts from folders that transformers saved: ViT, DeiT, DINOv2, Swin and ConvNeXt."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor

from tether.errors import TetherError
from tether.models.activation import describe_activation
from tether.models.backbone import ImageSpec, channels
from tether.models.model import Model
from tether.models.saving import copy_description
from tether.models.sites_transformers import pair
from tether.models.transformers_folder import RESAMPLE, read_config, read_module

HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.", "pooler.", "decoder.")
"""What checkpoints hold beside the model itself; ViT's pooler belongs to a head of its own."""


def load_folder(folder: Path, source: str) -> Model:
    """The model of a folder with config.json, model.safetensors and a preprocessor configuration, saved as the bare
    model or with a classifier, which is left out.

    Raises:
        TetherError: something is missing, cut short, or does not fit the rest.
    """
    config = read_config(folder, source)
    kind = config.model_type
    options = {"add_pooling_layer": False} if kind in ("vit", "deit") else {}
    module = read_module(folder, config, source, ignored=lambda name: name.startswith(HEADS), **options)
    image = _image_spec(folder, config, source)
    features, maps, dim, strides = _READING[kind](config)
    return Model(
        module=module.eval(),
        source=source,
        family="transformers",
        image=image,
        dim=dim,
        activation=describe_activation(image=module),
        image_features=features,
        image_maps=maps,
        strides=strides,
        describe=partial(copy_description, folder),
    )


Reading = tuple[
    Callable[[nn.Module, Tensor], Tensor],
    Callable[[nn.Module, Tensor], list[Tensor]],
    int,
    tuple[int, ...],
]
"""Features, feature maps, width of the features, strides of the maps."""


def _plain(config: Any, prefix: int) -> Reading:
    """A plain ViT: its class token behind the final norm, as its classifiers read it."""
    return _class_token, partial(_patch_map, prefix=prefix), config.hidden_size, (config.patch_size,)


def _dino(config: Any, prefix: int) -> Reading:
    """DINOv2: the class token beside the mean of the patches, as its classifier reads them."""
    features = partial(_class_and_mean, prefix=prefix)
    return features, partial(_patch_map, prefix=prefix), 2 * config.hidden_size, (config.patch_size,)


def _swin(config: Any) -> Reading:
    strides = tuple(config.patch_size * 2**stage for stage in range(len(config.depths)))
    return _pooled, _swin_maps, config.hidden_size, strides


def _convnext(config: Any) -> Reading:
    strides = tuple(config.patch_size * 2**stage for stage in range(len(config.depths)))
    return _pooled, _convnext_maps, config.hidden_sizes[-1], strides


_READING: dict[str, Callable[[Any], Reading]] = {
    "vit": partial(_plain, prefix=1),
    "deit": partial(_plain, prefix=2),
    "dinov2": partial(_dino, prefix=1),
    "dinov2_with_registers": lambda config: _dino(config, prefix=1 + config.num_register_tokens),
    "swin": _swin,
    "swinv2": _swin,
    "convnext": _convnext,
    "convnextv2": _convnext,
}
KINDS = tuple(_READING)
ONE_SIZE = ("vit", "deit")
"""Kinds that take pictures of the configuration's size only; others take any that their patches fit into."""


def _class_token(module: nn.Module, pixels: Tensor) -> Tensor:
    return module(pixel_values=pixels).last_hidden_state[:, 0]


def _class_and_mean(module: nn.Module, pixels: Tensor, prefix: int) -> Tensor:
    tokens = module(pixel_values=pixels).last_hidden_state
    return torch.cat((tokens[:, 0], tokens[:, prefix:].mean(dim=1)), dim=1)


def _pooled(module: nn.Module, pixels: Tensor) -> Tensor:
    return module(pixel_values=pixels).pooler_output


def _patch_map(module: nn.Module, pixels: Tensor, prefix: int) -> list[Tensor]:
    tokens = module(pixel_values=pixels).last_hidden_state[:, prefix:]
    return [tokens.transpose(1, 2).unflatten(2, (pixels.shape[-2] // module.config.patch_size, -1))]


def _swin_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """What each stage gives before its patches are merged."""
    embedded, grid = module.embeddings(pixels)
    options = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    return list(module.encoder(embedded, grid, **options).reshaped_hidden_states[1:])


def _convnext_maps(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    return list(module(pixel_values=pixels, output_hidden_states=True).hidden_states[1:])


def _image_spec(folder: Path, config: Any, source: str) -> ImageSpec:
    """How pictures are prepared, by the image processor that was saved beside the model."""
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # missing files, missing packages, broken JSON: of several libraries
        raise TetherError(
            f"The image processor of {source} could not be loaded, so nothing says how its pictures are resized and "
            f"normalised: {error}. Save the processor beside the model."
        ) from error
    steps = {step: getattr(processor, step, True) for step in ("do_resize", "do_rescale", "do_normalize")}
    resample = getattr(processor, "resample", 3)
    if resample not in RESAMPLE or not all(steps.values()):
        raise TetherError(
            f"{source} prepares pictures in a way that is not supported: resample={resample}, "
            f"{', '.join(f'{step}={value}' for step, value in steps.items())}"
        )
    size, scaled, resize = _sizes(processor, source)
    patch, own = pair(config.patch_size), pair(config.image_size)
    if config.model_type in ONE_SIZE and size != own:
        raise TetherError(
            f"{source} contradicts itself: pictures are prepared with {size[0]} × {size[1]} pixels, the model takes "
            f"{own[0]} × {own[1]}."
        )
    if any(side % step for side, step in zip(size, patch, strict=True)):
        raise TetherError(
            f"{source} prepares pictures of {size[0]} × {size[1]} pixels, which patches of {patch[0]} × {patch[1]} do "
            f"not fit into."
        )
    return ImageSpec(
        size=size,
        mean=channels(processor.image_mean, f"image_mean of {source}"),
        std=channels(processor.image_std, f"image_std of {source}", positive=True),
        interpolation=RESAMPLE[resample],
        resize=resize,
        before_crop=scaled,
    )


def _sizes(processor: Any, source: str) -> tuple[tuple[int, int], tuple[int, int], str]:
    """The size pictures end up with, the size they are scaled to first, and how."""
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    edge, share = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
    if size.keys() == {"height", "width"}:
        scaled, resize = (size["height"], size["width"]), "squash"
    elif size.keys() == {"shortest_edge"} and share is not None:  # ConvNeXt's: a crop for small pictures only
        if edge >= 384:
            return (edge, edge), (edge, edge), "squash"
        return (edge, edge), pair(int(edge / share)), "shortest"
    elif size.keys() == {"shortest_edge"} and crop:
        scaled, resize = (edge, edge), "shortest"
    else:
        raise TetherError(
            f"{source} prepares pictures in a way that is not supported (size={size}, crop_size={crop}): supported are "
            f"a shortest edge with a centre crop, and a height and a width."
        )
    return ((crop["height"], crop["width"]) if crop else scaled), scaled, resize
