"""ADE20K as the scene parsing benchmark has it: 150 classes for every pixel (Zhou et al., CVPR 2017).

    root/images/training/*.jpg      root/annotations/training/*.png      20,210 pictures
    root/images/validation/*.jpg    root/annotations/validation/*.png    2,000, which results are published on
    root/objectInfo150.txt          names of the classes

A mask's value 0 is no class and is ignored; 1 to 150 are the classes.
"""

from dataclasses import dataclass
from pathlib import Path

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.dense import DenseBenchmark, DenseSplit, cut, in_role
from tether.data.mask_folders import paired
from tether.data.targets import IGNORE, MaskCoding
from tether.errors import TetherError
from tether.families import DataConfig


@method("ade20k")
@dataclass(frozen=True, kw_only=True)
class Ade20kConfig(DataConfig):
    """Where the archive `ADEChallengeData2016` was unpacked.

    Args:
        root: its folder.
        validation_share: of the training pictures, to choose by; the 2,000 of `validation` are the test.
        seed: of that cut.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all".
    """

    root: str
    validation_share: float = 0.05
    seed: int = 0
    corruptions: CorruptedTests = "none"

    def __post_init__(self):
        check_choice(self.corruptions)

    def load(self) -> DenseBenchmark:
        """List the folders; pictures and masks are read when they are used.

        Raises:
            TetherError: a folder or the list of names is missing, or a picture has no mask.
        """
        root = Path(self.root)
        names = _names(root / "objectInfo150.txt")
        coding = MaskCoding({0: IGNORE, **{label + 1: label for label in range(len(names))}})
        given, test = (
            in_role(paired(root / "images" / part, root / "annotations" / part, coding), part)
            for part in ("training", "validation")
        )
        train, validation = cut(given, self.validation_share, seed=self.seed)
        return DenseBenchmark(
            name="ADE20K",
            class_names=names,
            answers=("semantic",),
            train=DenseSplit("train", "photo", train),
            validation=DenseSplit("validation", "photo", validation),
            tests={"photo": DenseSplit("test", "photo", test, f"scored over all {len(names)} classes")},
            in_distribution="photo",
            notes=("The test is the published validation set; validation pictures are cut from training.",),
        )


def _names(path: Path) -> tuple[str, ...]:
    """The first word or words for each class, from the last column of a table with a line of heads."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TetherError(
            f"Cannot read the names of the classes from {path}: {error}. It is in the archive ADEChallengeData2016.zip."
        ) from error
    names = []
    for number, line in enumerate(lines[1:], start=1):
        index, *_, name = line.split("\t")
        if index.strip() != str(number) or not name.strip():
            raise TetherError(
                f"{path}: expected class {number} and its name in columns divided by tabs, found {line!r:.80}."
            )
        names.append(name.replace(";", ",").split(",")[0].strip())
    return _told_apart(names)


def _told_apart(names: list[str]) -> tuple[str, ...]:
    """Names with a number behind the second of a name and later ones, as ADE20K has two kinds of "screen"."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)
