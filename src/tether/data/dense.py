"""Pictures with answers for pixels and objects: what a data set for segmentation and detection is."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from tether.data.records import ImageRef, PictureBenchmark, PictureSplit, check_class_names, distinct
from tether.data.splitting import parts_of
from tether.data.targets import TargetRef
from tether.errors import TetherError, near_misses

Answer = Literal["semantic", "boxes", "masks"]
"""What targets hold: a class for every pixel; objects with boxes; and the objects' masks."""

_MOVING = (
    "crop_border",
    "simulated:background",
)  # alterations that move what is in a picture, without saying where to


@dataclass(frozen=True, slots=True)
class DenseExample:
    """A picture, and where its answer is.

    Args:
        identity: what it is a picture of (a street, a video); two pictures of one identity never lie on both sides of
            a train-test border. The picture's own name where nothing better is known.
    """

    image: ImageRef
    target: TargetRef
    identity: str = ""

    def __post_init__(self):
        if not self.identity:
            object.__setattr__(self, "identity", self.image.name)


@dataclass(frozen=True)
class DenseSplit(PictureSplit):
    """Pictures with answers that are used together.

    Args:
        domain: the look these pictures share.
        convention: how the split is scored, in words, for the report.
        alteration: what is done to each picture after reading, see `tether.data.alterations`; a corruption may change
            its size, and answers then with it.

    Raises:
        TetherError: a picture occurs twice, or the alteration moves what is in a picture.
    """

    name: str
    domain: str
    examples: tuple[DenseExample, ...]
    convention: str = "scored over all classes"
    alteration: str = ""

    def __post_init__(self):
        counts = Counter(example.image for example in self.examples)
        if twice := [str(image) for image, count in counts.items() if count > 1]:
            raise TetherError(f"Split {self.name!r} holds pictures more than once: {_some(twice)}.")
        if not self.allows(self.alteration):
            raise TetherError(
                f"The alteration {self.alteration!r} of split {self.name!r} moves what is in a picture away from its "
                "answers; corruptions and simulated shifts can be used here."
            )

    def allows(self, alteration: str) -> bool:
        return not alteration.startswith(_MOVING)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, identities and answers in order, domain and alteration; of an answer in a file its name.

        Equal on every machine that holds the same split; neither pixels nor mask files are read.
        """
        digest = hashlib.sha256(json.dumps((self.domain, self.alteration), ensure_ascii=True).encode())
        for example in self.examples:
            row = (example.image.name, example.identity, example.target.key)
            digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DenseBenchmark(PictureBenchmark):
    """Pictures with answers to train on, to choose by, and to test on in one or more domains.

    Args:
        class_names: of the classes that labels of objects, and the pixels of semantic masks, count.
        answers: what the targets hold, see `Answer`.
        background: name of the class "none of these" in semantic masks, which has the number after the last of
            `class_names`; "" where every pixel has a class or is ignored.
        train, validation: may both be empty where a benchmark is for evaluation only.
        tests: test splits by domain.
        in_distribution: the name in `tests` of the split that looks like the training data.
        notes: what a reader of the numbers must know about how the splits were made.

    Raises:
        TetherError: classes without a name or of the same name, unknown answers, a test split without a picture, or an
            identity or picture on two sides of the train, validation and test borders.
    """

    knows = "masks or boxes"
    name: str
    class_names: tuple[str, ...]
    answers: tuple[Answer, ...]
    train: DenseSplit
    validation: DenseSplit
    tests: Mapping[str, DenseSplit]
    in_distribution: str
    background: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        check_class_names(f"Benchmark {self.name!r}", self.semantic_names)
        distinct(self.semantic_names)
        if not self.class_names:
            raise TetherError(f"Benchmark {self.name!r} has no classes.")
        for answer in self.answers or ("",):
            if answer not in get_args(Answer):
                raise TetherError(
                    f"The answers of {self.name!r} are {answer!r}{near_misses(answer, get_args(Answer))}"
                )
        if self.in_distribution not in self.tests:
            raise TetherError(
                f"Benchmark {self.name!r} has no test split {self.in_distribution!r}"
                f"{near_misses(self.in_distribution, tuple(self.tests))}"
            )
        if empty := [name for name, split in self.tests.items() if not len(split)]:
            raise TetherError(f"Test splits of {self.name} without a single picture: {_some(empty)}.")
        for seen, unseen in (
            (self.train, (self.validation, *self.tests.values())),
            (self.validation, tuple(self.tests.values())),
        ):
            for split in unseen:
                if shared := (seen.identities & split.identities) or (seen.images & split.images):
                    raise TetherError(
                        f"{len(shared)} identities are in the split {seen.name!r} and in the split {split.name!r}: "
                        f"{_some(sorted(map(str, shared)))}. Numbers from such a test would be worth nothing; put "
                        "each identity on one side."
                    )

    @property
    def semantic_names(self) -> tuple[str, ...]:
        """The classes of semantic masks: those of objects under the same numbers, and last the background if any."""
        return (*self.class_names, self.background) if self.background else self.class_names


def cut(
    examples: Sequence[DenseExample], share: float, *, seed: int
) -> tuple[tuple[DenseExample, ...], tuple[DenseExample, ...]]:
    """Examples to train on and, of a share of the identities, to choose by.

    Raises:
        TetherError: a share that is negative or leaves nothing to train on.
    """
    parts = parts_of(dict.fromkeys(example.identity for example in examples), (share,), seed=seed)
    kept = tuple(example for example in examples if parts[example.identity] == 1)
    return kept, tuple(example for example in examples if parts[example.identity] == 0)


def in_domains(
    domain: str,
    train: tuple[DenseExample, ...],
    validation: tuple[DenseExample, ...],
    test: tuple[DenseExample, ...],
    shifted: Mapping[str, tuple[DenseExample, ...]],
) -> dict[str, Any]:
    """The splits of a `DenseBenchmark`, by the names of its arguments.

    Args:
        domain: the look of all but `shifted`.
        shifted: test pictures by domain.
    """
    tests = {domain: DenseSplit("test", domain, test)}
    tests |= {name: DenseSplit(f"test {name}", name, examples) for name, examples in shifted.items()}
    return {
        "train": DenseSplit("train", domain, train),
        "validation": DenseSplit("validation", domain, validation),
        "tests": tests,
        "in_distribution": domain,
    }


def in_role(examples: Iterable[DenseExample], role: str) -> tuple[DenseExample, ...]:
    """The examples with the role of their folder in their identities: equal names in two folders are two pictures."""
    return tuple(replace(example, identity=f"{role}/{example.identity}") for example in examples)


def _some(items: Sequence[str], count: int = 10) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
