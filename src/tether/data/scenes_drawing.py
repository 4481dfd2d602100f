"""Drawings on white cut out: which pixels are the thing, and how they look before any background."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from tether.data.reading import read_image
from tether.data.records import ImageRef

_WHITE = 245
"""A pixel is outside only if its darkest channel is at least this light."""
_GAP = 5
"""Gaps in an outline narrower than this, in pixels of a drawing, do not let the outside in."""


@lru_cache(maxsize=4096)
def cut_out(ref: ImageRef) -> Image.Image:
    """The drawing as "RGBa" (colours multiplied by alpha), cropped to what is drawn; 50 kB for one of icon-shift.

    Raises:
        TetherError: it cannot be read.
    """
    rgb = np.asarray(read_image(ref))
    inside = silhouette(rgb)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):  # nothing but white: no thing is drawn
        return Image.new("RGBa", (1, 1))
    rgba = _faded(rgb, inside)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return Image.frombytes("RGBa", rgba.shape[1::-1], rgba.round().astype(np.uint8).tobytes())


def silhouette(rgb: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of the thing: all that white from the border does not reach.

    So the interior of a line drawing belongs to it, white as it is. Outlines are closed over gaps of a few pixels
    first (a morphological closing: dark pixels are widened, the outside is filled, and widened back by as much).
    """
    height, width = rgb.shape[:2]
    dark = np.zeros((height + 2 * _GAP, width + 2 * _GAP), np.uint8)
    dark[_GAP:-_GAP, _GAP:-_GAP] = np.where(rgb.min(2) < _WHITE, 255, 0)
    widened = np.asarray(Image.fromarray(dark).filter(ImageFilter.MaxFilter(_GAP))) > 0
    reached = _reached_from_corner(~widened)
    outside = Image.fromarray(np.where(reached, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(_GAP))
    return ((dark > 0) | (np.asarray(outside) == 0))[_GAP:-_GAP, _GAP:-_GAP]


def _reached_from_corner(free: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The free pixels that a path along rows and columns joins to the first one, which is free.

    Whole runs of free pixels are filled at a time, of rows and columns in turn, until nothing changes: about ten turns.
    """
    runs = []  # the number of each pixel's run, in rows and in columns; it ends at a wall or the picture's border
    for turned in (free, free.T):
        starts = ~turned
        starts[:, 0] = True
        runs.append(np.cumsum(starts.ravel()).reshape(turned.shape))
    reached = np.zeros_like(free)
    reached[0, 0] = True
    while True:
        before = reached.sum()
        for numbers in (runs[0], runs[1].T):
            hit = np.zeros(free.size + 1, bool)
            hit[numbers[reached]] = True
            reached = free & hit[numbers]
        if reached.sum() == before:
            return reached


def _faded(rgb: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA whose edge pixels, drawn as a mixture with white, are as opaque as they are dark beside their neighbours."""
    ink = 255 - rgb.min(2)
    alpha = np.where(inside, 255, 0).astype(np.uint8)
    edge = inside & (np.asarray(Image.fromarray(alpha).filter(ImageFilter.MinFilter(3))) == 0)
    edge |= inside & _at_border(inside.shape)
    strongest = np.asarray(Image.fromarray(ink).filter(ImageFilter.MaxFilter(3)))
    share = np.where(edge, ink / np.maximum(strongest, 1), inside).clip(0, 1)
    unmixed = 255 - (255.0 - rgb) / np.maximum(share, 0.05)[..., None]
    colour = np.where(edge[..., None], unmixed.clip(0, 255), rgb)
    return np.dstack([colour, 255 * share]).round().astype(np.uint8)


def _at_border(shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border
