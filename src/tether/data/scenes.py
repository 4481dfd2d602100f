"""The built-in scenes: pictures of several things with exact masks and boxes, made on the fly from built-in drawings.

Things are drawings of icon-shift, cut out and laid on backgrounds in several sizes, tilted, mirrored, hiding parts of
each other. Nothing is stored: scene number n of a split is a function of the seed, the split and n. Training,
validation and test are drawn by different designers; the shifted tests have the same scenes as the in-distribution
test, in other looks. To the look "emoji", those of a vendor of emoji-shift are added whom icon-shift does not have.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tether.config import method
from tether.data import emoji_shift, icon_shift
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.dense import DenseBenchmark, DenseExample, DenseSplit
from tether.data.icon_shift import LOOKS
from tether.data.records import ImageRef, MadeImage
from tether.data.scenes_composing import MOST_OBJECTS, SMALLEST, VISIBLE, Studio, compose
from tether.data.targets import DenseTarget
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

CLASSES = (
    "book",
    "briefcase",
    "calendar",
    "camera",
    "envelope",
    "gear",
    "gift",
    "globe",
    "heart",
    "house",
    "laptop",
    "light bulb",
    "microphone",
    "paintbrush",
    "person",
    "phone",
    "pushpin",
    "shield",
    "trophy",
    "wrench",
)
"""Concrete things that do not look like each other, with drawings of training, validation and test in every fold."""
EMOJI_VENDOR = "noto"
"""Of emoji-shift: the one who draws in colour and is in no family of icon-shift, so nobody trains on it."""
MADE_BY = 1
"""Version of the way in which scenes are made: another one makes other pictures of the same seed."""


@method("scenes")
@dataclass(frozen=True, kw_only=True)
class ScenesConfig(DataConfig):
    """Which look is trained on, which third of the designers is tested, and how many pictures are made.

    Args:
        fold: which third of the designers is tested: 0, 1 or 2; the folds of icon-shift.
        train_on: the look of training, validation and in-distribution test: line, solid or colour.
        shifted: looks to test beside it; all others if not given.
        classes: what is shown, of the things that icon-shift trains on in this look.
        size: of the square pictures, in pixels.
        train_pictures: how many are made to train on.
        validation_pictures: how many to choose by.
        test_pictures: how many of each test.
        seed: of where and how things are placed.
        corruptions: "none", "mixture" (one more test domain, "corrupted") or "all"; pictures are corrupted at 224
            pixels, and the answers are scaled with them.

    Raises:
        TetherError: there is no such fold, look, class or choice, or numbers that are too small.
    """

    fold: int = 0
    train_on: str = "colour"
    shifted: Sequence[str] | None = None
    classes: Sequence[str] = CLASSES
    size: int = 160
    train_pictures: int = 800
    validation_pictures: int = 200
    test_pictures: int = 200
    seed: int = 0
    corruptions: CorruptedTests = "none"

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        icon_shift.IconShiftConfig(fold=self.fold, train_on=self.train_on, shifted=self.shifted)
        check_choice(self.corruptions)
        known = icon_shift.trained_classes(self.train_on)
        for name in self.classes:
            if name not in known:
                raise TetherError(f"classes: scenes have no thing {name!r}{near_misses(name, known)}")
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise TetherError(f"classes: expected two things or more, each once; found {list(self.classes)}.")
        if self.size < 64:
            raise TetherError(
                f"size: scenes need 64 pixels a side or more, to be told apart; found {self.size}."
            )
        for name in ("train_pictures", "validation_pictures", "test_pictures"):
            if getattr(self, name) < (least := 1 if name == "test_pictures" else 0):
                raise TetherError(f"{name} is {getattr(self, name)}; expected {least} or more.")

    def load(self) -> DenseBenchmark:
        """The benchmark; scenes are made when they are read.

        Raises:
            TetherError: a class has no drawing to train on, or the package lacks its pictures.
        """
        families = icon_shift.designers(self.fold, self.train_on)
        home = self.train_on
        looks = [home, *(self.shifted or (look for look in LOOKS if look != home))]
        tests = {
            look: self._split("test", look, look, families["test"], self.test_pictures) for look in looks
        }
        there = {look: split for look, split in tests.items() if split is not None}
        notes = [
            "Split by designer: nobody's drawings are in two of training, validation and test.",
            "Every test has the same scenes, in another look; a thing that a look lacks is replaced by another.",
            f"Of an object, at least {VISIBLE:.0%} and {SMALLEST} pixels can be seen; others are in no box, and their "
            "pixels are ignored.",
        ]
        if missing := [look for look in looks if look not in there]:
            notes.append(f"No designer of this fold draws these looks: {', '.join(missing)}.")
        train = self._split("train", home, "train", families["train"], self.train_pictures, needs_all=True)
        validation = self._split(
            "validation", home, "validation", families["validation"], self.validation_pictures
        )
        return DenseBenchmark(
            name=f"scenes {home} (fold {self.fold})",
            class_names=tuple(self.classes),
            answers=("semantic", "boxes", "masks"),
            background="background",
            train=train or DenseSplit("train", home, ()),
            validation=validation or DenseSplit("validation", home, ()),
            tests=there,
            in_distribution=home,
            notes=tuple(notes),
        )

    def _split(
        self, part: str, look: str, name: str, families: Set[str], count: int, *, needs_all: bool = False
    ) -> DenseSplit | None:
        """A split of `count` scenes; None where nobody draws any of the things in this look."""
        found = drawings(look, families, self.classes)
        lacking = [thing for thing in self.classes if not found[thing]]
        if needs_all and lacking:
            raise TetherError(
                f"There is no {look} drawing to train on of {', '.join(lacking)} in fold {self.fold}; leave them "
                "out of the classes."
            )
        if len(lacking) == len(self.classes):
            return None
        studio = Studio(tuple(tuple(found[thing]) for thing in self.classes), part, self.size, self.seed)
        root = f"scenes-{MADE_BY}: {look}, fold {self.fold} of {self.train_on}, {self.size} pixels, seed {self.seed}"
        examples = tuple(
            DenseExample(
                image := SceneImage(root, f"{part}/{number:05}", studio, number),
                SceneTarget(image),
                identity=f"{part}/{number:05}",
            )
            for number in range(count)
        )
        there = len(self.classes) - len(lacking)
        return DenseSplit(
            name=name,
            domain=look,
            examples=examples,
            convention=f"{there} of {len(self.classes)} classes occur, 2 to {MOST_OBJECTS} objects in a picture",
        )


@dataclass(frozen=True, slots=True)
class SceneImage(MadeImage):
    """The picture of a scene."""

    studio: Studio = field(compare=False, repr=False)
    number: int = field(compare=False, repr=False)

    def make(self) -> Image.Image:
        return Image.fromarray(compose(self.studio, self.number).pixels)


@dataclass(frozen=True, slots=True)
class SceneTarget:
    """The answer of a scene, made together with its picture."""

    image: SceneImage

    @property
    def key(self) -> Any:
        """The maker, the scene's number, and a hash of the names of the drawings."""
        return [self.image.root, self.image.name, self.image.studio.digest]

    def read(self, height: int, width: int) -> DenseTarget:
        return compose(self.image.studio, self.image.number).target


def drawings(look: str, families: Set[str], classes: Iterable[str]) -> dict[str, list[ImageRef]]:
    """Of each class the drawings in a look by some families of designers; for "emoji" the other vendor's too."""
    found: dict[str, list[ImageRef]] = {thing: [] for thing in classes}
    codes: dict[str, set[str]] = defaultdict(set)
    for image, thing, family in icon_shift.captioned(look):
        if thing in found:
            if look == "emoji":  # sets of emoji call their files by the emoji's name
                codes[thing].add(image.name.rpartition("/")[2].removesuffix(".webp"))
            if family in families:
                found[thing].append(image)
    if look == "emoji":
        for image, name, _ in emoji_shift.captioned(EMOJI_VENDOR):
            word = name.lower().replace(" ", "-")
            for thing in found:
                if word in codes[thing]:
                    found[thing].append(image)
    return found
