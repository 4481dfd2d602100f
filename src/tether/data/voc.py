"""PASCAL VOC's layout (Everingham et al., IJCV 2010): boxes in XML files, or a class for every pixel in palette PNGs.

root/JPEGImages/ID.jpg
root/ImageSets/Main/train.txt            IDs, a line for each          (detection)
root/Annotations/ID.xml
root/ImageSets/Segmentation/train.txt                                  (segmentation)
root/SegmentationClass/ID.png            0 background, 1 to 20 classes, 255 ignored
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.dense import DenseBenchmark, DenseExample, cut, in_domains, in_role
from tether.data.domains import check_shifted
from tether.data.locating import require_there
from tether.data.reading import read_bytes
from tether.data.records import ImageRef
from tether.data.targets import IGNORE, Boxes, MaskCoding, MaskFile, TargetRef
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)
Answers = Literal["boxes", "semantic"]
_LARGEST_XML = 4 * 2**20


@method("voc")
@dataclass(frozen=True, kw_only=True)
class VocConfig(DataConfig):
    """Where pictures and annotations are, and which of them are read.

    Args:
        root: a folder such as `VOCdevkit/VOC2012`.
        answers: "boxes" of objects, or "semantic" masks.
        train, test: names of the lists in `ImageSets`; of VOC 2012 the test's answers are not public, so by default
            `val` is the test.
        validation: name of the list to choose by; by default pictures are cut from `train`.
        validation_share: of the pictures of `train`, where they are cut from it.
        seed: of that cut.
        shifted: domain → another root of the same layout, with a list of the name `test`, such as Clipart1k or
            Watercolor2k (Inoue et al., CVPR 2018), which name some or all of the classes.
        domain: name of the look of `root`.
        classes: names as in the XML files, in the order of the masks' values from 1.
        one_based: whether boxes count pixels from 1 and hold the last one, as VOC's do; then 1 is taken from left and
            top.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all".

    Raises:
        TetherError: there is no such choice, or a shifted domain has the in-distribution name.
    """

    root: str
    answers: Answers = "boxes"
    train: str = "train"
    test: str = "val"
    validation: str | None = None
    validation_share: float = 0.1
    seed: int = 0
    shifted: Mapping[str, str] = field(default_factory=dict)
    domain: str = "photo"
    classes: Sequence[str] = CLASSES
    one_based: bool = True
    corruptions: CorruptedTests = "none"

    def __post_init__(self):
        check_choice(self.corruptions)
        if self.answers not in (known := get_args(Answers)):
            raise TetherError(f"answers is {self.answers!r}{near_misses(str(self.answers), known)}")
        check_shifted(self.shifted, self.domain)

    def load(self) -> DenseBenchmark:
        """Read lists and XML files (about 8,000 a second); pictures and masks are read when they are used.

        Raises:
            TetherError: a list or a picture is missing, an XML file is damaged, or names an unknown class.
        """

        def examples(root: str, name: str, role: str) -> tuple[DenseExample, ...]:
            return in_role(_examples(self, root, name), role)

        train = examples(self.root, self.train, "photo")
        test = examples(self.root, self.test, "photo")
        if self.validation:
            validation = examples(self.root, self.validation, "photo")
        else:
            train, validation = cut(train, self.validation_share, seed=self.seed)
        shifted = {
            domain: examples(root, self.test, f"shifted {domain}") for domain, root in self.shifted.items()
        }
        return DenseBenchmark(
            name=Path(self.root).resolve().name,
            class_names=tuple(self.classes),
            background="background" if self.answers == "semantic" else "",
            answers=(self.answers,),
            **in_domains(self.domain, train, validation, test, shifted),
        )


def _examples(config: VocConfig, root: str, name: str) -> list[DenseExample]:
    place = os.path.abspath(root)
    semantic = config.answers == "semantic"
    path = Path(place, "ImageSets", "Segmentation" if semantic else "Main", f"{name}.txt")
    try:
        ids = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TetherError(f"Cannot read the list {path}: {error}.") from error
    if not ids:
        raise TetherError(f"The list {path} names no pictures.")
    count = len(config.classes)
    coding = MaskCoding({0: count, 255: IGNORE, **{label + 1: label for label in range(min(count, 254))}})
    examples = []
    for one in ids:
        target: TargetRef
        if semantic:
            target = MaskFile(ImageRef(place, f"SegmentationClass/{one}.png"), coding)
        else:
            target = read_boxes(ImageRef(place, f"Annotations/{one}.xml"), config.classes, config.one_based)
        examples.append(DenseExample(ImageRef(place, f"JPEGImages/{one}.jpg"), target, identity=one))
    require_there(place, [example.image for example in examples])
    if semantic:
        require_there(place, [example.target.file for example in examples])
    return examples


def read_boxes(file: ImageRef, classes: Sequence[str], one_based: bool = True) -> Boxes:
    """The objects of an XML file.

    Raises:
        TetherError: it is missing, damaged or of another form, or names an unknown class.
    """
    try:
        tree = parse_xml(read_bytes(file))
        boxes, labels, difficult = [], [], []
        for item in tree.iter("object"):
            name = (item.findtext("name") or "").strip()
            if name not in classes:
                raise TetherError(
                    f"it names a class {name!r} that is not trained on{near_misses(name, classes)}"
                )
            corners = [
                float(item.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            if not np.isfinite(corners).all():
                raise TetherError(f"the box of {name!r} lacks a side; expected xmin, ymin, xmax and ymax.")
            boxes.append([corners[0] - one_based, corners[1] - one_based, corners[2], corners[3]])
            labels.append(classes.index(name))
            difficult.append((item.findtext("difficult") or "0").strip() == "1")
    except (TetherError, ValueError) as error:
        raise TetherError(f"Cannot read the annotation {file}: {error}") from error
    return Boxes(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool)
    )


def parse_xml(data: bytes) -> ElementTree.Element:
    """An XML document that defines nothing: a document type, and with it every entity, is refused.

    Raises:
        TetherError: it has a document type, is too large, or is not well-formed.
    """
    if len(data) > _LARGEST_XML:
        raise TetherError(f"it has {len(data):,} bytes, more than the limit of {_LARGEST_XML:,}.")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_) -> None:
        raise TetherError(
            "it has a document type (<!DOCTYPE …>), which annotations have no need of; take it out."
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise TetherError(f"it is not well-formed XML ({error}).") from error
    return builder.close()
