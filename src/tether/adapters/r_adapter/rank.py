"""Rank after training: the singular value decomposition of every s · F, cut off, is a smaller file of the
same kind.

A full-rank R-Adapter trains well and stores badly (20 million numbers for ViT-B/16). What it learned usually
has few strong directions; keeping those makes the file 10 to 50 times smaller, and it merges exactly like any
other.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tether.adapters.files import Adapter
from tether.adapters.r_adapter.states import PART, by_path, matrices
from tether.adapters.ranks import State
from tether.errors import TetherError


class Factored:
    """A trained R-Adapter, factored once, from which every rank follows.

        factored = Factored(attached.state_dict())
        state = factored.at_rank(16)

    Args:
        state: of an R-Adapter, of any rank.

    Raises:
        TetherError: it is no R-Adapter's state.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._matrices = matrices(state)
        self._ranks = {
            path: tensors["down"].shape[0] if "down" in tensors else len(self._matrices[path])
            for path, tensors in by_path(state).items()
        }
        self._parts = {path: torch.linalg.svd(matrix) for path, matrix in self._matrices.items()}

    @property
    def singular_values(self) -> dict[str, Float[Tensor, " d"]]:
        """Of each adapter's matrix, by its path, from the largest down."""
        return {path: values for path, (_, values, _) in self._parts.items()}

    @property
    def rank(self) -> int:
        """The largest rank that an adapter of the state was given; its width, where it is a full matrix."""
        return max(self._ranks.values())

    def at_rank(self, rank: int) -> State:
        """The best approximation with `rank` directions per adapter, or with as many as an adapter has; and its matrix
        where 2 · rank ≥ d: factors would be no smaller.

        Raises:
            TetherError: the rank is below 1.
        """
        if rank < 1:
            raise TetherError(f"rank is at least 1, not {rank}.")
        return self._cut({path: rank for path in self._parts})

    def at_energy(self, energy: float) -> State:
        """The smallest rank per adapter that keeps this share of the sum of squared singular values.

        Raises:
            TetherError: energy is not above 0 and at most 1.
        """
        if not 0 < energy <= 1:
            raise TetherError(f"energy is a share, above 0 and at most 1, not {energy!r}.")
        return self._cut({path: _rank_for(values, energy) for path, values in self.singular_values.items()})

    def _cut(self, ranks: Mapping[str, int]) -> State:
        """Factors, or the whole matrix where 2 r ≥ d and factors would be no smaller."""
        state = {}
        for path, (left, values, right) in self._parts.items():
            rank = min(ranks[path], self._ranks[path])  # directions beyond its own are zeros
            if 2 * rank >= len(values):
                state[f"{path}{PART}weight"] = self._matrices[path].clone()
                continue
            root = values[
                :rank
            ].sqrt()  # shared out between both factors, so that neither leaves the range of fp16
            state[f"{path}{PART}up"] = (left[:, :rank] * root).contiguous()
            state[f"{path}{PART}down"] = (root[:, None] * right[:rank]).contiguous()
        return state


def at_rank(adapter: Adapter, rank: int) -> Adapter:
    """A saved adapter cut to a rank: see `Factored.at_rank`.

    Raises:
        TetherError: it is no R-Adapter, or the rank is below 1.
    """
    state = Factored(adapter.state).at_rank(rank)
    return replace(adapter, config=adapter.config.fitting(state), state=state, raw=None)


def _rank_for(values: Float[Tensor, " d"], energy: float) -> int:
    total = values.square().cumsum(0)
    return min(int((total < energy * total[-1]).sum()) + 1, len(values))
