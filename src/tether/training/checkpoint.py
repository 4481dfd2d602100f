"""Checkpoints: everything a run needs to go on, in a folder that is whole or not there.

    checkpoints/step-00000120/
        tensors.safetensors    every tensor of the state, by its path ("optimizer/state/layer.weight/exp_avg")
        state.json             the rest of the state, with references to the tensors
        complete.json          hashes of the other two; written last

The folder is written under a temporary name, flushed to the disk and renamed. Nothing is ever pickled.
"""

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tether._files import new_folder, read_json, read_tensors, write_json
from tether._sealed import check_part, write_part
from tether.errors import TetherError

_TENSORS, _STATE, _COMPLETE = "tensors.safetensors", "state.json", "complete.json"

MOST_STEPS = 10**8 - 1
"""What eight digits of a checkpoint's name can say."""


@dataclass(frozen=True, kw_only=True)
class _Marker:
    """What stands in complete.json: the hash of each other file."""

    step: int
    sha256: dict[str, str]


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step` in `folder`, then delete all but the newest `keep`.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        TetherError: the disk is full or `state` holds something else; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    if is_complete(final):
        return final
    tensors, structure = flatten(state)
    with new_folder(final) as temporary:
        hashes = {
            name: write_part(temporary / name, content)
            for name, content in ((_TENSORS, tensors), (_STATE, structure))
        }
        write_json(temporary / _COMPLETE, {"step": step, "sha256": hashes})
        _discard(final)  # what is there is torn
    for old in [path for path in _folders(folder) if path.name <= final.name][keep:]:
        _discard(old)
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that was saved; its tensors are on the CPU.

    Raises:
        TetherError: the checkpoint is incomplete or was changed after it was written.
    """
    if not is_complete(path):
        raise TetherError(f"{path} is not a complete checkpoint: a file is missing, cut short or changed.")
    return unflatten(read_json(path / _STATE), read_tensors(path / _TENSORS))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, passing over torn ones; None if there is none."""
    return next((path for path in _folders(folder) if is_complete(path)), None)


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest complete checkpoint, with a warning of newer ones that are damaged; None if there is none at all.

    Raises:
        TetherError: there are checkpoints, and all of them are damaged.
    """
    newest = latest_checkpoint(folder)
    damaged = [path.name for path in _folders(folder) if newest is None or path.name > newest.name]
    if not damaged:
        return newest
    what = f"{', '.join(damaged)} in {folder}: damaged (a file is missing, cut short or changed)"
    if newest is None:
        raise TetherError(
            f"{what}, and there is no other checkpoint to go on from. Put whole ones there, or delete the folder "
            f"to train from the beginning."
        )
    warnings.warn(f"{what}. The run goes on from {newest.name}.", stacklevel=2)
    return newest


def is_complete(path: Path) -> bool:
    """Whether a checkpoint folder has its commit marker, and its files have the hashes that stand there and can be
    read."""
    try:
        hashes = read_json(path / _COMPLETE, _Marker).sha256
        if set(hashes) != {_TENSORS, _STATE}:
            return False
        for name, sha256 in hashes.items():
            check_part(path / name, sha256)
        with safe_open(path / _TENSORS, "pt") as file:
            unflatten(read_json(path / _STATE), dict.fromkeys(file.keys()))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def clean(folder: Path) -> None:
    """Delete what a killed process left behind: half-written or half-deleted checkpoints and files."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into tensors by path and a structure that JSON can hold.

    Raises:
        TetherError: something in it is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> Any:
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"$float": str(value)}
            case Tensor():
                if path in tensors:
                    raise TetherError(f"Two tensors of the state are called {path!r}; rename one.")
                tensors[path] = value
                return {"$tensor": path}
            case tuple():
                return {"$tuple": [visit(item, f"{path}/{i}") for i, item in enumerate(value)]}
            case list():
                return [visit(item, f"{path}/{i}") for i, item in enumerate(value)]
            case dict():
                prefix = f"{path}/" if path else ""
                items = [[key, visit(item, f"{prefix}{key}")] for key, item in value.items()]
                if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
                    return dict(items)
                if all(isinstance(key, int | str) for key, _ in items):
                    return {"$items": items}
        raise TetherError(
            f"A checkpoint holds tensors, numbers, strings, lists, tuples and dicts with names or numbers as "
            f"keys; found {type(value).__name__} at {path or 'the top'!r}."
        )

    structure = visit(state, "")
    return tensors, structure


def unflatten(structure: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`; `tensors` by path."""
    match structure:
        case {"$tensor": path}:
            return tensors[path]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(unflatten(item, tensors) for item in items)
        case {"$items": items}:
            return {key: unflatten(item, tensors) for key, item in items}
        case dict():
            return {key: unflatten(item, tensors) for key, item in structure.items()}
        case list():
            return [unflatten(item, tensors) for item in structure]
    return structure


def _folders(folder: Path) -> list[Path]:
    """Checkpoints by falling step."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


def _discard(path: Path) -> None:
    """Delete a checkpoint such that a kill in between leaves a temporary name, not a torn checkpoint."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
