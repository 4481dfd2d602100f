"""What a data set is here: examples, splits of them, and a benchmark of splits with one to train on."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from tether.data.prompts import check_templates
from tether.errors import TetherError, is_utf8, near_misses


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where a picture is: `name` is its path, with forward slashes, inside `root`, a folder or a `.zip`
    archive.

    The name alone goes into hashes, so they do not depend on where a machine keeps the data.

    Raises:
        TetherError: `name` is absolute or leads out of `root`, or the path is not UTF-8.
    """

    root: str
    name: str

    def __post_init__(self):
        if not is_utf8(self.root + self.name):
            raise TetherError(
                f"The path of the picture {self.name!a} in {self.root!a} is not UTF-8, so it cannot be written into "
                f"any file of a run. Rename the file or folder (convmv does it for whole trees)."
            )
        parts = self.name.split("/")
        if (
            not self.name
            or "\\" in self.name
            or "\0" in self.name
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise TetherError(
                f"{self.name!r} is not a path inside {self.root}: expected folders and a file name divided "
                "by single forward slashes, without '.' and '..'."
            )

    @property
    def in_archive(self) -> bool:
        """Whether the root is a zip archive rather than a folder."""
        return self.root.lower().endswith(".zip")

    @property
    def path(self) -> str:
        """Where the file is; of a picture that lies in a folder."""
        return os.path.join(self.root, *self.name.split("/"))

    def __str__(self) -> str:
        return f"{self.root}{'!' if self.in_archive else '/'}{self.name}"


@dataclass(frozen=True, slots=True)
class MadeImage(ImageRef):
    """A picture that lies in no file and is made when it is read: `root` names its maker, `name` all that decides it.

    Whoever derives from it says in `make` how.
    """

    def make(self) -> Any:
        """The picture (a `PIL.Image.Image`, RGB), the same every time.

        Raises:
            TetherError: what it is made from is missing.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled picture.

    Attributes:
        label: index into the class names of its split, which are the benchmark's unless the split has its own.
        captions: any number of texts that describe this picture.
        identity: what it is a picture of. Two pictures of one identity never lie on both sides of a
            train-test border. The picture's own name where nothing better is known.
    """

    image: ImageRef
    label: int
    captions: tuple[str, ...] = ()
    identity: str = ""

    def __post_init__(self):
        if self.label < 0:
            raise TetherError(f"The label of {self.image} is {self.label}; labels count from 0.")
        if not self.identity:
            object.__setattr__(self, "identity", self.image.name)


class PictureSplit:
    """Pictures that are used together, whatever is known of them beside what they are pictures of.

    Attributes:
        name, domain: of the split, and of the look its pictures share ("photo", "sketch", a vendor's name).
        examples: each with its `image` and `identity`; what a task is to answer for them stands beside these.
        alteration: what is done to each picture after reading (see `tether.data.alterations`); "" means nothing.
        convention: how the split is scored, in words, for the report.
        digest: hash of all that decides the numbers but the pixels.
    """

    name: str
    domain: str
    examples: tuple[Any, ...]
    alteration: str
    convention: str
    digest: str

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.examples)

    @property
    def identities(self) -> set[str]:
        """The identities that occur."""
        return {example.identity for example in self.examples}

    @property
    def images(self) -> set[ImageRef]:
        """The pictures' places."""
        return {example.image for example in self.examples}

    @property
    def is_corruption(self) -> bool:
        """Whether the pictures are corrupted: a test of its own, neither a natural shift nor a means to choose by."""
        return self.alteration.startswith("corruption:")

    @property
    def has_other_classes(self) -> bool:
        """Whether the classes are others than those of the benchmark: not a shift of what is trained on."""
        return False

    def allows(self, alteration: str) -> bool:
        """Whether answers still hold for pictures that are altered so."""
        return True


class PictureBenchmark:
    """Pictures to train on, to choose by, and to test on in one or more domains.

    Attributes:
        train, validation: may both be empty where a benchmark is for evaluation only.
        tests: test splits by name.
        in_distribution: the name in `tests` of the split that looks like the training data.
        notes: what a reader of the numbers must know about how the splits were made.
        knows: what is known of its pictures, in a word, for messages.
    """

    knows: ClassVar[str] = "pictures alone"
    name: str
    train: PictureSplit
    validation: PictureSplit
    tests: Mapping[str, PictureSplit]
    in_distribution: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Split(PictureSplit):
    """Labelled pictures that are used together, and how they are scored.

    Attributes:
        domain: the look these pictures share ("photo", "sketch", a vendor's name).
        class_mask: the classes that compete in this split, ascending; None means all.
        groups: classes that count as one here: an answer anywhere in the label's group is right.
        convention: how the split is scored, in words, for the report.
        alteration: what is done to each picture after reading (see `tether.data.alterations`); "" means
            nothing.
        class_names: of the classes that labels and mask count, where the split has others than its benchmark;
            None means the benchmark's.
        templates: of the prompts for this split; None means the benchmark's.

    Raises:
        TetherError: a picture occurs twice, a label is outside the mask or has no class name, groups overlap, or a
            template is not of the form that prompts have.
    """

    name: str
    domain: str
    examples: tuple[Example, ...]
    class_mask: tuple[int, ...] | None = None
    convention: str = "scored over all classes"
    groups: tuple[tuple[int, ...], ...] = ()
    alteration: str = ""
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __post_init__(self):
        counts = Counter(example.image for example in self.examples)
        if len(counts) < len(self.examples):
            twice = [str(image) for image, count in counts.items() if count > 1]
            raise TetherError(f"Split {self.name!r} holds the same picture more than once: {_some(twice)}.")
        if self.class_mask is not None:
            if list(self.class_mask) != sorted(set(self.class_mask)):
                raise TetherError(
                    f"The class mask of split {self.name!r} must be ascending and without repetition."
                )
            if outside := self.labels - set(self.class_mask):
                raise TetherError(
                    f"Split {self.name!r} has labels outside its class mask: {_some(sorted(outside))}."
                )
        members = [label for group in self.groups for label in group]
        if len(members) != len(set(members)):
            raise TetherError(
                f"The groups of split {self.name!r} overlap; a class belongs to one group at most."
            )
        if self.class_names is not None:
            check_class_names(f"Split {self.name!r}", self.class_names, self.highest_class)
        if self.templates is not None:
            check_templates(self.templates)

    @property
    def highest_class(self) -> int:
        """The highest number among labels and mask; -1 where there is none."""
        return max(self.labels.union(self.class_mask or ()), default=-1)

    @property
    def has_other_classes(self) -> bool:
        return self.class_names is not None

    @property
    def labels(self) -> set[int]:
        """The labels that occur."""
        return {example.label for example in self.examples}

    def canonical_classes(self, class_count: int) -> tuple[int, ...]:
        """For every class, the class it counts as in this split, or -1 where it does not compete.

        A prediction (the best class that competes) is right if it counts as what the label counts as.
        """
        competing = set(range(class_count) if self.class_mask is None else self.class_mask)
        counts_as = {label: group[0] for group in self.groups for label in group}
        return tuple(
            counts_as.get(label, label) if label in competing else -1 for label in range(class_count)
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, labels, captions and identities in order, the domain, the scoring, the alteration, and
        the split's own class names and templates.

        Equal on every machine that holds the same split; the pixels themselves are not read.
        """
        digest = hashlib.sha256()
        head: tuple[Any, ...] = (self.domain, self.class_mask, self.groups, self.alteration)
        if self.class_names is not None or self.templates is not None:  # others have the hash of before
            head += (self.class_names, self.templates)
        rows = ((e.image.name, e.label, e.captions, e.identity) for e in self.examples)
        for row in (head, *rows):
            digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Benchmark(PictureBenchmark):
    """A labelled data set with its shifted test splits.

    Attributes:
        templates: prompt templates with one `{}` for the class name.
        train, validation: may both be empty where a benchmark is for evaluation only.
        tests: test splits by name.
        in_distribution: the name in `tests` of the split that looks like the training data.
        notes: what a reader of the numbers must know about how the splits were made.

    Raises:
        TetherError: no test split; a class without a training picture; a class without a name; a label
            without a class; an identity or a picture on two sides of the train, validation and test borders.
    """

    knows = "classes"
    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: Split
    validation: Split
    tests: Mapping[str, Split]
    in_distribution: str
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self):
        check_templates(self.templates)
        check_class_names(f"Benchmark {self.name!r}", self.class_names)
        if self.in_distribution not in self.tests:
            raise TetherError(
                f"Benchmark {self.name!r} has no test split {self.in_distribution!r}"
                f"{near_misses(self.in_distribution, tuple(self.tests))}"
            )
        for split in (self.train, self.validation, *self.tests.values()):
            check_class_names(f"Split {split.name!r}", self.class_names_of(split), split.highest_class)
        for split in (self.train, self.validation, self.tests[self.in_distribution]):
            if split.class_names is not None or split.templates is not None:
                raise TetherError(
                    f"Split {split.name!r} has class names or templates of its own; only shifted tests may. Give "
                    f"them to the benchmark, by which training, validation and the in-distribution test go."
                )
        if empty := [name for name, split in self.tests.items() if not len(split)]:
            raise TetherError(f"Test splits without a single picture: {_some(empty)}.")
        if len(self.train):
            self._check_training()

    def class_names_of(self, split: Split) -> tuple[str, ...]:
        """The classes among which pictures of a split are told apart: its own, or the benchmark's."""
        return self.class_names if split.class_names is None else split.class_names

    def templates_of(self, split: Split) -> tuple[str, ...]:
        """The templates of a split's prompts: its own, or the benchmark's."""
        return self.templates if split.templates is None else split.templates

    def _check_training(self):
        trained = set(
            range(len(self.class_names)) if self.train.class_mask is None else self.train.class_mask
        )
        if empty := sorted(trained - self.train.labels):
            names = [self.class_names[label] for label in empty]
            raise TetherError(
                f"{len(empty)} of {len(trained)} classes have no training picture: {_some(names)}. Add "
                "pictures, or leave these classes out (extra_classes='leave out' does, where only shifted domains "
                "have them)."
            )
        seen = (("training", self.train), ("validation", self.validation))
        unseen = [
            ("validation", self.validation),
            *((f"test {name!r}", split) for name, split in self.tests.items()),
        ]
        for seen_name, seen_split in seen:
            for name, split in unseen:
                if split is seen_split:
                    continue
                shared = (seen_split.identities & split.identities) or (seen_split.images & split.images)
                if shared:
                    raise TetherError(
                        f"{len(shared)} identities are in the {seen_name} split and in the {name} split: "
                        f"{_some(sorted(map(str, shared)))}. Numbers from such a test would be worth "
                        "nothing; put each identity on one side."
                    )


def check_class_names(owner: str, names: Sequence[str], highest: int = -1) -> None:
    """Refuse classes without a name.

    Args:
        owner: whose classes they are, for the message.
        highest: number of a class that has to be among them.

    Raises:
        TetherError: a name is blank, or there are too few.
    """
    if blank := [label for label, name in enumerate(names) if not name.strip()]:
        raise TetherError(f"{owner} has classes without a name: {_some(blank)}.")
    if highest >= len(names):
        raise TetherError(f"{owner} uses class {highest}, but there are {len(names)}.")


def distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """The class names, unchanged, if no two classes share one.

    Raises:
        TetherError: a name is used twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise TetherError(
            f"Several classes have the same name: {_some(twice)}. A prompt cannot tell them apart; give each "
            "its own."
        )
    return names


def _some(items: Sequence, count: int = 10) -> str:
    """The first few items and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more
