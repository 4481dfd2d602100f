"""Which examples make up which batch, as a pure function of (seed, epoch, step).

Nothing is counted along: a run that continues at step k asks for step k. The order depends on integer
arithmetic and a stable sort only, so it is the same on every platform, version and number of processes.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt64

from tether.errors import TetherError

Order = Callable[[int], Int[np.ndarray, " positions"]]
Labels = Sequence[int] | Int[np.ndarray, " count"]


def _hash(*keys: int | UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Mix integers into 64 random-looking bits (the finaliser of SplitMix64 after every key)."""
    mixed = np.zeros(1, np.uint64)
    for key in keys:
        mixed = (mixed ^ np.asarray(key, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def permutation(count: int, *keys: int) -> Int[np.ndarray, " count"]:
    """0 … count − 1 in an order that depends on the keys and nothing else."""
    return np.argsort(_hash(*keys, np.arange(count, dtype=np.uint64)), kind="stable")


def shuffled(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    """Every example once, in random order."""
    return permutation(count, seed, epoch)


def balanced(labels: Labels, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    """As many positions as examples, every label equally often (± 1): class-balanced sampling.

    Labels take turns in random order. A rare label's examples come again, all of them before any a second time; of a
    frequent label's not all come in one epoch, but others in the next.
    """
    array = np.asarray(labels)
    _, sizes = np.unique(array, return_counts=True)
    members = np.split(np.argsort(array, kind="stable"), np.cumsum(sizes)[:-1])
    turns = -(-len(array) // len(members))
    picks = np.stack([_laps(m, turns, seed, epoch, number) for number, m in enumerate(members)], axis=1)
    order = [picks[turn, permutation(len(members), seed, epoch, turn, 1)] for turn in range(turns)]
    return np.concatenate(order)[: len(array)]


def _laps(members: Int[np.ndarray, " members"], count: int, *keys: int) -> Int[np.ndarray, " count"]:
    """`count` members in lap after lap over all of them, each in another order."""
    laps = -(-count // len(members))
    return np.concatenate([members[permutation(len(members), *keys, lap, 2)] for lap in range(laps)])[:count]


def batches_per_epoch(count: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches of one pass over `count` examples, the last one perhaps smaller, or left out with `drop_last`.

    Raises:
        TetherError: there is none.
    """
    if count == 0:
        raise TetherError("There is nothing to train on: the data set is empty.")
    if drop_last and count < batch_size:
        raise TetherError(
            f"The data set has {count} examples, fewer than one batch of {batch_size}, and drop_last "
            f"leaves it out: nothing remains. Use a smaller batch_size or drop_last=False."
        )
    return count // batch_size if drop_last else -(-count // batch_size)


class Batches:
    """The batches of a run by step number; `order(epoch)` gives the examples of an epoch, `count` of them.

    The last batch of an epoch is smaller where the batch size does not divide the examples, or left out with
    `drop_last`.

    Raises:
        TetherError: there are no examples, or fewer than one batch and the last is left out.

    >>> batches = Batches(lambda epoch: shuffled(1000, 0, epoch), 1000, batch_size=64)
    >>> epoch, examples = batches.batch(17)
    """

    def __init__(self, order: Order, count: int, batch_size: int, *, drop_last: bool = False) -> None:
        self._order = functools.lru_cache(maxsize=2)(order)  # two: data workers run ahead into the next epoch
        self._count, self._size = count, batch_size
        self.per_epoch = batches_per_epoch(count, batch_size, drop_last=drop_last)

    def batch(self, step: int) -> tuple[int, Int[np.ndarray, " batch"]]:
        """Epoch and examples of the batch of a step, over all processes."""
        epoch, position = divmod(step, self.per_epoch)
        return epoch, self._order(epoch)[position * self._size : (position + 1) * self._size]

    def check_shares(self, processes: int) -> None:
        """See that every batch splits into equal shares.

        Raises:
            TetherError: one does not.
        """
        sizes = [min(self._size, self._count)]
        if self.per_epoch * self._size > self._count:
            sizes.append((self._count - 1) % self._size + 1)
        for size in sizes:
            if size % processes:
                raise TetherError(
                    f"A batch of {size} examples cannot be shared equally by {processes} processes. Choose a "
                    f"batch_size that {processes} divides; drop_last=True leaves the last, odd batch out."
                )

    def share(self, step: int, rank: int, processes: int) -> tuple[int, Int[np.ndarray, " share"]]:
        """Epoch and examples of one process's consecutive part of the batch of a step."""
        epoch, examples = self.batch(step)
        size = len(examples) // processes
        return epoch, examples[rank * size : (rank + 1) * size]
