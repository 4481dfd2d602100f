"""What is to be answered for a picture besides one label: a class for every pixel, or objects with boxes and masks.

A benchmark holds references to answers (`TargetRef`), not the answers: 100,000 masks are read when they are used.

Coordinates are continuous: the pixel in column i and row j covers [i, i + 1] × [j, j + 1], so the box of one pixel has
an area of 1 and the box of a mask ends after its last pixel.
"""

import hashlib
import io
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from tether.data.reading import MAX_PIXELS, read_bytes
from tether.data.records import ImageRef
from tether.errors import TetherError

IGNORE = -1
"""Of a semantic mask: the pixel has no class, or none that anybody is to learn or to be judged by."""

_UNKNOWN = -2


@dataclass(frozen=True, eq=False)
class Objects:
    """The n objects of a picture.

    Args:
        boxes: left, top, right, bottom in pixels of the picture.
        labels: index of each object's class.
        masks: the pixels of each object that can be seen; None where only boxes are known.
        crowd: whether a box holds a group that nobody told apart (COCO's `iscrowd`): answers in it are not counted.
        difficult: whether an object is neither to be found nor wrong to find (PASCAL VOC's `difficult`).
        areas: in pixels, by which COCO tells small from large: of the mask, else of the box.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"] | None
    crowd: Bool[np.ndarray, " n"]
    difficult: Bool[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class DenseTarget:
    """What is known of a picture: a class or `IGNORE` for every pixel, objects, or both."""

    semantic: Int[np.ndarray, "h w"] | None = None
    objects: Objects | None = None


@runtime_checkable
class TargetRef(Protocol):
    """Where an answer is and how it is decoded; light enough to be held for every picture of a data set.

    Attributes:
        key: what decides the answer, as plain data (names, numbers) that goes into the hash of a split; of an answer
            in a file its name, as for pictures.
    """

    @property
    def key(self) -> Any: ...

    @abstractmethod
    def read(self, height: int, width: int) -> DenseTarget:
        """The answer for the picture, which has height × width pixels.

        Raises:
            TetherError: it is missing or damaged, says something unknown, or is of another size than the picture.
        """
        ...


@dataclass(frozen=True, eq=False)
class MaskCoding:
    """How the values of a mask's file become classes: by index (8 or 16 bits, or a palette), or by colour.

    Args:
        indices: value → class, or `IGNORE`.
        colours: (red, green, blue) → class, or `IGNORE`; used where no index is given, and for RGB files.
    """

    indices: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the coding."""
        coding = [sorted(self.indices.items()), sorted(self.colours.items())]
        return hashlib.sha256(json.dumps(coding).encode()).hexdigest()

    def decode(self, image: Image.Image) -> Int[np.ndarray, "h w"]:
        """The class of every pixel.

        Raises:
            TetherError: a value or colour that the coding does not know, or a kind of file that it cannot be read from.
        """
        if self.indices and image.mode in ("P", "L", "1", "I;16", "I"):
            values = np.asarray(image)
            if values.dtype.kind != "u" and (values.min() < 0 or values.max() > 0xFFFF):
                raise TetherError("its values do not fit in 16 bits.")
            values = values.astype(np.uint16, copy=False)
            labels = self._by_index[values]
            self._refuse_unknown(labels, values, "value")
        elif self.colours and image.mode != "F" and not image.mode.startswith("I"):
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
            values = red << 16 | green << 8 | blue
            codes, known = self._by_colour
            place = np.minimum(np.searchsorted(codes, values), len(codes) - 1)
            labels = np.where(codes[place] == values, known[place], np.int16(_UNKNOWN))
            self._refuse_unknown(labels, values, "colour")
        else:
            wanted = "indices (a grey or palette picture)" if self.indices else "colours"
            raise TetherError(f"it is of Pillow's mode {image.mode!r}, but {wanted} were expected.")
        return labels

    @cached_property
    def _by_index(self) -> Int[np.ndarray, "65536"]:
        table = np.full(2**16, _UNKNOWN, np.int16)
        for value, label in self.indices.items():
            table[value] = label
        return table

    @cached_property
    def _by_colour(self) -> tuple[Int[np.ndarray, " colours"], Int[np.ndarray, " colours"]]:
        """Codes of the colours, ascending, and their classes."""
        pairs = sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in self.colours.items())
        codes, labels = zip(*pairs, strict=True)
        return np.array(codes, np.int32), np.array(labels, np.int16)

    @staticmethod
    def _refuse_unknown(labels: np.ndarray, values: np.ndarray, what: str) -> None:
        unknown = labels == _UNKNOWN
        if not unknown.any():
            return
        found = np.unique(values[unknown]).tolist()
        shown = [f"({v >> 16}, {v >> 8 & 255}, {v & 255})" if what == "colour" else str(v) for v in found]
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        raise TetherError(
            f"it holds the {what} {', '.join(shown[:5])}{more} on {int(unknown.sum()):,} pixels, which stands for no "
            f"class. Add it to the classes, or name it as one to ignore."
        )


@dataclass(frozen=True)
class MaskFile:
    """A semantic mask in a picture file of its own.

    Args:
        file: where it is.
        coding: what its values mean; one object shared by all masks of a data set.
    """

    file: ImageRef
    coding: MaskCoding

    @property
    def key(self) -> Any:
        return [self.file.name, self.coding.digest]

    def read(self, height: int, width: int) -> DenseTarget:
        """The mask's classes, int16.

        Raises:
            TetherError: as for `TargetRef.read`; the message names the file.
        """
        try:
            with _open_mask(self.file) as image:
                if image.size != (width, height):
                    raise TetherError(
                        f"it has {image.width} × {image.height} pixels, and its picture {width} × {height}."
                    )
                image.load()
                return DenseTarget(semantic=self.coding.decode(image))
        except TetherError as error:
            raise TetherError(f"Cannot read the mask {self.file}: {error}") from error
        except Exception as error:  # decoders meet broken files with every kind of exception
            raise TetherError(
                f"Cannot read the mask {self.file}: it is damaged, cut short or no picture "
                f"({type(error).__name__}: {error})."
            ) from error


def _open_mask(file: ImageRef) -> Image.Image:
    """A mask's file with its header read; only lossless formats, for a JPEG's values are not those that were saved."""
    data = read_bytes(file)
    if data[:2] == b"\xff\xd8":
        raise TetherError("it is a JPEG, which changes values; masks are PNG, BMP, TIFF or GIF.")
    image = Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF", "GIF"))
    if image.width * image.height > MAX_PIXELS:
        raise TetherError(f"it has more pixels than the limit of {MAX_PIXELS:,}.")
    return image


@dataclass(frozen=True, eq=False)
class Boxes:
    """Objects of which only boxes are known, at hand.

    Args:
        boxes: left, top, right, bottom.
        labels: index of each object's class.
        difficult: see `Objects`.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    difficult: Bool[np.ndarray, " n"]

    @property
    def key(self) -> Any:
        return [self.boxes.tolist(), self.labels.tolist(), self.difficult.tolist()]

    def read(self, height: int, width: int) -> DenseTarget:
        return DenseTarget(
            objects=Objects(
                boxes=self.boxes,
                labels=self.labels,
                masks=None,
                crowd=np.zeros(len(self.labels), bool),
                difficult=self.difficult,
                areas=areas_of(self.boxes),
            )
        )


def areas_of(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Areas of boxes in pixels; below 0 where right lies left of left."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of a mask, which must have one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
