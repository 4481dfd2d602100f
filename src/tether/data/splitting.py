"""Cutting examples into train, validation and test by identity, class by class."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from tether.data.records import Example, PictureSplit
from tether.data.seeds import derived_seed
from tether.errors import TetherError

AnySplit = TypeVar("AnySplit", bound=PictureSplit)


def split_by_identity(
    examples: Sequence[Example], shares: Sequence[float], *, seed: int = 0
) -> tuple[tuple[Example, ...], ...]:
    """Parts with the given shares of every class's identities, and last the rest; no identity is in two
    parts.

    A class's identities are ordered by a hash of (seed, identity), so a class that grows or goes changes no
    other class's parts. The rest always keeps at least one identity of every class; in every part the
    examples stay in their order.

    Raises:
        TetherError: shares that are negative or leave no rest, or an identity with two labels.
    """
    _check(shares)
    label_of: dict[str, int] = {}
    for example in examples:
        if label_of.setdefault(example.identity, example.label) != example.label:
            raise TetherError(
                f"The identity {example.identity!r} has the labels {label_of[example.identity]} and "
                f"{example.label}; an identity belongs to one class."
            )
    by_class: dict[int, list[str]] = defaultdict(list)
    for identity, label in label_of.items():
        by_class[label].append(identity)
    part_of: dict[str, int] = {}
    for identities in by_class.values():
        part_of.update(parts_of(identities, shares, seed=seed))
    return tuple(
        tuple(example for example in examples if part_of[example.identity] == part)
        for part in range(len(shares) + 1)
    )


def parts_of(identities: Iterable[str], shares: Sequence[float], *, seed: int = 0) -> dict[str, int]:
    """The part of each identity: 0, 1, … for the given shares, and `len(shares)` for the rest, which is never empty.

    Raises:
        TetherError: shares that are negative or leave no rest.
    """
    _check(shares)
    ordered = sorted(identities, key=lambda identity: (derived_seed(seed, identity), identity))
    part_of, start = dict.fromkeys(ordered, len(shares)), 0
    for part, share in enumerate(shares):
        end = min(start + round(share * len(ordered)), len(ordered) - 1)
        part_of.update(dict.fromkeys(ordered[start:end], part))
        start = end
    return part_of


def thinned(split: AnySplit, most: int | None) -> AnySplit:
    """At most so many pictures of a split, in its order: at equal distances in the list of its classes one after
    another, so that each keeps its share; without classes in the list as it is. None for all of them.
    """
    size = len(split)
    if most is None or size <= most:
        return split
    by_class = sorted(range(size), key=lambda place: getattr(split.examples[place], "label", 0))
    chosen = sorted(by_class[number * size // most] for number in range(most))
    return replace(split, examples=tuple(split.examples[place] for place in chosen))


def _check(shares: Sequence[float]) -> None:
    if any(share < 0 for share in shares) or sum(shares) >= 1:
        raise TetherError(
            f"The shares {list(shares)} must not be negative and must leave something to train on."
        )
