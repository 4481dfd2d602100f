"""Answers that are seen in pictures: a picture, the truth and the answer drawn over it, small enough for a page."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
SIDE = 176
"""Of a drawing at most, in pixels."""
_OPAQUE = 0.65


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One test picture, as it is, with the truth and with the answer over it.

    Attributes:
        picture, truth, answer: addresses of small pictures that hold their data, as `address_of` makes them.
        legend: what is seen in truth or answer, and its colour as "#rrggbb".
    """

    domain: str
    identity: str
    picture: str
    truth: str
    answer: str
    legend: tuple[tuple[str, str], ...]


def address_of(image: Image.Image, side: int = SIDE) -> str:
    """A small picture as an address that holds its data, at most `side` pixels to a side."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def colour_of(label: int) -> Colour:
    """A class's colour, far from those of the classes before it: PASCAL VOC's, the first after black for class 0."""
    code, channels = label + 1, [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (code >> channel & 1) << (7 - bit)
        code >>= 3
    return channels[0], channels[1], channels[2]


def with_classes(
    picture: Image.Image, labels: Int[np.ndarray, "h w"], clear: Collection[int] = ()
) -> Image.Image:
    """The picture in grey with the colour of each pixel's class over it.

    Args:
        labels: class of every pixel; below 0 it has none.
        clear: classes that get no colour, such as the background.
    """
    grey = np.asarray(picture.convert("L").convert("RGB")).astype(np.float32)
    result = grey.copy()
    for label in np.unique(labels).tolist():
        if label >= 0 and label not in clear:
            mask = labels == label
            result[mask] = (1 - _OPAQUE) * grey[mask] + _OPAQUE * np.array(colour_of(label), np.float32)
    return Image.fromarray(result.round().astype(np.uint8))


def with_objects(
    picture: Image.Image,
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    masks: Bool[np.ndarray, "n h w"] | None = None,
) -> Image.Image:
    """The picture in grey with the box of each object in the colour of its class, over its mask where it has one.

    Args:
        boxes: left, top, right, bottom in pixels of the picture.
        labels: the objects' classes; what comes later is drawn over what came before.
        masks: the objects' pixels.
    """
    of_pixels = np.full((picture.height, picture.width), -1)
    for number, label in enumerate(labels.tolist() if masks is not None else ()):
        of_pixels[masks[number]] = label
    result = with_classes(picture, of_pixels)
    draw, width = ImageDraw.Draw(result), max(1, round(max(picture.size) / SIDE * 2))
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        left, top, right, bottom = box
        draw.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of(label), width=width
        )
    return result


def legend_of(labels: Collection[int], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and colours of classes, ascending."""
    return tuple((names[label], "#{:02x}{:02x}{:02x}".format(*colour_of(label))) for label in sorted(labels))
