"""Load CLIP, SigLIP and SigLIP 2 from folders that transformers saved."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Siglip2Model

from tether._files import read_json
from tether.errors import TetherError, near_misses
from tether.models.activation import Activation, describe_activation
from tether.models.load_transformers_image import KINDS as IMAGE_KINDS
from tether.models.model import ImageSpec, Model, channels
from tether.models.saving import copy_description
from tether.models.text import end_positions, truncate
from tether.models.tokenizers import check_tokenizer, words_of
from tether.models.transformers_folder import RESAMPLE, read_config, read_module

KINDS = ("clip", "siglip", "siglip2")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)
POSITIONS = ".embeddings.position_ids"  # 0, 1, 2, …; a buffer that old files contain
ARGMAX_END = 2  # a CLIP with this eos_token_id pools at the largest id, see transformers' CLIPTextModel


def load_folder(folder: Path, source: str, activation: Activation | None = None) -> Model:
    """The model of a folder with config.json, model.safetensors, a tokenizer and a preprocessor
    configuration.

    Raises:
        TetherError: something is missing, cut short, of another kind of model, or does not fit the rest.
    """
    described = read_json(folder / "config.json", dict)
    kind = described.get("model_type")
    if kind is None and "architecture" in described:
        raise TetherError(
            f"{source} holds the image model {described['architecture']!r} of timm, without a text tower. tether.load "
            f"takes image and text together: open_clip's and transformers' CLIP, SigLIP and SigLIP 2. To train "
            f"an image model alone, make it with timm.create_model and give it to tether.attach."
        )
    if kind not in KINDS:
        raise TetherError(
            f"{source} holds a transformers model of type {kind!r}, which is not a contrastive model tether "
            f"loads{near_misses(str(kind), KINDS)} Image models it loads: {', '.join(IMAGE_KINDS)}."
        )
    config = read_config(folder, source)
    module = read_module(folder, config, source, ignored=lambda name: name.endswith(POSITIONS))
    found = describe_activation(image=module.vision_model, text=module.text_model)
    if activation is not None and activation != found:
        raise TetherError(
            f"The configuration of {source} says {found}, which contradicts activation={activation!r}."
        )
    text = module.config.text_config
    tokenizer = _tokenizer(folder, text.max_position_embeddings, source)
    end = _end_id(module)
    check_tokenizer(
        tokenizer,
        words=words_of(tokenizer.tokenizer),
        rows=module.text_model.embeddings.token_embedding.num_embeddings,
        context_length=text.max_position_embeddings,
        ends=partial(end_positions, end_id=end) if kind == "clip" else None,
        source=source,
    )
    return Model(
        module=module.eval(),
        source=source,
        family="transformers",
        image=_image_spec(folder, module, source),
        dim=module.config.projection_dim if kind == "clip" else module.config.vision_config.hidden_size,
        context_length=text.max_position_embeddings,
        activation=found,
        tokenizer=tokenizer,
        image_features=_patch_features if kind == "siglip2" else _image_features,
        image_maps=_MAPS.get(kind),
        strides=(module.config.vision_config.patch_size,) if kind in _MAPS else (),
        text_features=_clip_text_features if kind == "clip" else _text_features,
        describe=partial(copy_description, folder),
    )


@dataclass(frozen=True)
class _Tokenizer:
    """A Hugging Face tokenizer that pads and cuts off to one length, as contrastive models are trained."""

    tokenizer: Any
    context_length: int

    def __call__(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return rows["input_ids"]


def _tokenizer(folder: Path, context_length: int, source: str) -> _Tokenizer:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise TetherError(
            f"{source} has no tokenizer: none of {', '.join(TOKENIZERS)} is in {folder}. Save the one that the "
            f"model was trained with beside it: "
            f"transformers.AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained({str(folder)!r})."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _Tokenizer(tokenizer, context_length)
    except Exception as error:  # missing files, missing packages, broken JSON: of several libraries
        raise TetherError(f"The tokenizer of {source} could not be loaded: {error}") from error


def _image_spec(folder: Path, module: nn.Module, source: str) -> ImageSpec:
    settings = _preprocessor(folder, source)
    vision = module.config.vision_config
    if isinstance(
        module, Siglip2Model
    ):  # made for any grid of patches; we give it the square one it was trained on
        size = vision.patch_size * math.isqrt(vision.num_patches)
        if settings.get("patch_size", vision.patch_size) != vision.patch_size:
            raise TetherError(
                f"{source} contradicts itself: its patches are {vision.patch_size} pixels wide."
            )
        resize = "squash"
    else:
        size = vision.image_size
        stated, resize = _stated_size(settings, source)
        if stated != size:
            raise TetherError(
                f"{source} contradicts itself: pictures are prepared with {stated} pixels, the image tower "
                f"takes {size}."
            )
    resample = settings.get("resample", 3)
    if (
        not isinstance(resample, int)
        or resample not in RESAMPLE
        or not all(settings.get(key, True) for key in ("do_resize", "do_normalize", "do_rescale"))
    ):
        raise TetherError(
            f"{source} prepares pictures in a way that is not supported: resample={resample}, "
            + ", ".join(
                f"{key}={settings.get(key, True)}" for key in ("do_resize", "do_rescale", "do_normalize")
            )
        )
    mean = channels(settings.get("image_mean"), f"image_mean of {source}")
    std = channels(settings.get("image_std"), f"image_std of {source}", positive=True)
    return ImageSpec(size=size, mean=mean, std=std, interpolation=RESAMPLE[resample], resize=resize)


def _preprocessor(folder: Path, source: str) -> dict[str, Any]:
    """How pictures are prepared: in a file of its own, or inside the processor's."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json", dict)
    if (folder / "processor_config.json").is_file():
        inner = read_json(folder / "processor_config.json", dict).get("image_processor")
        if isinstance(inner, dict):
            return inner
    raise TetherError(
        f"{source} has no preprocessor_config.json, so nothing says how its pictures are resized and "
        f"normalised. Save the processor beside the model."
    )


def _stated_size(settings: dict[str, Any], source: str) -> tuple[int, str]:
    """The size pictures end up with and how they are brought to it."""
    size, crop = settings.get("size"), settings.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    if shortest is not None:
        cropped = crop.get("height") if isinstance(crop, dict) else crop
        if settings.get("do_center_crop", True) and cropped == shortest:
            return shortest, "shortest"
    elif (
        isinstance(size, dict)
        and size.get("height") == size.get("width")
        and not settings.get("do_center_crop")
    ):
        return size.get("height"), "squash"
    raise TetherError(
        f"{source} prepares pictures in a way that is not supported (size={size}, crop_size={crop}): "
        f"supported are a shortest edge with a centre crop of the same size, and a square."
    )


def _image_features(module: nn.Module, pixels: Tensor) -> Tensor:
    return module.get_image_features(pixel_values=pixels).pooler_output


def _patch_features(module: nn.Module, pixels: Tensor) -> Tensor:
    """SigLIP 2 takes flattened patches, each in the order height, width, channel."""
    side = module.config.vision_config.patch_size
    grid = pixels.shape[-1] // side
    patches = pixels.unflatten(3, (grid, side)).unflatten(2, (grid, side)).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.full((len(pixels), 2), grid, device=pixels.device)
    mask = torch.ones(len(pixels), grid * grid, dtype=torch.int32, device=pixels.device)
    features = module.get_image_features(
        pixel_values=patches.flatten(3).flatten(1, 2), pixel_attention_mask=mask, spatial_shapes=shapes
    )
    return features.pooler_output


def _patch_map(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """SigLIP's patches, which are behind the final norm."""
    tokens = module.vision_model(pixel_values=pixels).last_hidden_state
    rows = pixels.shape[-2] // module.config.vision_config.patch_size
    return [tokens.transpose(1, 2).unflatten(2, (rows, -1))]


def _patch_map_of_clip(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """CLIP's patches, without the class token in front and through the final norm, which it applies to that alone."""
    tokens = module.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    rows = pixels.shape[-2] // module.config.vision_config.patch_size
    return [module.vision_model.post_layernorm(tokens).transpose(1, 2).unflatten(2, (rows, -1))]


_MAPS = {"clip": _patch_map_of_clip, "siglip": _patch_map}
"""By kind; SigLIP 2 takes flattened patches of any grid and gives none."""


def _end_id(module: nn.Module) -> int | None:
    end = module.config.text_config.eos_token_id
    return None if end == ARGMAX_END else end


def _clip_text_features(module: nn.Module, tokens: Tensor, multiple: int) -> Tensor:
    """CLIP's text tower is causal and pools at the end of the text; what follows the last end is cut off."""
    shorter = truncate(tokens, end_positions(tokens, _end_id(module)), multiple)
    return _text_features(module, shorter, multiple)


def _text_features(module: nn.Module, tokens: Tensor, multiple: int) -> Tensor:
    tokens = tokens.to(module.device, non_blocking=True)
    return module.get_text_features(input_ids=tokens).pooler_output
