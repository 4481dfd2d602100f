"""Adapter arithmetic: R-Adapters of several runs on one base, averaged or added exactly.

Merged weights are (I + A) W with A = s · F or s · U D, linear in A. So an average of the matrices A is the
average of the merged models (a soup), a sum composes what the runs learned, and a weight of −1 takes
something away. Averages of factors would not be: low-rank adapters are combined by laying their factors side
by side.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tether._alpha import Alpha
from tether.adapters.files import Adapter
from tether.adapters.head import combined_head
from tether.adapters.r_adapter.module import product
from tether.adapters.r_adapter.states import PART, by_path, factors_of
from tether.adapters.shared import check_base, heads_of, shared_alpha, shared_unfrozen
from tether.errors import TetherError


def average(adapters: Sequence[Adapter], alpha: Alpha | None = None) -> Adapter:
    """The mean of adapters: its merge is the mean of their merges.

    Args:
        adapters: of the same base and the same sites; ranks may differ.
        alpha: the ensemble weight of the result; None keeps theirs if it is the same for all.

    Raises:
        TetherError: they differ in base, sites or widths, or in alpha where none is given.
    """
    return combine(adapters, [1 / max(len(adapters), 1)] * len(adapters), alpha)


def add(adapters: Sequence[Adapter], alpha: Alpha | None = None) -> Adapter:
    """The sum of adapters: what each adds to the base, all at once. Arguments and errors as in `average`."""
    return combine(adapters, [1.0] * len(adapters), alpha)


def combine(adapters: Sequence[Adapter], weights: Sequence[float], alpha: Alpha | None = None) -> Adapter:
    """The weighted sum Σ wᵢ Aᵢ of adapters.

    Args:
        adapters: of the same base and the same sites; ranks may differ.
        weights: one per adapter, of any sign.
        alpha: the ensemble weight of the result; None keeps theirs if it is the same for all.

    Returns:
        An adapter without scale: per site one factor pair of the summed rank, or a full matrix where that is
            smaller.

    Raises:
        TetherError: they differ in base, sites or widths, or in alpha where none is given; or there are none,
            or not as many weights; or something else was trained beside one of several, or not all have a head
            that began as the same classifier.
    """
    if not adapters or len(adapters) != len(weights):
        raise TetherError(
            f"combine needs adapters and as many weights; got {len(adapters)} and {len(weights)}."
        )
    check_base(adapters)
    first, heads = adapters[0], heads_of(adapters)
    state = combined_state([adapter.state for adapter in adapters], weights)
    return Adapter(
        first.config.fitting(state),
        state,
        first.fingerprint,
        shared_alpha(adapters) if alpha is None else alpha,
        {"combined": len(adapters)},
        source=first.source,
        unfrozen=shared_unfrozen(adapters),
        head=combined_head(heads, weights) if heads else None,
    )


def combined_state(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The state of Σ wᵢ Aᵢ: per site one factor pair of the summed rank, or a full matrix where that is smaller.

    Raises:
        TetherError: they differ in sites or widths.
    """
    adapters = [by_path(state) for state in states]
    for other in adapters[1:]:
        if different := sorted(other.keys() ^ adapters[0].keys()):
            raise TetherError(f"Adapters of different sites cannot be combined: {', '.join(different[:6])}.")
    combined = {}
    for path in adapters[0]:
        tensors = _combine([adapter[path] for adapter in adapters], weights, path)
        combined |= {f"{path}{PART}{name}": tensor for name, tensor in tensors.items()}
    return combined


def _combine(adapters: list[dict[str, Tensor]], weights: Sequence[float], path: str) -> dict[str, Tensor]:
    pairs = [factors_of(tensors) for tensors in adapters]
    width = pairs[0][0][0].shape[0]
    if other := next((factors[0].shape[0] for factors, _ in pairs if factors[0].shape[0] != width), None):
        raise TetherError(f"The adapters at {path} have different widths, {width} and {other}.")
    if 2 * sum(factors[-1].shape[0] for factors, _ in pairs) >= width:
        return {"weight": sum(weight * product(*pair) for weight, pair in zip(weights, pairs, strict=True))}
    ups = [weight * k * factors[0].float() for weight, (factors, k) in zip(weights, pairs, strict=True)]
    return {"up": torch.cat(ups, dim=1), "down": torch.cat([factors[1].float() for factors, _ in pairs])}
