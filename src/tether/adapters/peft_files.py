"""Folders of the library peft: written from what tether trained, and read as adapters of the method lora.

Such a folder holds `adapter_config.json` and `adapter_model.safetensors`. It does not know its base, so an adapter that
is read from one belongs to the model it is read for.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tether._alpha import Alpha, alpha_of
from tether._files import new_folder, read_json, read_tensors, refuse_existing, save_tensors, write_json
from tether.adapters._tensors import not_finite
from tether.adapters.attach import attach
from tether.adapters.attached import Attached
from tether.adapters.files import Adapter
from tether.adapters.head import HEAD_FILE, Head
from tether.adapters.lora import LoRAConfig, at_alpha, peft, peft_config, targets
from tether.config import build
from tether.errors import TetherError, near_misses
from tether.models.fingerprint import fingerprint_of
from tether.models.load import absolute

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSOR = re.compile(r"(?P<path>.+)\.(?P<kind>lora_A\.weight|lora_B\.(?:weight|bias)|lora_magnitude_vector)")
MOVED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""First values of A and B that peft takes out of the base, which so is another one."""
OTHER_FORWARD = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
)
OTHER_FORWARD += ("use_bdlora", "use_qalora", "fan_in_fan_out")
"""Options with which a layer of peft computes something else than the three variants here."""


def save_peft(
    path: str | Path,
    attached: Attached,
    *,
    state: Mapping[str, Tensor] | None = None,
    alpha: Alpha = 1.0,
    head: Head | None = None,
) -> Path:
    """Write what is attached as a folder of peft's: a LoRA, or an R-Adapter of low rank, which is one.

        save_peft("for-peft", attached, alpha=0.5)
        peft.PeftModel.from_pretrained(base, "for-peft")       # base: the model's module, as its library loads it

    Args:
        path: the folder, which must not exist.
        attached: the handle.
        state: the state to write, such as an average; None is the current one.
        alpha: ensemble weight, which becomes part of the numbers.
        head: the linear head that was trained with it; its weight at this alpha goes into a file beside peft's, which
            peft does not read.

    Returns:
        The folder.

    Raises:
        TetherError: the folder exists, the method or this adapter is no LoRA, something else was trained beside it, a
            tensor is not finite, peft is not installed, or the disk is full.
    """
    folder = Path(path)
    refuse_existing(folder)
    library = peft()
    if others := attached.unfrozen():
        raise TetherError(
            f"{next(iter(others))} was trained beside the adapter, and is no part of a LoRA. Merge the adapter instead "
            f"(tether merge), or train it with that tensor frozen."
        )
    state = attached.state_dict() if state is None else attached.complete(state)
    attached.check(state)
    config, state = attached.config.as_lora(attached, state)
    with attached.ordinary() as module:
        adapted = targets(module, config)
        names = [name for name, _ in module.named_modules()]
    alphas = {target.path: alpha_of(alpha, target.tower) for target in adapted}
    if set(alphas.values()) != {1.0}:
        if config.variant == "dora":
            raise TetherError(
                "DoRA is not linear in its parameters, so that at another alpha than 1 it is no DoRA. Export it at "
                "alpha 1 (--alpha 1), or merge it at this one (tether merge)."
            )
        state = at_alpha(state, alphas)
    if wrong := not_finite(state):
        raise TetherError(f"{wrong[0]} holds NaN or infinity, so it is not saved. Take an earlier adapter.")
    options = peft_config(config, adapted)
    options["target_modules"] = _exactly(options["target_modules"], names)
    _check_ends([target.path for target in adapted if target.fused], names)
    description = library.LoraConfig(
        **options, base_model_name_or_path=_hub_name(attached.source), inference_mode=True
    )
    with new_folder(folder) as temporary:
        save_tensors(temporary / TENSORS, {f"{PREFIX}{name}": tensor for name, tensor in state.items()})
        plain = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in description.to_dict().items()
        }
        if head is not None:
            save_tensors(temporary / HEAD_FILE, {"weight": head.at(alpha_of(alpha, "text"))})
        write_json(temporary / CONFIG, plain)
    return folder


def load_peft(path: str | Path, model: Any) -> Adapter:
    """Read a LoRA that peft trained, as an adapter of a model; `apply`, `merge` and `save_adapter` take it from there.

        adapter = load_peft("their-lora", model)
        attached = tether.adapters.apply(model, adapter)

    Args:
        path: a folder of peft's.
        model: the base it was trained on, a `tether.Model` or any module; it is left as it is.

    Returns:
        The adapter, with alpha 1. Where layers differ in rank, the smaller ones are filled up with zeros.

    Raises:
        TetherError: it is no such folder, no LoRA, of a variant that is none of `LoRAConfig`'s, or holds tensors for
            which there is no place in the model; or peft is not installed.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise TetherError(f"{folder} has no {CONFIG}, so it is no folder that peft saved.")
    if not (folder / TENSORS).is_file():
        raise TetherError(
            f"{folder} has no {TENSORS}. Pickled weights are never loaded; save it again with peft."
        )
    options = read_json(folder / CONFIG, dict)
    _check_kind(options, folder)
    module = model if isinstance(model, nn.Module) else model.module
    found, names = _by_path(read_tensors(folder / TENSORS), module, folder)
    scalings = {path: _scaling(options, names[path], tensors) for path, tensors in found.items()}
    rank = max(len(tensors["lora_A.weight"]) for tensors in found.values())
    alike = len(set(scalings.values())) == 1 and all(len(t["lora_A.weight"]) == rank for t in found.values())
    rslora = bool(options.get("use_rslora")) and alike
    config = LoRAConfig(
        rank=rank,
        lora_alpha=next(iter(scalings.values())) * (rank**0.5 if rslora else rank) if alike else float(rank),
        dropout=float(build(float, options.get("lora_dropout", 0.0), "lora_dropout")),
        variant="dora" if options.get("use_dora") else "rslora" if rslora else "lora",
        bias=any("lora_B.bias" in tensors for tensors in found.values()),
        modules=tuple(found),
    )
    state = {}
    for path, tensors in found.items():
        share = 1.0 if alike else scalings[path]
        missing = rank - len(tensors["lora_A.weight"])
        state[f"{path}.lora_A.weight"] = F.pad(tensors["lora_A.weight"], (0, 0, 0, missing))
        state[f"{path}.lora_B.weight"] = share * F.pad(tensors["lora_B.weight"], (0, missing))
        if "lora_B.bias" in tensors:
            state[f"{path}.lora_B.bias"] = share * tensors["lora_B.bias"]
        if "lora_magnitude_vector" in tensors:
            state[f"{path}.lora_magnitude_vector"] = tensors["lora_magnitude_vector"]
    attached = attach(model, config)
    try:
        attached.check(state)
    finally:
        attached.detach()
    source = None if model is module else absolute(model.source)
    return Adapter(config, state, fingerprint_of(model), extra={"peft": str(folder)}, source=source)


def _check_kind(options: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is none of the three variants."""
    if options.get("peft_type") != "LORA":
        raise TetherError(
            f"{folder} holds an adapter of type {options.get('peft_type')}, and LORA is what can be read. Merge it "
            f"with peft (merge_and_unload) and load the merged model."
        )
    first = options.get("init_lora_weights")
    if isinstance(first, str) and first.startswith(MOVED_BASE):
        raise TetherError(
            f"{folder} began with init_lora_weights={first!r}, which takes its first values out of the base. Save it "
            f"again with peft's save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )
    for name in OTHER_FORWARD:
        if options.get(name):
            raise TetherError(
                f"{folder} has {name}={options[name]!r}, with which peft computes something else than LoRA, rsLoRA or "
                f"DoRA. Merge it with peft (merge_and_unload) and load the merged model."
            )


def _by_path(
    tensors: Mapping[str, Tensor], module: nn.Module, folder: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The tensors of each layer as float32, and the path that peft has for it, by that of its module in the model."""
    paths, names = dict(module.named_modules()), {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            raise TetherError(
                f"{name} in {folder} is no tensor of a LoRA: it was trained beside it (modules_to_save, bias), and "
                f"there is no place for it. Merge the whole with peft (merge_and_unload) and load the merged model."
            )
        path = match["path"]
        if ".base_layer." in path:
            raise TetherError(
                f"{name} in {folder} is of peft's own layer for nn.MultiheadAttention, which applies the delta of the "
                f"output projection twice. It cannot be read; train with target_parameters=['in_proj_weight']."
            )
        shortened = path
        while shortened not in paths and "." in shortened:
            shortened = shortened.partition(".")[
                2
            ]  # a model with a head has this one inside, as in vit.encoder…
        if shortened not in paths:
            raise TetherError(
                f"{folder} has a LoRA on {path}, which the model {type(module).__name__} has not"
                f"{near_misses(path, list(paths))} Name the model that it was trained on (--model)."
            )
        names[shortened] = path
        found.setdefault(shortened, {})[match["kind"]] = tensor.to(
            torch.promote_types(tensor.dtype, torch.float32)
        )
    for path, kinds in found.items():
        if not {"lora_A.weight", "lora_B.weight"} <= kinds.keys():
            raise TetherError(
                f"{folder} has only {', '.join(kinds)} of {path}; it is incomplete. Copy it again."
            )
    if not found:
        raise TetherError(f"{folder / TENSORS} holds no tensors. Copy it again.")
    return found, names


def _scaling(options: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> float:
    """s of one layer, of which the rank is that of its tensors."""
    rank, pattern = (
        len(tensors["lora_A.weight"]),
        build(dict[str, float], options.get("alpha_pattern") or {}, "alpha_pattern"),
    )
    matching = [
        value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)
    ]  # as peft does
    alpha = matching[0] if matching else build(float, options.get("lora_alpha", 8), "lora_alpha")
    return alpha / (rank**0.5 if options.get("use_rslora") else rank)


def _exactly(paths: list[str], names: Iterable[str]) -> list[str] | str:
    """What peft finds these modules by and no others: it takes every module whose path ends like one in a list."""
    if any(name.endswith(f".{path}") for path in paths for name in names):
        return "|".join(map(re.escape, paths))
    return paths


def _check_ends(paths: list[str], names: Iterable[str]) -> None:
    """Refuse parameters that peft, which takes all whose names end alike, would not find alone."""
    for path in paths:
        for name in names:
            if name.endswith(f".{path}") and name not in paths:
                raise TetherError(
                    f"peft finds a parameter by the end of its name, and {name} ends as {path} does, so that it would "
                    f"be adapted too. Adapt both, or the MLPs alone: select.kinds=[mlp]."
                )


def _hub_name(source: str | None) -> str | None:
    """What peft calls the base: a folder or a name of the hub."""
    if source is None or source == "builtin" or source.startswith(("open_clip:", "timm:", "torchvision:")):
        return None
    return absolute(source).removeprefix("hf:")
