"""The weighted mean of state dicts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tether.errors import TetherError

State = Mapping[str, Tensor]


def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Σ w_m θ_m / Σ w_m, key by key, summed in float64 and returned in the first state's dtypes.

    Equal weights by default. Tensors of integers (counters, position ids) are the first state's.

    >>> average([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"].tolist()
    [0.5, 0.5]

    Raises:
        TetherError: no states, keys or shapes that differ, or weights that are negative, all 0 or not one
            per state.
    """
    check_compatible(states)
    shares = normalised_weights(len(states), weights)
    return {key: _average_tensor([state[key] for state in states], shares) for key in states[0]}


def _average_tensor(tensors: list[Tensor], shares: list[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        if share:  # a state that does not count must not bring in its infinities
            total.add_(tensor.to(total), alpha=share)
    return total.to(first.dtype)


def normalised_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    """Weights that add up to 1, equal ones by default.

    Raises:
        TetherError: weights that are negative, all 0 or not one per state.
    """
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or not all(w >= 0 for w in weights) or not 0 < sum(weights) < float("inf"):
        raise TetherError(f"Expected {count} weights of at least 0, not all 0; found {weights}.")
    return [weight / sum(weights) for weight in weights]


def check_compatible(states: Sequence[State]) -> None:
    """Refuse states that are not of one and the same model.

    Raises:
        TetherError: no states, or keys or shapes that differ from the first state's.
    """
    if not states:
        raise TetherError("There is nothing to average: no state was given.")
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        missing, unexpected = sorted(first.keys() - state.keys()), sorted(state.keys() - first.keys())
        if missing or unexpected:
            raise TetherError(
                f"State {number} is not of the first one's model: missing {missing[:5]}, unexpected "
                f"{unexpected[:5]} ({len(missing)} and {len(unexpected)} in all)."
            )
        for key, tensor in first.items():
            if state[key].shape != tensor.shape:
                raise TetherError(
                    f"{key} has shape {tuple(state[key].shape)} in state {number} and {tuple(tensor.shape)} "
                    f"in the first: they cannot be averaged."
                )
