"""Masks of objects as COCO writes them: polygons, and run lengths, plain or packed into a text.

The format is that of the COCO API (`cocoapi/common/maskApi.h`): runs of 0 and 1 in turn, beginning with 0, down the
columns; packed, each number is written in groups of five bits, the lowest first, from the third on as the difference to
the number two places before.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from tether.errors import TetherError


def polygon_mask(
    corners: Float[np.ndarray, "corners 2"], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
    """The pixels whose centres lie inside a polygon (by the even-odd rule); what lies outside the picture is cut off.

    Exact for continuous coordinates: the rectangle from (2, 3) to (6, 8) has 4 × 5 pixels, and polygons that share an
    edge share no pixel. (Pillow's polygons hold the pixels that their border touches, too.)
    """
    mask = np.zeros((height, width), bool)
    x, y = corners.astype(np.float64).T
    left, right = np.ceil(np.array([x.min(), x.max()]) - 0.5).clip(0, width).astype(np.int64)
    top, bottom = np.ceil(np.array([y.min(), y.max()]) - 0.5).clip(0, height).astype(np.int64)
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    first = np.ceil(np.minimum(y, y2) - 0.5).clip(0, height).astype(np.int64)
    end = np.ceil(np.maximum(y, y2) - 0.5).clip(0, height).astype(np.int64)
    counts = end - first  # rows whose centre line an edge crosses
    edge = np.repeat(np.arange(len(x)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (x2 - x)[edge] / (y2 - y)[edge]
    at = np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5).clip(left, right).astype(np.int64)
    crossed = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossed, (row - top, at - left), 1)
    mask[top:bottom, left:right] = np.cumsum(crossed[:, :-1], axis=1) % 2
    return mask


def run_length_mask(counts: Int[np.ndarray, " runs"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of plain run lengths.

    Raises:
        TetherError: the runs do not fill height × width pixels.
    """
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise TetherError(
            f"its run lengths add up to {int(counts.sum()):,} pixels, and {width} × {height} are "
            f"{height * width:,}."
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def unpacked(text: str) -> Int[np.ndarray, " runs"]:
    """The run lengths that a text holds.

    Raises:
        TetherError: it is no such text.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise TetherError(f"it holds a run-length text with {character!r}, which is none of COCO's.")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            if len(counts) > 2:
                value += counts[-2]
            counts.append(value)
            value, shift = 0, 0
    if shift or not all(0 <= count < 2**40 for count in counts):
        raise TetherError("it holds a run-length text that is cut short or damaged.")
    return np.array(counts, np.int64)


def packed(counts: Sequence[int]) -> str:
    """The text of run lengths, which `unpacked` reads."""
    characters = []
    for place, count in enumerate(counts):
        value = int(count) - (int(counts[place - 2]) if place > 2 else 0)
        while True:
            code, value = value & 0x1F, value >> 5
            more = value != (-1 if code & 0x10 else 0)
            characters.append(chr(48 + (code | 0x20 if more else code)))
            if not more:
                break
    return "".join(characters)
