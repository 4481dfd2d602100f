"""Pictures with captions: what a data set for retrieval is, wherever it comes from."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from tether.data.records import ImageRef, PictureBenchmark, PictureSplit
from tether.errors import TetherError, near_misses


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A picture and the texts that describe it.

    Args:
        captions: at least one; each of them is a right answer to the picture, and the picture to each.
        identity: what it is a picture of; two pictures of one identity never lie on both sides of a train-test
            border. The picture's own name where nothing better is known.
        domain: the look or the collection that the picture belongs to ("photo", "coco", a vendor's name).

    Raises:
        TetherError: there is no caption, or one without a word.
    """

    image: ImageRef
    captions: tuple[str, ...]
    identity: str = ""
    domain: str = "in-distribution"

    def __post_init__(self):
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise TetherError(
                f"{self.image} has {'an empty' if self.captions else 'no'} caption; every picture of a caption data "
                "set is described by at least one text. Leave the picture out, or describe it."
            )
        if not self.identity:
            object.__setattr__(self, "identity", self.image.name)


@dataclass(frozen=True)
class CaptionSplit(PictureSplit):
    """Captioned pictures that are used together. Captions are numbered through, picture by picture.

    Args:
        domain: the look that the pictures share; by default that of the first.
        alteration: what is done to each picture after reading, see `tether.data.alterations`.

    Raises:
        TetherError: a picture occurs twice.
    """

    name: str
    examples: tuple[CaptionedImage, ...]
    domain: str = ""
    alteration: str = ""

    def __post_init__(self):
        if not self.domain and self.examples:
            object.__setattr__(self, "domain", self.examples[0].domain)
        counts = Counter(example.image for example in self.examples)
        if twice := [str(image) for image, count in counts.items() if count > 1]:
            raise TetherError(f"Split {self.name!r} holds pictures more than once: {_some(twice)}.")

    @property
    def convention(self) -> str:
        """How the split is scored, in words."""
        return f"{len(self.examples)} pictures and {len(self.captions)} captions, each among all of the other kind"

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """All captions, picture by picture."""
        return tuple(caption for example in self.examples for caption in example.captions)

    @cached_property
    def pictures(self) -> Int[np.ndarray, " captions"]:
        """For every caption the number of its picture: the groups of retrieval, and of the sampler."""
        counts = [len(example.captions) for example in self.examples]
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, captions, identities and domains in order; the pixels themselves are not read."""
        digest = hashlib.sha256(self.alteration.encode())
        for e in self.examples:
            row = (e.image.name, e.captions, e.identity, e.domain)
            digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class CaptionBenchmark(PictureBenchmark):
    """Captioned pictures to train on, to choose by, and to test on in one or more domains.

    Args:
        train, validation: may both be empty where a benchmark is for evaluation only.
        tests: by domain.
        in_distribution: the name in `tests` of the split that looks like the training data.
        notes: what a reader of the numbers must know about how the splits were made.

    Raises:
        TetherError: a test split without a picture, or an identity or picture on two sides of the train,
            validation and test borders.
    """

    knows = "captions"
    name: str
    train: CaptionSplit
    validation: CaptionSplit
    tests: Mapping[str, CaptionSplit]
    in_distribution: str
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.in_distribution not in self.tests:
            raise TetherError(
                f"{self.name} has no test pictures of its in-distribution domain {self.in_distribution!r}"
                f"{near_misses(self.in_distribution, tuple(self.tests))}"
            )
        if empty := [name for name, split in self.tests.items() if not len(split)]:
            raise TetherError(f"Test splits of {self.name} without a single picture: {_some(empty)}.")
        for seen, unseen in (
            (self.train, (self.validation, *self.tests.values())),
            (self.validation, tuple(self.tests.values())),
        ):
            identities, images = seen.identities, {example.image for example in seen.examples}
            for split in unseen:
                shared = [
                    example.identity
                    for example in split.examples
                    if example.identity in identities or example.image in images
                ]
                if shared:
                    raise TetherError(
                        f"{len(shared)} pictures of the split {split.name!r} show what the split {seen.name!r} shows: "
                        f"{_some(shared)}. Numbers from such a test would be worth nothing; put each identity on one "
                        "side."
                    )


def by_domain(examples: Sequence[CaptionedImage]) -> dict[str, CaptionSplit]:
    """A test split for every domain, in the order of the domains' names."""
    groups: dict[str, list[CaptionedImage]] = defaultdict(list)
    for example in examples:
        groups[example.domain].append(example)
    return {domain: CaptionSplit(f"test {domain}", tuple(groups[domain])) for domain in sorted(groups)}


def _some(items: Sequence[str], count: int = 10) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
