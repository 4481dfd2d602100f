"""Rank after training: the singular value decomposition of every s · F, cut off, is a smaller file of the
same kind.

A full-rank R-Adapter trains well and stores badly (20 million numbers for ViT-B/16). What it learned usually
has few strong directions; keeping those makes the file 10 to 50 times smaller, and it merges exactly like any
other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tether.adapters.files import Adapter
from tether.adapters.r_adapter.states import PART, by_path, matrices
from tether.errors import TetherError

State = dict[str, Tensor]


@dataclass(frozen=True)
class RankResult:
    """One rank in a comparison: its adapter's size in bytes (fp32 tensors) and its score."""

    rank: int
    bytes: int
    score: float


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


def size_in_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def smallest_within(
    state: Mapping[str, Tensor],
    ranks: Sequence[int],
    score: Callable[[State], float],
    tolerance: float,
) -> tuple[State, list[RankResult]]:
    """The smallest rank that scores at least as much as the full adapter, less a tolerance.

    Args:
        state: of a trained R-Adapter.
        ranks: those to try, in any order; what is no smaller than the adapter's own is passed over.
        score: of a state, higher is better, on validation data: never on what is reported as test.
        tolerance: in the units of the score, from 0.

    Returns:
        The state to save (the full one if no rank will do), and the result of every rank, from small to
        large; the last is the full adapter, at its own rank (the width, of a full matrix).

    Raises:
        TetherError: no rank is below the adapter's own, or one below 1; or the tolerance is no finite number from 0.
    """
    if not 0 <= tolerance < math.inf:
        raise TetherError(f"The tolerance is a finite number from 0, not {tolerance!r}.")
    factored = Factored(state)
    smaller = sorted({rank for rank in ranks if rank < factored.rank})
    if not smaller:
        raise TetherError(
            f"The adapter has rank {factored.rank}, and none of the ranks to try is smaller: {list(ranks)}."
        )
    results, states = [], []
    for rank in (*smaller, factored.rank):
        states.append(factored.at_rank(rank))
        results.append(RankResult(rank, size_in_bytes(states[-1]), float(score(states[-1]))))
    chosen = next(i for i, result in enumerate(results) if result.score >= results[-1].score - tolerance)
    return states[chosen], results


def _rank_for(values: Float[Tensor, " d"], energy: float) -> int:
    total = values.square().cumsum(0)
    return min(int((total < energy * total[-1]).sum()) + 1, len(values))
