"""Load open_clip models: an architecture with a tag or weights, or a folder with open_clip_config.json."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from open_clip import SimpleTokenizer, get_model_config, list_models
from open_clip.coca_model import CoCa
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict, set_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from tether._files import read_json
from tether.errors import TetherError, near_misses
from tether.models.activation import Activation, describe_activation
from tether.models.hub import DESCRIPTIONS, fetch
from tether.models.load_timm import maps_of
from tether.models.model import ImageSpec, Model, channels
from tether.models.open_clip_text import end_id, ends_matter_only, text_features, text_tower
from tether.models.saving import copy_description
from tether.models.size_limit import SizeLimit
from tether.models.text import end_positions
from tether.models.tokenizers import check_tokenizer, words_of
from tether.models.weights import put_weights, read_weights

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


def load_folder(folder: Path, source: str, activation: Activation | None = None) -> Model:
    """The model of a folder with open_clip_config.json, weights in safetensors and, if it has its own, a
    tokenizer.

    Raises:
        TetherError: something is missing, cut short, or does not fit the rest.
    """
    file = folder / "open_clip_config.json"
    described = read_json(file, dict)
    for name in ("model_cfg", "preprocess_cfg"):
        if not isinstance(described.get(name) or {}, dict):
            raise TetherError(
                f"{name} in {file} should hold settings by name, found {described[name]!r:.80}."
            )
    if not described.get("model_cfg"):
        raise TetherError(f"{file} has no model_cfg; is it cut short?")
    config, preprocess = described["model_cfg"], described.get("preprocess_cfg") or {}
    _check_towers(config, source)
    stated = config.get("quick_gelu")
    if activation is not None:
        if stated is not None and bool(stated) != (activation == "quick_gelu"):
            raise TetherError(
                f"{source} states quick_gelu={stated}, which contradicts activation={activation!r}."
            )
        config["quick_gelu"] = activation == "quick_gelu"
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".npz")
        )
        raise TetherError(
            f"{folder} has no "
            f"{WEIGHTS[0]}{f', only {others}, which are pickled and never loaded' if others else ''}."
        )
    named = config["text_cfg"].get("hf_tokenizer_name")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if not named and (folder / "tokenizer.json").is_file():
        _refuse_unused_tokenizer(folder)
    model = _assemble(config, preprocess, file, source, folder if named and own else None)

    def describe(new: Path) -> None:
        copy_description(folder, new)
        _write_config(described, new)  # with the activation, where it was given by hand

    return replace(model, describe=describe)


def _refuse_unused_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer beside the weights that is not CLIP's own, which open_clip uses if none is named."""
    described = read_json(folder / "tokenizer.json", dict).get("model")
    words = described.get("vocab") if isinstance(described, dict) else None
    clip = SimpleTokenizer().encoder
    ordinary = {word: index for word, index in clip.items() if index < len(clip) - 2}
    if not isinstance(words, dict) or len(words) != len(clip) or not ordinary.items() <= words.items():
        raise TetherError(
            f"{folder} has a tokenizer.json that its open_clip_config.json does not use: text_cfg has no "
            f"hf_tokenizer_name, so open_clip would read texts with CLIP's own tokenizer, which is another. "
            f"Add the name or remove the file."
        )


def load_architecture(name: str, source: str, activation: Activation | None = None) -> Model:
    """The model `ARCHITECTURE/tag` or `ARCHITECTURE/file.safetensors`.

    A tag says which activation its weights were trained with, and that one is used. A weights file does not:
    for an architecture that exists with both, `activation` must say it (or the architecture, by its ending
    -quickgelu).

    Raises:
        TetherError: architecture or tag is unknown, or weights, activation, size or tokenizer do not fit.
    """
    architecture, slash, weights = name.partition("/")
    config = get_model_config(architecture)
    if config is None:
        raise TetherError(
            f"open_clip has no architecture {architecture!r}{near_misses(architecture, list_models())}"
        )
    if not slash or not weights:
        tags = ", ".join(list_pretrained_tags_by_model(architecture))
        raise TetherError(
            f"Which weights? Give open_clip:{architecture}/TAG (tags: {tags}) or a .safetensors file."
        )
    preprocess: dict[str, Any] = {}
    if weights.endswith(".safetensors"):
        file = Path(weights)
        quick = _activation_of_file(architecture, source, activation)
    else:
        tag = get_pretrained_cfg(architecture, weights)
        if not tag:
            tags = list_pretrained_tags_by_model(architecture)
            raise TetherError(
                f"open_clip has no weights {weights!r} for {architecture}{near_misses(weights, tags)} (A "
                f"weights file must be .safetensors.)"
            )
        quick = tag.get("quick_gelu")
        used = "quick_gelu" if (config.get("quick_gelu") if quick is None else quick) else "gelu"
        if activation not in (None, used):
            raise TetherError(
                f"The weights {weights!r} of {architecture} were trained with {used}, which contradicts "
                f"activation={activation!r}."
            )
        preprocess = tag
        file = _download(tag, source)
    if quick is not None:
        config["quick_gelu"] = quick
    model = _assemble(config, preprocess, file, source, None)

    def describe(new: Path) -> None:
        pictures = model.image.described()
        pictures["resize_mode"] = pictures.pop("resize")
        _write_config({"model_cfg": config, "preprocess_cfg": pictures}, new)
        if not isinstance(model.tokenizer, SimpleTokenizer):  # that one comes with open_clip
            model.tokenizer.tokenizer.save_pretrained(new)

    return replace(model, describe=describe)


def _write_config(described: dict[str, Any], folder: Path) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def _activation_of_file(architecture: str, source: str, activation: Activation | None) -> bool | None:
    """Whether a weights file uses QuickGELU; None where the architecture leaves no choice."""
    twin = f"{architecture}-quickgelu"
    if architecture.endswith("-quickgelu"):
        if activation == "gelu":
            raise TetherError(
                f"{architecture} is the QuickGELU variant, which contradicts activation='gelu'."
            )
        return True
    if activation is None and twin in list_models():
        raise TetherError(
            f"A weights file does not say whether it was trained with GELU or QuickGELU, and {architecture} "
            f"exists with both. Add activation='quick_gelu' (OpenAI's weights and what was fine-tuned from "
            f"them, DFN, MetaCLIP) or activation='gelu' (LAION, DataComp) to load {source!r}."
        )
    return None if activation is None else activation == "quick_gelu"


def _download(tag: dict[str, Any], source: str) -> Path:
    repository, _, name = tag.get("hf_hub", "").rpartition("/")
    if not repository:
        raise TetherError(
            f"The weights of {source} are published only as a pickled file ({tag.get('url')}), which is "
            f"never loaded."
        )
    stem = name.rsplit(".", 1)[0]
    names = (f"{stem}.safetensors",) if name else WEIGHTS[:2]
    folder = fetch(repository, names)
    return next(folder / name for name in names if (folder / name).is_file())


def _assemble(
    config: dict[str, Any], preprocess: dict[str, Any], file: Path, source: str, tokenizer_folder: Path | None
) -> Model:
    state = read_weights(file)
    module = _build(deepcopy(config), SizeLimit([file]), source)
    state = convert_state_dict(module, state)
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # 0, 1, 2, …; old files of BERT-like towers
    for name in ("logit_scale", "logit_bias"):  # a scalar in some files, of one element in others
        own = getattr(module, name, None)
        if name in state and own is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(own.shape)
    put_weights(module, state, str(file))
    tokenizer = _tokenizer(config, tokenizer_folder, source)
    return wrap(module, preprocess, tokenizer, source)


def wrap(module: nn.Module, preprocess: dict[str, Any], tokenizer: Any, source: str) -> Model:
    """The `Model` around an open_clip module that is at hand already.

    Args:
        module: a `CLIP`, `CustomTextCLIP` or `CoCa`.
        preprocess: what is known of `open_clip.transform.PreprocessCfg`; the rest is its default.
        tokenizer: one of open_clip's.
        source: what to call it in messages.

    Raises:
        TetherError: image size or tokenizer do not fit the module.
    """
    image = _image_spec(module, preprocess, source)
    prepared = merge_preprocess_dict(PreprocessCfg(), preprocess)
    set_model_preprocess_cfg(module, prepared | {"size": module.visual.image_size})
    tower = text_tower(module)
    text = module.text if tower is None or hasattr(module, "text") else module
    ends = tower is not None and ends_matter_only(tower)
    if tower is None:  # a transformers text encoder, which takes any length up to its own
        context_length, rows = tokenizer.context_length, module.text.vocab_size
        longest = getattr(module.text.config, "max_position_embeddings", context_length)
        if not 0 < context_length <= longest:
            raise TetherError(
                f"{source} says context_length={context_length}, but its text tower takes 1 to {longest} tokens."
            )
    else:
        context_length, rows = tower.context_length, tower.token_embedding.num_embeddings
    own = isinstance(tokenizer, SimpleTokenizer)
    maps, strides = _maps_of(module.visual)
    check_tokenizer(
        tokenizer,
        words=(tokenizer.vocab_size, tokenizer.vocab_size) if own else words_of(tokenizer.tokenizer),
        rows=rows,
        context_length=context_length,
        ends=partial(end_positions, end_id=end_id(tower)) if ends else None,
        source=source,
    )
    return Model(
        module=module.eval(),
        source=source,
        family="open_clip",
        image=image,
        dim=_width(module.visual),
        context_length=context_length,
        activation=describe_activation(image=module.visual, text=text.transformer),
        tokenizer=tokenizer,
        image_features=_image_features,
        image_maps=maps,
        strides=strides,
        text_features=text_features,
    )


def _width(visual: nn.Module) -> int:
    """Width of the image features; `visual` is a tower of open_clip's own or a timm model with a projection."""
    if hasattr(visual, "output_dim"):
        return visual.output_dim
    linears = [part for part in visual.head.modules() if isinstance(part, nn.Linear)]
    return linears[-1].out_features if linears else visual.trunk.num_classes or visual.trunk.num_features


def _image_features(module: nn.Module, pixels: Tensor) -> Tensor:
    return module.encode_image(pixels)


def _maps_of(visual: nn.Module) -> tuple[Any, tuple[int, ...]]:
    """How to get feature maps of an image tower, and their strides; none of a ResNet with attention pooling."""
    if isinstance(visual, VisionTransformer):
        return _patch_map, (visual.patch_size[0],)
    if not hasattr(visual, "trunk"):
        return None, ()
    maps, strides = maps_of(visual.trunk)
    return maps and partial(_maps_of_trunk, maps=maps), strides


def _patch_map(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    options = {"normalize_intermediates": True, "intermediates_only": True}
    return module.visual.forward_intermediates(pixels, indices=1, **options)["image_intermediates"]


def _maps_of_trunk(module: nn.Module, pixels: Tensor, *, maps: Any) -> list[Tensor]:
    return maps(module.visual.trunk, pixels)


def _check_towers(config: dict[str, Any], source: str) -> None:
    """See that a configuration describes two towers, and that their classes come from libraries, not from elsewhere."""
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise TetherError(f"The configuration of {source} has no vision_cfg and text_cfg; is it open_clip's?")
    trunk = vision.get("timm_model_name")
    if trunk is not None and (not isinstance(trunk, str) or ":" in trunk or "/" in trunk):
        raise TetherError(
            f"The configuration of {source} takes its image tower from {trunk!r}. Expected a name that timm knows, "
            f"such as 'vit_base_patch16_224': what is described or kept elsewhere is not loaded."
        )


def _build(config: dict[str, Any], limit: SizeLimit, source: str) -> nn.Module:
    """The module a configuration describes, with random weights; downloads only configurations."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision["timm_model_pretrained"] = False
    text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    try:
        with limit:
            return kind(**config)
    except Exception as error:  # of several libraries that do not look at what they are given
        raise TetherError(f"open_clip cannot build the model that {source} describes: {error}") from error


def _tokenizer(config: dict[str, Any], folder: Path | None, source: str) -> Any:
    """The tokenizer a configuration names; `folder` holds it if the model's folder has its own."""
    text = config["text_cfg"]
    context_length = text.get("context_length", 77)
    options = text.get("tokenizer_kwargs") or {}
    if options.get("trust_remote_code"):
        raise TetherError(f"{source} asks for trust_remote_code. Code that comes with a model is never run.")
    try:
        if not text.get("hf_tokenizer_name"):
            return SimpleTokenizer(context_length=context_length, **options)
        folder = folder or fetch(text["hf_tokenizer_name"], DESCRIPTIONS)
        mode = text.get("tokenizer_mode")
        return HFTokenizer(str(folder), context_length=context_length, tokenizer_mode=mode, **options)
    except (TypeError, ValueError, OSError, ImportError) as error:
        if isinstance(error, TetherError):
            raise
        raise TetherError(f"The tokenizer of {source} could not be loaded: {error}") from error


def _image_spec(module: nn.Module, preprocess: dict[str, Any], source: str) -> ImageSpec:
    height, width = to_2tuple(module.visual.image_size)
    stated = preprocess.get("size")
    if stated is not None and tuple(to_2tuple(stated)) != (height, width):
        raise TetherError(
            f"{source} contradicts itself: pictures are prepared with {stated} pixels, the image tower takes "
            f"{height if height == width else (height, width)}."
        )
    trunk = getattr(module.visual, "trunk", None)
    embedded = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if embedded is not None and tuple(embedded) != (height, width):
        raise TetherError(
            f"{source} contradicts itself: image_size is {height if height == width else (height, width)}, but the "
            f"timm model {type(trunk).__name__} was made for {embedded[0]} × {embedded[1]} pixels."
        )
    prepared = merge_preprocess_dict(PreprocessCfg(), preprocess)
    if (
        prepared["resize_mode"] not in ("shortest", "squash")
        or prepared["interpolation"] not in INTERPOLATIONS
    ):
        raise TetherError(
            f"{source} prepares pictures with resize_mode={prepared['resize_mode']!r} and "
            f"interpolation={prepared['interpolation']!r}; supported are 'shortest' and 'squash', and "
            f"{', '.join(INTERPOLATIONS)}."
        )
    return ImageSpec(
        size=(height, width),
        mean=channels(prepared["mean"], f"The mean of {source}"),
        std=channels(prepared["std"], f"The standard deviation of {source}", positive=True),
        interpolation=prepared["interpolation"],
        resize=prepared["resize_mode"],
    )
