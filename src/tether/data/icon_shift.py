"""The built-in benchmark `icon-shift`: things in one look to train on, in six others to see what it cost.

`icon_shift/CARD.md` beside this file says what is in it, from whom, and under which licences.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tether._files import read_json
from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.emoji_shift import TEMPLATES
from tether.data.records import Benchmark, Example, ImageRef, Split
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

FOLDER = Path(__file__).with_name("icon_shift")
LOOKS = ("line", "solid", "duotone", "colour", "pixel", "hand-drawn", "emoji")
TRAINED_LOOKS = ("line", "solid", "colour")
"""Those of enough designers to train, validate and test on."""


@method("icon_shift")
@dataclass(frozen=True, kw_only=True)
class IconShiftConfig(DataConfig):
    """Which look is trained on, and which third of the designers is tested.

    Args:
        corruptions: "none", "mixture" (one more test domain, "corrupted", of corrupted pictures) or "all" (one
            for each of 75 corruptions); see `tether.data.corrupted_tests`.

    Raises:
        TetherError: there is no such fold, look or choice, or the look that is trained on is no shift.
    """

    fold: int = 0
    """Which third of the designers is tested: 0, 1 or 2."""
    train_on: str = "colour"
    """The look of training, validation and in-distribution test: line, solid or colour."""
    shifted: Sequence[str] | None = None
    """Looks to test beside it; all others if not given."""
    corruptions: CorruptedTests = "none"

    def load(self) -> Benchmark:
        return load(self)

    def __post_init__(self):
        if self.fold not in (0, 1, 2):
            raise TetherError(f"icon-shift has the folds 0, 1 and 2, not {self.fold}.")
        if self.train_on not in TRAINED_LOOKS:
            raise TetherError(
                f"icon-shift can be trained on {', '.join(TRAINED_LOOKS)}, not {self.train_on!r}: "
                "too few designers draw other looks to divide them."
            )
        for look in self.shifted or ():
            if look not in LOOKS:
                raise TetherError(f"icon-shift has no look {look!r}{near_misses(look, LOOKS)}")
            if look == self.train_on:
                raise TetherError(
                    f"The look {look!r} is trained on, so it cannot be a shifted test; leave it out."
                )
        check_choice(self.corruptions)


def load(config: IconShiftConfig) -> Benchmark:
    """The benchmark: one look for training, validation and in-distribution test, the others as shifted tests.

    No designer is in two of training, validation and test. The classes are the things that every fold trains on.
    """
    index = _index()
    trained, validated, tested = designers(config.fold, config.train_on).values()
    home = config.train_on
    looks = [home, *(config.shifted or (look for look in LOOKS if look != home))]
    classes = index["trained"][home]
    tests = {look: _split(look, look, tested, classes) for look in looks}
    missing = [look for look, split in tests.items() if not split.examples]
    notes = ["Split by designer: nobody's drawings are in two of training, validation and test."]
    if missing:
        notes.append(f"No designer of this fold draws these looks: {', '.join(missing)}.")
    return Benchmark(
        name=f"icon-shift {home} (fold {config.fold})",
        class_names=tuple(classes),
        templates=TEMPLATES,
        train=_split("train", home, trained, classes),
        validation=_split("validation", home, validated, classes),
        tests={look: split for look, split in tests.items() if split.examples},
        in_distribution=home,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing in one of the archives: its file, what it shows, and by which family of designers it is."""

    file: str
    thing: str
    family: str


def pictures(index: dict, look: str) -> list[Picture]:
    """The pictures of a look, as an `index.json` lists them: by class, their files, whose folders are the sets."""
    families = {prefix: family for family, entry in index["families"].items() for prefix in entry["sets"]}
    return [
        Picture(file, thing, families[file.split("/")[0]])
        for thing, files in index["pictures"][look].items()
        for file in files
    ]


def captioned(look: str) -> list[tuple[ImageRef, str, str]]:
    """Every picture of a look with its class and its family, for zero-shot evaluation over all folds."""
    return [
        (ImageRef(str(FOLDER / f"{look}.zip"), picture.file), picture.thing, picture.family)
        for picture in pictures(_index(), look)
    ]


def designers(fold: int, train_on: str) -> dict[str, Set[str]]:
    """The families by whom one trains, validates and tests, under these three names; nobody is in two of them."""
    index = _index()
    tested = {name for name, family in index["families"].items() if family["fold"] == fold}
    validated = set(index["validation"][train_on][fold])
    trained = index["families"].keys() - tested - validated
    return {"train": trained, "validation": validated, "test": tested}


def trained_classes(train_on: str) -> tuple[str, ...]:
    """The things that every fold trains on in a look."""
    return tuple(_index()["trained"][train_on])


def class_names() -> tuple[str, ...]:
    """Everything that is shown, be it trained on or not."""
    return tuple(_index()["classes"])


def _split(name: str, look: str, families: Set[str], classes: Sequence[str]) -> Split:
    labels = {thing: label for label, thing in enumerate(classes)}
    examples = tuple(
        Example(image=image, label=labels[thing], captions=(thing,), identity=f"{thing} by {family}")
        for image, thing, family in captioned(look)
        if family in families and thing in labels
    )
    return Split(
        name=name, domain=look, examples=examples, convention=f"scored over all {len(labels)} classes"
    )


@lru_cache(maxsize=1)
def _index() -> dict:
    """What the folder's `index.json` says.

    Raises:
        TetherError: the package was installed without the pictures.
    """
    if not (FOLDER / "index.json").is_file():
        raise TetherError(
            f"The pictures of icon-shift are missing from {FOLDER}; install tether again from a complete source."
        )
    return read_json(FOLDER / "index.json")
