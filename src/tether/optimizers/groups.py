"""Which parameters are decayed, which learn at another rate."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tether.errors import TetherError, near_misses
from tether.optimizers._checks import fits

Special = Mapping[str, Mapping[str, Any]]
"""Options of the parameters whose names fit a pattern (with * and ?)."""


def parameter_groups(
    parameters: Mapping[str, Tensor], *, lr: float, weight_decay: float = 0.0, special: Special | None = None
) -> list[dict[str, Any]]:
    """Groups of (name, parameter) pairs for any torch optimizer: matrices are decayed; biases, norms and scalars
    (ndim < 2) are not.

        torch.optim.AdamW(parameter_groups(
            parameters, lr=1e-3, weight_decay=0.1, special={"*.stem.*": {"lr": 1e-4, "weight_decay": 0.0}}))

    Args:
        special: options that some parameters have of their own; of several patterns that fit the last counts.

    Raises:
        TetherError: a pattern fits no parameter.
    """
    special = special or {}
    for pattern in special:
        if not any(fits(pattern, name, parameter) for name, parameter in parameters.items()):
            raise TetherError(f"No parameter fits {pattern!r}{near_misses(pattern, list(parameters))}")
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        options = {"lr": lr, "weight_decay": weight_decay}
        for pattern, own in special.items():
            if fits(pattern, name, parameter):
                options.update(own)
        if parameter.ndim < 2:
            options["weight_decay"] = 0.0
        group = groups.setdefault(tuple(sorted(options.items())), {"params": [], **options})
        group["params"].append((name, parameter))
    return list(groups.values())
