"""Composing a scene: several cut-out drawings on a background, with the exact mask of what can be seen of each."""

import colorsys
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from tether.data.records import ImageRef
from tether.data.scenes_drawing import cut_out
from tether.data.seeds import derived_seed
from tether.data.targets import IGNORE, DenseTarget, Objects, bounds
from tether.errors import TetherError

SIZES = (0.2, 0.5)
"""Longer side of a drawing as a share of the picture's side."""
MOST_OBJECTS = 6
VISIBLE = 0.3
"""An object of which less than this share can be seen is left out of the boxes, and its pixels are ignored."""
SMALLEST = 24
"""An object of which fewer pixels than this can be seen is left out likewise."""
_TRIES = 8
_MOST_HIDDEN = 0.5
"""Share of an object that those before it hide, if it can be helped; drawn anew for each place, from 0 on."""


@dataclass(frozen=True, eq=False)
class Studio:
    """What the scenes of one split are made of.

    Args:
        drawings: of every class, in the order of the labels; none where the look has none of the class.
        part: "train", "validation" or "test". Tests of every look have the same scenes, drawn by others: the same
            background, places, sizes and, where the look has drawings of them, things.
        side: of the square pictures, in pixels.
    """

    drawings: Sequence[Sequence[ImageRef]]
    part: str
    side: int
    seed: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the drawings' names, class by class."""
        names = [[(os.path.basename(image.root), image.name) for image in own] for own in self.drawings]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its answer, and by whom things are drawn.

    Attributes:
        drawn: of every object that was placed, seen or not, back to front, its drawing.
    """

    pixels: UInt8[np.ndarray, "side side 3"]
    target: DenseTarget
    drawn: tuple[ImageRef, ...]


@lru_cache(maxsize=8)
def compose(studio: Studio, number: int) -> Scene:
    """Scene of a number, a pure function of the studio and the number; the last few are kept.

    Objects are placed back to front. Of several random places for each, the first is taken where no object behind it is
    hidden by more than a random share, or else the one that hides least.
    """
    chance = _chance(studio, number, "layout")
    side = studio.side
    canvas = background(side, _chance(studio, number, "background"))
    owner = np.full((side, side), -1, np.int16)  # number of the object that is seen at each pixel
    labels, whole, drawn = [], [], []
    for place in range(int(chance.integers(2, MOST_OBJECTS + 1))):
        own = _chance(studio, number, f"thing {place}")
        label, drawing = _drawing(studio, own)
        layer = turned(cut_out(drawing), side, own)
        left, top = _place(layer, owner, whole, _chance(studio, number, f"place {place}"))
        height, width = layer.shape[:2]
        alpha = layer[..., 3:]
        window = canvas[top : top + height, left : left + width]
        window *= 1 - alpha
        window += layer[..., :3]
        solid = alpha[..., 0] >= 0.5
        owner[top : top + height, left : left + width][solid] = place
        labels.append(label)
        whole.append(int(solid.sum()))
        drawn.append(drawing)
    pixels = (255 * canvas).round().clip(0, 255).astype(np.uint8)
    return Scene(pixels, _target(owner, labels, whole, len(studio.drawings)), tuple(drawn))


def _target(
    owner: Int[np.ndarray, "h w"], labels: Sequence[int], whole: Sequence[int], background: int
) -> DenseTarget:
    semantic = np.full(owner.shape, background, np.int16)
    masks, boxes, kept = [], [], []
    for place, (label, size) in enumerate(zip(labels, whole, strict=True)):
        mask = owner == place
        seen = int(mask.sum())
        if seen < max(VISIBLE * size, SMALLEST):
            semantic[mask] = IGNORE
            continue
        semantic[mask] = label
        masks.append(mask)
        boxes.append(bounds(mask))
        kept.append(label)
    count = len(kept)
    stacked = np.stack(masks) if masks else np.zeros((0, *owner.shape), bool)
    return DenseTarget(
        semantic=semantic,
        objects=Objects(
            boxes=np.array(boxes, np.float32).reshape(count, 4),
            labels=np.array(kept, np.int64),
            masks=stacked,
            crowd=np.zeros(count, bool),
            difficult=np.zeros(count, bool),
            areas=stacked.sum((1, 2)).astype(np.float32),
        ),
    )


def _chance(studio: Studio, number: int, what: str) -> np.random.Generator:
    """A stream for every question, so that another answer to one of them changes no other."""
    return np.random.default_rng(derived_seed(studio.seed, "scene", studio.part, number, what))


def _drawing(studio: Studio, chance: np.random.Generator) -> tuple[int, ImageRef]:
    """A class, the next one where the look has no drawing of it, and one of its drawings."""
    for label in chance.permutation(len(studio.drawings)):
        if drawings := studio.drawings[label]:
            return int(label), drawings[int(chance.random() * len(drawings))]
    raise TetherError("There is no drawing to compose scenes of.")


def turned(
    drawing: Image.Image, side: int, chance: np.random.Generator
) -> Float[np.ndarray, "height width 4"]:
    """A cut-out drawing at a random size, mirrored or not, tilted; colours 0 to 1, multiplied by their alpha."""
    share = np.exp(chance.uniform(*np.log(SIZES)))
    mirrored, strongly = chance.random(2) < (0.5, 0.2)
    angle = float(chance.uniform(-1, 1)) * (60 if strongly else 20)
    factor = share * side / max(drawing.size)
    size = (max(1, round(drawing.width * factor)), max(1, round(drawing.height * factor)))
    if mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.resize(size, Image.Resampling.BICUBIC)
    drawing = drawing.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    if (box := drawing.getchannel("a").getbbox()) is not None:
        drawing = drawing.crop(box)
    return np.asarray(drawing, np.float32) / 255


def _place(
    layer: Float[np.ndarray, "h w 4"],
    owner: Int[np.ndarray, "side side"],
    whole: Sequence[int],
    chance: np.random.Generator,
) -> tuple[int, int]:
    """Left and top of a place inside the picture, see `compose`."""
    side, (height, width) = owner.shape[0], layer.shape[:2]
    solid = layer[..., 3] >= 0.5
    seen = np.bincount(owner[owner >= 0], minlength=len(whole)) if whole else np.zeros(0, np.int64)
    tolerated = chance.uniform(0, _MOST_HIDDEN)
    best, least = (0, 0), np.inf
    for _ in range(_TRIES):
        left, top = (int(chance.integers(0, side - extent + 1)) for extent in (width, height))
        if not whole:
            return left, top
        hidden = owner[top : top + height, left : left + width][solid]
        left_over = seen - np.bincount(hidden[hidden >= 0], minlength=len(whole))
        worst = float((1 - left_over / np.maximum(whole, 1)).max())
        if worst <= tolerated:
            return left, top
        if worst < least:
            best, least = (left, top), worst
    return best


def background(side: int, chance: np.random.Generator) -> Float[np.ndarray, "side side 3"]:
    """Something to stand before: a plain, shaded or patterned ground with shapes of no class, light enough for ink."""
    one, other = _colour(chance), _colour(chance)
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = line[None], line[:, None]
    angle = chance.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = x * cosine + y * sine
    kind = int(chance.integers(5))
    if kind == 0:
        blend = np.zeros_like(along)
    elif kind == 1:
        blend = (along - along.min()) / (np.ptp(along) + 1e-6)
    elif kind == 2:
        blend = 0.5 + 0.5 * np.sign(np.sin(np.float32(2 * np.pi * chance.uniform(3, 9)) * along))
    elif kind == 3:
        cells = np.float32(2 * np.pi * chance.uniform(3, 9))
        across = y * cosine - x * sine
        blend = (np.sin(cells * along) * np.sin(cells * across) > 0).astype(np.float32)
    else:
        cells = int(chance.integers(3, 12))
        coarse = Image.fromarray(chance.random((cells, cells)).astype(np.float32))
        blend = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    if kind in (2, 3):
        blend = blend * np.float32(chance.uniform(0.15, 0.6))
    ground = one + blend[..., None] * (other - one)
    picture = Image.fromarray((255 * ground).astype(np.uint8))
    _clutter(picture, chance)
    grain = chance.standard_normal((side, side, 1), np.float32) * np.float32(chance.uniform(0, 0.03))
    return (np.asarray(picture, np.float32) / 255 + grain).clip(0, 1)


def _clutter(picture: Image.Image, chance: np.random.Generator) -> None:
    """Plain shapes that are no thing, so that not everything before the ground is one."""
    draw = ImageDraw.Draw(picture)
    side = picture.width
    for _ in range(int(chance.integers(0, 7))):
        colour = tuple(int(255 * channel) for channel in _colour(chance))
        x, y = chance.uniform(-0.1, 1.0, 2) * side
        width, height = chance.uniform(0.05, 0.35, 2) * side
        kind = int(chance.integers(4))
        if kind == 0:
            draw.ellipse((x, y, x + width, y + height), fill=colour)
        elif kind == 1:
            draw.rectangle((x, y, x + width, y + height), fill=colour)
        elif kind == 2:
            draw.polygon([(x, y), (x + width, y + height / 2), (x + width / 3, y + height)], fill=colour)
        else:
            draw.line((x, y, *chance.uniform(0, side, 2)), fill=colour, width=max(1, round(0.02 * side)))


def _colour(chance: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A colour of any hue, pale or strong, of which no channel is under 0.35."""
    hue, saturation, value = chance.random(), 0.6 * chance.random(), chance.uniform(0.65, 1)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32).clip(0.35, 1)
