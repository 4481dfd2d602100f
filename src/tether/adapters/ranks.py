"""The smallest rank that will do, of an adapter of any method whose states have one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from tether.errors import TetherError

State = dict[str, Tensor]


@runtime_checkable
class Ranked(Protocol):
    """A state that was factored once, from which those of every rank follow; `AdapterConfig.factored` gives it."""

    @property
    def rank(self) -> int:
        """The state's own rank."""

    def at_rank(self, rank: int) -> State:
        """The best approximation of a rank from 1."""


@dataclass(frozen=True)
class RankResult:
    """One rank in a comparison: its adapter's size in bytes (fp32 tensors) and its score."""

    rank: int
    bytes: int
    score: float


def size_in_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def smallest_within(
    factored: Ranked,
    ranks: Sequence[int],
    score: Callable[[State], float],
    tolerance: float,
) -> tuple[State, list[RankResult]]:
    """The smallest rank that scores at least as much as the full adapter, less a tolerance.

    Args:
        factored: the trained adapter, such as `Factored(state)` of an R-Adapter.
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
