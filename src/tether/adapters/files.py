"""Adapter files: a folder with `adapter.safetensors` and `adapter.json`, which refuses everything it does not
fit.

The JSON is written last, so a folder without it is not an adapter. It holds the method, its config, versions,
the fingerprint of the base, the alpha to use, and every tensor's shape, precision and SHA-256. Nothing is
unpickled. What was trained beside the method is a file of its own: parameters of the module that were unfrozen, which
the fingerprint leaves out, and the linear head on the features. So the folder is all that there is to copy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tether._alpha import Alpha, plain_alpha
from tether._files import read_json, write_json
from tether._sealed import read_part, write_part
from tether.adapters.attach import attach
from tether.adapters.attached import Attached
from tether.adapters.head import HEAD_FILE, Head, ModuleHead, earlier_head, head_of, module_head_of, read_head
from tether.config import build, method_of, methods_of, plain
from tether.errors import TetherError, near_misses
from tether.families import AdapterConfig
from tether.models.fingerprint import fingerprint_of
from tether.models.load import absolute
from tether.models.weight_path import MARK

FORMAT = "tether-adapter"
FORMAT_VERSION = 1
STORAGE = {"float32": torch.float32, "float16": torch.float16}
NAME, RAW, UNFROZEN, HEAD = "adapter", "raw", "unfrozen", "head"
ENTRIES = {"method": str, "config": dict, "base": dict, "alpha": float | dict[str, float], "extra": dict}
"""What every description holds, besides what only says how it was made."""


@dataclass(frozen=True)
class Adapter:
    """A trained adapter without its model: what a file holds.

    Args:
        config: the method's config.
        state: its tensors by name, as the handle's `state_dict` has them; averaged, as a rule.
        fingerprint: of the base it belongs to.
        alpha: the ensemble weight to use it with.
        extra: anything else that JSON can hold, such as the run it comes from.
        raw: the state as it was last trained, where that is kept beside the averaged one.
        source: where the base was loaded from, as `tether.load` takes it, with absolute paths; None if unknown.
        unfrozen: parameters of the module itself that were trained beside the method, such as a new head's, by
            name; they are the same at every alpha, and the fingerprint leaves them out.
        head: what was trained on the model's features, if there is such a head: a linear one, `head.at(alpha)` is
            its weight, or one on feature maps.

    Raises:
        TetherError: alpha is no finite number, nor one per tower.
    """

    config: Any
    state: Mapping[str, Tensor]
    fingerprint: str
    alpha: Alpha = 1.0
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    raw: Mapping[str, Tensor] | None = None
    source: str | None = None
    unfrozen: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    head: Head | ModuleHead | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", plain_alpha(self.alpha))


def save_adapter(
    path: str | Path,
    attached: Attached | Adapter,
    *,
    state: Mapping[str, Tensor] | None = None,
    alpha: Alpha | None = None,
    extra: Mapping[str, Any] | None = None,
    head: Head | ModuleHead | None = None,
    keep_raw: bool = False,
    precision: Literal["float32", "float16"] = "float32",
) -> Path:
    """Write an adapter folder, with what else of the module was `unfrozen` and trained.

    Args:
        path: the folder; made if need be.
        attached: the handle of what was trained, or an `Adapter`.
        state: of a handle: the state to store, such as the averaged one; None is the current one.
        alpha: the ensemble weight to store; None is 1 for a handle and its own for an `Adapter`.
        extra: what to store besides.
        head: the head that was trained on the model's features; None is none for a handle and its own for an
            `Adapter`.
        keep_raw: of a handle: also store the current state.
        precision: "float32", or "float16" for half the size; the JSON then states the rounding error.

    Returns:
        The folder.

    Raises:
        TetherError: there is an adapter in the folder already, a tensor or alpha is not finite or a tensor too
            large for fp16, the state is not one of the handle's, or the disk is full.
    """
    folder = Path(path)
    if (folder / f"{NAME}.json").exists():
        raise TetherError(
            f"{folder} holds an adapter already, and none is overwritten. Choose another folder."
        )
    if precision not in STORAGE:
        raise TetherError(f"Unknown precision {precision!r}{near_misses(precision, list(STORAGE))}")
    if isinstance(attached, Attached):
        state = attached.state_dict() if state is None else attached.complete(state)
        attached.check(state)
        current = attached.state_dict()
        config = attached.config if current.keys() == state.keys() else attached.config.fitting(state)
        source = attached.source and absolute(attached.source)
        adapter = Adapter(
            config,
            state,
            attached.fingerprint(),
            raw=current if keep_raw else None,
            source=source,
            unfrozen=attached.unfrozen(),
        )
    else:
        adapter = attached
    if alpha is not None:
        adapter = replace(adapter, alpha=alpha)
    if head is not None:
        adapter = replace(adapter, head=head)
    method = method_of(type(adapter.config))
    if not isinstance(adapter.config, AdapterConfig) or method is None:
        raise TetherError(
            f"{type(adapter.config).__name__} is not the config of a method: that derives from "
            f"tether.families.AdapterConfig and is marked with @method of tether.config."
        )
    parts = {NAME: adapter.state}
    parts |= {} if adapter.raw is None else {RAW: adapter.raw}
    parts |= {UNFROZEN: adapter.unfrozen} if adapter.unfrozen else {}
    parts |= {HEAD: adapter.head.tensors()} if adapter.head else {}
    description: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "method": method,
        "config": plain(adapter.config),
        "base": {"fingerprint": adapter.fingerprint, "source": adapter.source},
        "alpha": adapter.alpha,
        "precision": precision,
        "versions": {name: version(name) for name in ("tether", "torch", "safetensors")},
        "extra": dict(adapter.extra if extra is None else extra),
    }
    stored_parts = {
        name: {key: _store(key, tensor, STORAGE[precision]) for key, tensor in tensors.items()}
        for name, tensors in parts.items()
    }  # before anything is written
    for name, stored in stored_parts.items():
        if precision != "float32":
            description[f"{name}_rounding_error"] = _rounding(parts[name], stored)
        description[name] = {
            "sha256": write_part(folder / f"{name}.safetensors", stored),
            "tensors": {key: _entry(tensor) for key, tensor in sorted(stored.items())},
        }
    if isinstance(adapter.head, ModuleHead):
        description[HEAD] |= adapter.head.described()
    write_json(folder / f"{NAME}.json", description)
    return folder


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter folder, strictly.

    Args:
        path: the folder.

    Returns:
        The adapter, in fp32 on the CPU.

    Raises:
        TetherError: it is no adapter folder, it is of a newer format or an unknown method, its config has
            unknown options, an entry is missing or of another type, a file is damaged (missing, cut short, changed),
            or its tensors are not exactly those listed, or not finite.
    """
    folder = Path(path)
    file = folder / f"{NAME}.json"
    if not file.is_file():
        raise TetherError(
            f"{folder} is no adapter folder: it has no {NAME}.json. Give the folder that save_adapter wrote; "
            f"if saving was interrupted, save again."
        )
    description = read_json(file)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise TetherError(f"{file} does not describe an adapter of this library.")
    if (
        not isinstance(description.get("format_version"), int)
        or description["format_version"] > FORMAT_VERSION
    ):
        raise TetherError(
            f"{folder} has format version {description.get('format_version')}, and this version of tether "
            f"reads up to {FORMAT_VERSION}. Upgrade tether."
        )
    try:
        for name, kind in ENTRIES.items():
            build(kind, description[name], f"{file}: {name}")
        base = description["base"]
        build(str, base["fingerprint"], f"{file}: base.fingerprint")
        build(str | None, base.get("source"), f"{file}: base.source")
        config = _config(description["method"], description["config"])
        state = _read(folder, NAME, description[NAME])
        raw = _read(folder, RAW, description[RAW]) if RAW in description else None
        unfrozen = _read(folder, UNFROZEN, description[UNFROZEN]) if UNFROZEN in description else {}
        return Adapter(
            config,
            state,
            base["fingerprint"],
            description["alpha"],
            description["extra"],
            raw,
            base.get("source"),
            unfrozen,
            _head(folder, description),
        )
    except KeyError as error:
        raise TetherError(f"{file} lacks {error}; it is incomplete. Copy it again.") from error


def apply(model: Any, path: str | Path | Adapter, *, seed: int = 0) -> Attached:
    """Attach a saved adapter to its base and put it in evaluation mode; `merge(adapter.alpha)` ships it.

    Args:
        model: a `tether.Model` or any module, with the weights the adapter was trained on.
        path: an adapter folder, or an `Adapter`.
        seed: of drop masks, for training on.

    Raises:
        TetherError: the base is another one, or the state does not fit the model, or it has no place for what was
            unfrozen. Nothing is attached then.
    """
    adapter = path if isinstance(path, Adapter) else load_adapter(path)
    module = model if isinstance(model, nn.Module) else model.module
    if not hasattr(module, MARK):  # with something attached already, `attach` says so
        fingerprint = fingerprint_of(model, without=adapter.unfrozen.keys())
        if fingerprint != adapter.fingerprint:
            wanted = f" ({adapter.source})" if adapter.source else ""
            given = "this module" if model is module else f"the model {model.source}"
            raise TetherError(
                f"This adapter belongs to a base with fingerprint {adapter.fingerprint[:12]}…{wanted}, but {given} "
                f"has {fingerprint[:12]}…: other weights, another activation or another image size. Load the model "
                f"it was trained on (on the command line: --model)."
            )
    attached = attach(model, adapter.config, seed=seed)
    try:
        attached.load_state_dict(adapter.state)
        attached.unfreeze(adapter.unfrozen)
    except TetherError:
        attached.detach()
        raise
    attached.eval_mode()
    return attached


def check_head(adapter: Adapter, folder: Path) -> None:
    """See that an adapter has the linear head that it was trained with.

    Args:
        folder: where it was read from.

    Raises:
        TetherError: an earlier version put that beside the folder, and it was not copied.
    """
    if adapter.extra.get("head") and adapter.head is None:
        raise TetherError(
            f"{folder} was trained with a linear head, but there is no {HEAD_FILE} in it or beside it. Copy the whole "
            f"run, or put that file into {folder}."
        )


def _config(name: str, options: Mapping[str, Any]) -> Any:
    known = methods_of(AdapterConfig)
    if name not in known:
        raise TetherError(
            f"The adapter is of the unknown method {name!r}{near_misses(str(name), list(known))} If it is one of your "
            f"own, import it first."
        )
    return build(known[name], options, "config")


def _store(name: str, tensor: Tensor, precision: torch.dtype) -> Tensor:
    tensor = tensor.detach().to("cpu")
    if tensor.is_floating_point():
        tensor = tensor.to(precision)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        half = precision == torch.float16
        raise TetherError(
            f"{name} holds NaN or infinity{' in fp16' if half else ''}, so it is not saved. Save an earlier "
            f"checkpoint{', or use float32' if half else ''}."
        )
    return tensor.contiguous().clone()


def _rounding(tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest error of what is stored: absolute, and relative to the largest value of its tensor."""
    absolute, relative = 0.0, 0.0
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            error = float((stored[name].float() - tensor.detach().cpu().float()).abs().max())
            absolute = max(absolute, error)
            relative = max(relative, error / max(float(tensor.abs().max()), torch.finfo(torch.float32).tiny))
    return {"absolute": absolute, "relative": relative}


def _entry(tensor: Tensor) -> dict[str, Any]:
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _read(folder: Path, name: str, listed: Any) -> dict[str, Tensor]:
    """The tensors of one file, checked against the list in the JSON."""
    build(dict, listed, f"{folder / NAME}.json: {name}")
    build(dict, listed["tensors"], f"{folder / NAME}.json: {name}.tensors")
    file = folder / f"{name}.safetensors"
    tensors = read_part(file, listed["sha256"])
    for key in sorted(tensors.keys() | listed["tensors"].keys()):
        if key not in tensors or _entry(tensors[key]) != listed["tensors"].get(key):
            raise TetherError(
                f"{key} in {file} is not what {NAME}.json lists: that was changed. Copy the whole folder again."
            )
        if tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all()):
            raise TetherError(f"{key} in {file} holds NaN or infinity, so the adapter cannot be used.")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def _head(folder: Path, description: Mapping[str, Any]) -> Head | ModuleHead | None:
    """The head in the folder, or a linear one where earlier versions put it."""
    if HEAD in description:
        tensors = _read(folder, HEAD, description[HEAD])
        if "task" in description[HEAD]:
            return module_head_of(tensors, description[HEAD], folder / HEAD_FILE)
        return head_of(tensors, folder / HEAD_FILE)
    file = earlier_head(folder, description["extra"])
    return read_head(file) if file else None
