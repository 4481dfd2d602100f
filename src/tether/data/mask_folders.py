"""Folders of pictures with folders of masks beside them, such as CamVid: a class for every pixel, in PNG files.

    root/images/0001.jpg     root/masks/0001.png        indices, a palette, or colours

The class table is a text file with a line for each class: its index in the masks, or its colour, and its name:

    0 <TAB> sky              or    128 128 128 <TAB> Sky        (as CamVid's label_colors.txt)

Lines of the same name are one class, in the order in which names first occur.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.dense import DenseBenchmark, DenseExample, cut, in_domains, in_role
from tether.data.domains import check_shifted
from tether.data.reading import list_pictures
from tether.data.records import ImageRef
from tether.data.targets import IGNORE, MaskCoding, MaskFile
from tether.errors import TetherError
from tether.families import DataConfig

_LINE = re.compile(r"(\d{1,3}[\s,]+\d{1,3}[\s,]+\d{1,3}|\d{1,5})[\t ,;]+(\S.*)")


@method("mask_folders")
@dataclass(frozen=True, kw_only=True)
class MaskFoldersConfig(DataConfig):
    """Where pictures and masks are. Every root holds the folders `images` and `masks`, paired by their files' names.

    Args:
        train: root of what is trained on.
        classes: the class table, see above.
        validation, test: roots of in-distribution pictures; what is not given is cut from `train`, picture by picture:
            for frames of a video, of which neighbours look alike, give both.
        shifted: domain → root of test pictures that look different.
        domain: name of the look of `train`, `validation` and `test`.
        images, masks: names of the two folders in a root; with "." the pictures lie in the root itself.
        mask_suffix: what a mask's name has after its picture's, such as CamVid's "_L".
        ignored: names in the class table that stand for no class: these pixels are not learned and not scored.
        background: which class of the table is "none of these": it is the last class then.
        validation_share, test_share: of the pictures of `train`, where they are cut from it.
        seed: of that cut.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all".

    Raises:
        TetherError: a shifted domain with the in-distribution name.
    """

    train: str
    classes: str
    validation: str | None = None
    test: str | None = None
    shifted: Mapping[str, str] = field(default_factory=dict)
    domain: str = "in-distribution"
    images: str = "images"
    masks: str = "masks"
    mask_suffix: str = ""
    ignored: Sequence[str] = ("void", "ignore", "unlabelled", "unlabeled")
    background: str = ""
    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0
    corruptions: CorruptedTests = "none"

    def __post_init__(self):
        check_choice(self.corruptions)
        check_shifted(self.shifted, self.domain)

    def load(self) -> DenseBenchmark:
        """List the folders; pictures and masks are read when they are used.

        Raises:
            TetherError: a missing folder, a picture without a mask, a class table of another form.
        """
        names, coding = class_table(Path(self.classes), self.ignored, self.background)

        def examples(root: str, role: str) -> tuple[DenseExample, ...]:
            place = Path(root)
            return in_role(
                paired(place / self.images, place / self.masks, coding, suffix=self.mask_suffix), role
            )

        train = examples(self.train, "train")
        if self.test:
            test = examples(self.test, "test")
        else:
            train, test = cut(train, self.test_share, seed=self.seed)
        if self.validation:
            validation = examples(self.validation, "validation")
        else:
            train, validation = cut(train, self.validation_share, seed=self.seed + 1)
        shifted = {domain: examples(root, f"shifted {domain}") for domain, root in self.shifted.items()}
        return DenseBenchmark(
            name=Path(self.train).resolve().name,
            class_names=names,
            background=self.background,
            answers=("semantic",),
            **in_domains(self.domain, train, validation, test, shifted),
        )


def paired(images: Path, masks: Path, coding: MaskCoding, *, suffix: str = "") -> tuple[DenseExample, ...]:
    """The pictures of a folder, each with the mask of its name in another one.

    Raises:
        TetherError: a folder is missing or without pictures, or pictures have no mask.
    """
    names = list_pictures(images)
    if not names:
        raise TetherError(f"{images} holds no pictures.")
    found: dict[str, str] = {}
    for name in list_pictures(masks):
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise TetherError(f"{masks} holds two masks of one name: {found[stem]} and {name}.")
        found[stem] = name
    examples, missing = [], []
    image_root, mask_root = str(images.resolve()), str(masks.resolve())
    for name in names:
        mask = found.get(os.path.splitext(name)[0] + suffix)
        if mask is None:
            missing.append(name)
        else:
            examples.append(
                DenseExample(ImageRef(image_root, name), MaskFile(ImageRef(mask_root, mask), coding))
            )
    if missing:
        wanted = os.path.splitext(missing[0])[0] + suffix + ".png"
        raise TetherError(
            f"{len(missing)} of {len(names)} pictures in {images} have no mask in {masks}, first {missing[0]!r}: "
            f"expected {wanted!r}. Add them, take these pictures out, or set mask_suffix if masks are called otherwise."
        )
    return tuple(examples)


def class_table(
    path: Path, ignored: Sequence[str] = (), background: str = ""
) -> tuple[tuple[str, ...], MaskCoding]:
    """Names of the classes without the background, and what the values of masks mean.

    Raises:
        TetherError: there is no such file, it is of another form, gives a value two names, or lacks the background.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise TetherError(f"Cannot read the class table {path}: {error}.") from error
    values: dict[int | tuple[int, int, int], str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        matched = _LINE.fullmatch(line.strip())
        if not matched:
            raise TetherError(
                f"{path}, line {number}: expected an index or a colour and a name, such as '3<TAB>road' or "
                f"'128 64 128<TAB>road'; found {line!r:.80}."
            )
        digits = [int(word) for word in re.split(r"[\s,]+", matched[1])]
        value = digits[0] if len(digits) == 1 else (digits[0], digits[1], digits[2])
        if max(digits) > (65535 if len(digits) == 1 else 255):
            raise TetherError(
                f"{path}, line {number}: an index is at most 65535, and a colour three values from 0 to 255."
            )
        if value in values:
            raise TetherError(f"{path}, line {number}: {matched[1]} stands for {values[value]!r} already.")
        values[value] = " ".join(matched[2].replace("_", " ").split())
    unlearned = {name.lower() for name in ignored}
    names = tuple(dict.fromkeys(name for name in values.values() if name.lower() not in unlearned))
    if background and background not in names:
        raise TetherError(f"{path} has no class {background!r}, which is to be the background.")
    names = tuple(name for name in names if name != background)
    if not names:
        raise TetherError(f"{path} has no classes.")
    label_of = {name: label for label, name in enumerate((*names, background))}
    labels = {value: label_of.get(name, IGNORE) for value, name in values.items()}
    return names, MaskCoding(
        indices={value: label for value, label in labels.items() if isinstance(value, int)},
        colours={value: label for value, label in labels.items() if isinstance(value, tuple)},
    )
