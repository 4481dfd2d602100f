"""Objects with boxes and masks in COCO's layout: a JSON file of images, categories and annotations, and a folder.

See https://cocodataset.org/#format-data (Lin et al., ECCV 2014); LVIS, Objects365, Open Images and most tools that
draw outlines write it too.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.dense import DenseBenchmark, DenseExample, cut, in_domains, in_role
from tether.data.domains import check_shifted
from tether.data.locating import image_inside, require_there
from tether.data.outlines import polygon_mask, run_length_mask, unpacked
from tether.data.records import distinct
from tether.data.targets import DenseTarget, Objects
from tether.errors import TetherError, near_misses
from tether.families import DataConfig


@dataclass(frozen=True, kw_only=True)
class CocoSet:
    """A file of annotations and its pictures.

    Args:
        annotations: a file such as `annotations/instances_val2017.json`.
        pictures: the folder or `.zip` of its pictures.
    """

    annotations: str
    pictures: str


@method("coco")
@dataclass(frozen=True, kw_only=True)
class CocoConfig(DataConfig):
    """Where the annotations and pictures are.

    Args:
        train: what is trained on; its categories are the classes.
        test: the in-distribution test: of COCO `val2017`, for the answers of its test pictures are not public.
        validation: what is chosen by; by default cut from `train`.
        validation_share: of the pictures of `train`, where they are cut from it.
        seed: of that cut.
        shifted: domain → test pictures that look different, of the same categories by name, or of some of them.
        domain: name of the look of `train`, `validation` and `test`.
        masks: whether outlines are read too; boxes alone are lighter.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all".

    Raises:
        TetherError: a shifted domain with the in-distribution name, or a share that leaves nothing.
    """

    train: CocoSet
    test: CocoSet
    validation: CocoSet | None = None
    validation_share: float = 0.05
    seed: int = 0
    shifted: Mapping[str, CocoSet] = field(default_factory=dict)
    domain: str = "in-distribution"
    masks: bool = True
    corruptions: CorruptedTests = "none"

    def __post_init__(self):
        check_choice(self.corruptions)
        check_shifted(self.shifted, self.domain)

    def load(self) -> DenseBenchmark:
        """Read the annotations, about 24,000 a second: COCO's training set takes half a minute.

        Raises:
            TetherError: a file that is none of COCO's, or contradicts itself; pictures that are missing; a shifted
                domain with another category.
        """
        first = _read(self.train, None, self.masks)
        names = first.names
        train = in_role(first.examples, "train")

        def others(place: CocoSet, role: str) -> tuple[DenseExample, ...]:
            return in_role(_read(place, names, self.masks).examples, role)

        if self.validation:
            validation = others(self.validation, "validation")
        else:
            train, validation = cut(train, self.validation_share, seed=self.seed)
        test = others(self.test, "test")
        shifted = {domain: others(place, f"shifted {domain}") for domain, place in self.shifted.items()}
        return DenseBenchmark(
            name=Path(self.train.annotations).stem,
            class_names=names,
            answers=("boxes", "masks") if self.masks else ("boxes",),
            **in_domains(self.domain, train, validation, test, shifted),
        )


@dataclass(frozen=True, eq=False)
class _Store:
    """All annotations of a file in flat arrays, an object after the other, so that 860,000 of them take 200 MB.

    Attributes:
        shape: of each object, the first of its outlines in `outline`, and after the last object their number.
        outline: of each outline, the first of its numbers in `numbers`, and after the last one their number.
        is_runs: whether an outline's numbers are run lengths; else they are x and y of corners.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    crowd: Any
    areas: Float[np.ndarray, " n"]
    shape: Int[np.ndarray, " n1"]
    outline: Int[np.ndarray, " m1"]
    is_runs: Any
    numbers: Float[np.ndarray, " k"]
    masks: bool


@dataclass(frozen=True, eq=False, slots=True)
class CocoTarget:
    """The objects of a picture, from `start` to `stop` in the arrays of its file."""

    store: _Store
    start: int
    stop: int
    size: tuple[int, int]
    """Height and width of the picture, as the file says."""

    @property
    def key(self) -> Any:
        """Labels, and a hash of everything else."""
        s, own = self.store, slice(self.start, self.stop)
        digest = hashlib.sha256()
        for values in (s.boxes[own], s.crowd[own], s.areas[own], self._numbers()):
            digest.update(np.ascontiguousarray(values).tobytes())
        return [s.labels[own].tolist(), digest.hexdigest()]

    def _numbers(self) -> np.ndarray:
        s = self.store
        return s.numbers[s.outline[s.shape[self.start]] : s.outline[s.shape[self.stop]]]

    def read(self, height: int, width: int) -> DenseTarget:
        """Boxes, and masks drawn from the outlines.

        Raises:
            TetherError: the file gives the picture another size, or run lengths that do not fill it.
        """
        if self.size != (height, width):
            raise TetherError(
                f"its annotations are for {self.size[1]} × {self.size[0]} pixels, but it has {width} × {height}."
            )
        s, own = self.store, slice(self.start, self.stop)
        masks = np.zeros((self.stop - self.start, height, width), bool) if s.masks else None
        for place in range(self.stop - self.start) if s.masks else ():
            number = self.start + place
            for outline in range(s.shape[number], s.shape[number + 1]):
                numbers = s.numbers[s.outline[outline] : s.outline[outline + 1]]
                if s.is_runs[outline]:
                    masks[place] |= run_length_mask(numbers.astype(np.int64), height, width)
                else:
                    masks[place] |= polygon_mask(numbers.reshape(-1, 2), height, width)
        count = self.stop - self.start
        return DenseTarget(
            objects=Objects(
                boxes=s.boxes[own],
                labels=s.labels[own],
                masks=masks,
                crowd=s.crowd[own],
                difficult=np.zeros(count, bool),
                areas=s.areas[own],
            )
        )


@dataclass(frozen=True)
class _Annotated:
    names: tuple[str, ...]
    examples: tuple[DenseExample, ...]


def _read(place: CocoSet, classes: Sequence[str] | None, masks: bool) -> _Annotated:
    """A file of annotations.

    Args:
        classes: names of the classes, of which the file's categories are some; None where the file says them.
    """
    path = place.annotations
    content = _json(path)
    lists = {}
    for name in ("images", "categories", "annotations"):
        if not isinstance(content.get(name), list) or not all(
            isinstance(item, dict) for item in content[name]
        ):
            raise TetherError(
                f"{path} has no list of {name!r}; expected COCO's form, with images, categories and annotations."
            )
        lists[name] = content[name]
    categories = {
        _whole(item, "id", f"{path}, categories[{i}]"): str(item.get("name") or "").strip()
        for i, item in enumerate(lists["categories"])
    }
    if len(categories) < len(lists["categories"]):
        raise TetherError(f"{path} gives the same id to several categories.")
    if classes is None:
        names = distinct(tuple(categories[number] for number in sorted(categories)))
    else:
        names = tuple(classes)
        for name in categories.values():
            if name not in names:
                raise TetherError(
                    f"{path} has a category {name!r} that is not trained on{near_misses(name, names)}"
                )
    label_of = {number: names.index(name) for number, name in categories.items()}

    images: dict[int, dict] = {}
    for i, item in enumerate(lists["images"]):
        number = _whole(item, "id", f"{path}, images[{i}]")
        if number in images:
            raise TetherError(f"{path} gives the id {number} to several images.")
        images[number] = item
    by_image: dict[int, list[dict]] = {number: [] for number in images}
    for i, item in enumerate(lists["annotations"]):
        number = _whole(item, "image_id", f"{path}, annotations[{i}]")
        if number not in images:
            raise TetherError(f"{path}, annotations[{i}]: there is no image {number}.")
        by_image[number].append(item)

    root = os.path.abspath(place.pictures)
    writer = _Writer(masks)
    examples, starts = [], []
    for number, item in images.items():
        where = f"{path}, image {number}"
        image = image_inside(root, str(item.get("file_name") or ""), where)
        size = (_whole(item, "height", where), _whole(item, "width", where))
        start = len(writer.labels)
        for annotation in by_image[number]:
            writer.add(annotation, label_of, size, f"{where}, annotation {annotation.get('id')}")
        starts.append((image, start, len(writer.labels), size))
    if not starts:
        raise TetherError(f"{path} has no images.")
    require_there(root, [image for image, *_ in starts])
    store = writer.store()
    examples = [
        DenseExample(image, CocoTarget(store, start, stop, size)) for image, start, stop, size in starts
    ]
    return _Annotated(names, tuple(examples))


class _Writer:
    """Gathers annotations into flat arrays."""

    def __init__(self, masks: bool):
        self.masks = masks
        self.boxes: list[list[float]] = []
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.areas: list[float] = []
        self.shape, self.outline = [0], [0]
        self.is_runs: list[bool] = []
        self.numbers: list[np.ndarray] = []

    def add(
        self, item: Mapping[str, Any], label_of: Mapping[int, int], size: tuple[int, int], where: str
    ) -> None:
        category = _whole(item, "category_id", where)
        if category not in label_of:
            raise TetherError(f"{where}: there is no category {category}.")
        box = item.get("bbox")
        if not _is_numbers(box) or len(box) != 4:
            raise TetherError(f"{where}: expected bbox as [left, top, width, height], found {box!r:.80}.")
        left, top, width, height = box
        self.boxes.append([left, top, left + width, top + height])
        self.labels.append(label_of[category])
        self.crowd.append(bool(item.get("iscrowd", 0)))
        area = item.get("area")
        self.areas.append(float(area) if isinstance(area, int | float) else float(width * height))
        if self.masks:
            self._add_outlines(item.get("segmentation"), size, where)
        self.shape.append(len(self.is_runs))

    def _add_outlines(self, segmentation: Any, size: tuple[int, int], where: str) -> None:
        if isinstance(segmentation, list) and segmentation:
            for polygon in segmentation:
                if not _is_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                    raise TetherError(
                        f"{where}: expected polygons as [x, y, x, y, x, y, …] of three corners or more, found "
                        f"{polygon!r:.80}."
                    )
                self._add_outline(np.array(polygon, np.float32), is_runs=False)
        elif isinstance(segmentation, dict) and segmentation.get("size") == list(size):
            counts = segmentation.get("counts")
            if isinstance(counts, str):
                try:
                    counts = unpacked(counts)
                except TetherError as error:
                    raise TetherError(f"{where}: {error}") from error
            elif not _is_numbers(counts):
                raise TetherError(f"{where}: its run lengths are neither a list nor a text.")
            largest = max(counts, default=0)
            exact = np.float32 if largest < 2**24 else np.float64
            self._add_outline(np.array(counts, exact), is_runs=True)
        elif isinstance(segmentation, dict):
            raise TetherError(
                f"{where}: its run lengths are for [height, width] = {segmentation.get('size')!r:.40}, but the image "
                f"has {list(size)}."
            )
        else:
            raise TetherError(f"{where} has no outline. Where there are boxes alone, set data.masks=false.")

    def _add_outline(self, numbers: np.ndarray, *, is_runs: bool) -> None:
        self.numbers.append(numbers)
        self.is_runs.append(is_runs)
        self.outline.append(self.outline[-1] + len(numbers))

    def store(self) -> _Store:
        return _Store(
            boxes=np.array(self.boxes, np.float32).reshape(-1, 4),
            labels=np.array(self.labels, np.int64),
            crowd=np.array(self.crowd, bool),
            areas=np.array(self.areas, np.float32),
            shape=np.array(self.shape, np.int64),
            outline=np.array(self.outline, np.int64),
            is_runs=np.array(self.is_runs, bool),
            numbers=np.concatenate(self.numbers) if self.numbers else np.zeros(0, np.float32),
            masks=self.masks,
        )


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise TetherError(f"Cannot read the annotations {path}: {error}.") from error
    if not isinstance(content, dict):
        raise TetherError(f"{path} holds {type(content).__name__}; expected COCO's form, an object.")
    return content


def _whole(item: Mapping[str, Any], name: str, where: str) -> int:
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TetherError(f"{where}: expected {name!r} as a whole number, found {value!r:.80}.")
    return value


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, and of none that is NaN, infinite or beyond 10⁹."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        return False
    return not value or (max(value) < 1e9 and min(value) > -1e9 and not any(map(math.isnan, value)))
