"""What the robust optimizers refuse, and how they say so."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf
from typing import Any

import torch
from torch import Tensor

from tether.errors import TetherError
from tether.optimizers._bucket import local

Groups = list[dict[str, Any]]
TREATMENTS = {
    "excluded": "excluded",
    "zero": "anchored at zero",
    "start": "anchored at its start",
    "given": "anchored at a given tensor",
}
"""How a tensor is treated, and the words for it; a state holds the place in this order."""


def require(holds: bool, name: str, found: Any, expected: str) -> None:
    """Refuse an option whose value is not as expected."""
    if not holds:
        raise TetherError(f"{name} must be {expected}, found {found!r}.")


def choose(options: Mapping[str, Any], name: str, *known: str) -> None:
    """Refuse an option that is none of the known words."""
    if options[name] not in known:
        raise TetherError(f"{name} must be one of {', '.join(map(repr, known))}; found {options[name]!r}.")


def check_rates(lr: float, head_lr: float | None) -> None:
    """Refuse learning rates of a recipe with which nothing would be learned."""
    for name, rate in (("lr", lr), ("head_lr", head_lr)):
        if rate is not None and not 0 < rate < inf:
            raise TetherError(f"optimizer.{name} must be positive, found {rate}.")


def matched_groups(saved_groups: Groups, groups: Groups) -> Groups:
    """The saved groups with their parameters in the order of the given ones: by name where both have them."""
    saved_sizes, sizes = ([len(group["params"]) for group in each] for each in (saved_groups, groups))
    if saved_sizes != sizes:
        raise TetherError(
            f"The saved optimizer has groups of {saved_sizes} tensors, this one {sizes}; make it over the "
            f"same parameters and groups."
        )
    matched = []
    for group, saved in zip(groups, saved_groups, strict=True):
        names, saved_names = group.get("param_names"), saved.get("param_names")
        if names and saved_names:
            if missing := sorted(set(names) - set(saved_names)):
                unexpected = sorted(set(saved_names) - set(names))
                raise TetherError(
                    f"The saved optimizer lacks {missing[:5]} and has {unexpected[:5]} instead."
                )
            place = dict(zip(saved_names, saved["params"], strict=True))
            saved = {**saved, "params": [place[name] for name in names], "param_names": list(names)}
        matched.append(saved)
    return matched


def _name(name: str | None) -> str:
    return name or "A parameter"


def shown(entry: Any) -> str:
    return repr(entry) if isinstance(entry, str) else f"a tensor of shape {tuple(entry.shape)}"


def fits(entry: Any, name: str | None, param: Tensor) -> bool:
    if isinstance(entry, str):
        return name is not None and fnmatchcase(name, entry)
    return entry is param


def check_tensor(param: Tensor, name: str | None) -> None:
    if not param.is_floating_point():
        raise TetherError(
            f"{_name(name)} has type {param.dtype}; only real floating-point tensors can be trained."
        )
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise TetherError(
            f"{_name(name)} was flattened by FullyShardedDataParallel, which destroys its rows; shard with "
            f"torch.distributed.fsdp.fully_shard instead."
        )


def check_precision(param: Tensor, name: str) -> None:
    """Refuse to train a float16 tensor: ε = 1e-8 is 0 in it, and squares of small gradients are too."""
    if param.dtype == torch.float16:
        raise TetherError(
            f"{name} is float16, in which a step becomes NaN. Train float32 parameters (tether.load gives them) and "
            f"use torch.autocast for the arithmetic; what is frozen may be float16."
        )


def fitted_anchor(anchor: Tensor | None, param: Tensor, name: str | None) -> Tensor | None:
    if anchor is None:
        return None
    if anchor.shape != param.shape:
        raise TetherError(f"{_name(name)} has shape {tuple(param.shape)}, its anchor {tuple(anchor.shape)}.")
    mesh = getattr(param, "device_mesh", None)
    if mesh is not None and not hasattr(anchor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(anchor.detach().to(param.device, param.dtype), mesh, param.placements)
    if mesh is None and param.numel() and anchor.data_ptr() == param.data_ptr():
        raise TetherError(
            f"{_name(name)} was given its own memory as anchor, which would move with it; leave it out "
            f"(a copy is made), or pass the tensors of a separate, frozen model."
        )
    return anchor.detach().to(param.device, param.dtype)


def check_state(saved: dict[str, Any], expected: dict[str, Tensor] | None, treatment: str, name: str) -> None:
    """Refuse the saved state of a tensor that is treated otherwise here, or has other parts (where it has any)."""
    if "treatment" in saved and (found := list(TREATMENTS)[int(saved["treatment"])]) != treatment:
        raise TetherError(
            f"{name} was saved as {TREATMENTS[found]}, and here it is {TREATMENTS[treatment]}; make the optimizer with "
            f"the anchors and exclude it was saved with."
        )
    if expected and saved.keys() != expected.keys():
        raise TetherError(
            f"The saved state of {name} lacks {sorted(expected.keys() - saved.keys())} and has "
            f"{sorted(saved.keys() - expected.keys())} besides; make the optimizer with the options "
            f"it was saved with (base, anchors, exclude)."
        )
    for key, value in (expected or {}).items():
        if saved[key].shape != value.shape:
            raise TetherError(
                f"The saved {key} of {name} has shape {tuple(saved[key].shape)}, not {tuple(value.shape)}."
            )


def check_anchor(saved: Tensor, given: Tensor, name: str) -> None:
    """Refuse to go on from another anchor than the one that is given now."""
    if not torch.equal(local(saved), local(given)):
        raise TetherError(
            f"The anchor given for {name} is not the one it was saved with; give the same pre-trained weights."
        )
