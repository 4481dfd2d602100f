"""Batches that hold several captions of the same picture, so that an objective with many positives has them.

In random batches of COCO's captions two of one picture almost never meet: 0.004 further positives for a row of a
batch of 512. Like every order of `tether.training.sampler` this one is a pure function of (seed, epoch).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from tether.errors import TetherError
from tether.training.sampler import Labels, Order, permutation, shuffled


def caption_grouped(pictures: Labels, together: int, seed: int, epoch: int) -> Int[np.ndarray, " captions"]:
    """As many positions as captions, in groups of `together` captions of one picture that follow each other.

    The captions of a picture are shuffled and divided into groups anew in every epoch. A picture whose captions do
    not divide completes its last group with its first ones, and as many groups, drawn at random, are left out of the
    epoch. So every caption comes once where `together` divides the captions of every picture, and about as often as
    the others elsewhere; within a group a caption is repeated only where a picture has fewer than `together`.

    Args:
        pictures: for every caption the number of its picture.
    """
    array = np.asarray(pictures)
    order = shuffled(len(array), seed, epoch)
    order = order[np.argsort(array[order], kind="stable")]  # by picture, random within
    _, sizes = np.unique(array, return_counts=True)
    first = np.cumsum(sizes) - sizes
    lengths = -(-sizes // together) * together
    number = np.repeat(np.arange(len(sizes)), lengths)
    within = np.arange(len(number)) - (np.cumsum(lengths) - lengths)[number]
    groups = order[first[number] + within % sizes[number]].reshape(-1, together)
    return groups[permutation(len(groups), seed, epoch, 1)].reshape(-1)[: len(array)]


@dataclass(frozen=True, kw_only=True)
class CaptionSamplerConfig:
    """How many captions of a picture come together; 1 is a plain shuffle.

    Raises:
        TetherError: `together` is below 1.
    """

    together: int = 2

    def __post_init__(self) -> None:
        if self.together < 1:
            raise TetherError(
                f"together is the number of captions of a group, at least 1; found {self.together}."
            )

    def order(self, pictures: Labels, seed: int) -> Order:
        """The order of the captions as a function of the epoch, for `tether.training.sampler.Batches`.

        Args:
            pictures: for every caption the number of its picture, as `CaptionSplit.pictures`.
        """
        return lambda epoch: caption_grouped(pictures, self.together, seed, epoch)

    def check_batches(self, batch_size: int, processes: int = 1) -> None:
        """See that no border between batches or shares of processes divides a group.

        Raises:
            TetherError: one does.
        """
        if batch_size % (self.together * processes):
            among = f" among {processes} processes" if processes > 1 else ""
            raise TetherError(
                f"A batch of {batch_size} captions cannot be divided into groups of {self.together} captions of a "
                f"picture{among}. Choose a batch_size that {self.together * processes} divides, or another together."
            )
