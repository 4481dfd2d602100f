"""Simulated shifts: cheap, deterministic changes of style that stand in for pictures from elsewhere.

They serve to choose alpha and the like from in-distribution validation pictures only, without a look at any
shifted test. None of them is one of the 15 common corruptions, which are a test.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter, ImageOps

from tether.data.records import PictureSplit
from tether.data.seeds import derived_seed
from tether.errors import TetherError, near_misses

Pixels = UInt8[np.ndarray, "height width 3"]


def _greyscale(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def _line_drawing(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Dark lines on white where the brightness changes."""
    grey = np.asarray(
        image.convert("L").filter(ImageFilter.GaussianBlur(min(image.size) / 150)), dtype=np.float32
    )
    down, across = np.gradient(grey)
    return Image.fromarray((255 - np.clip(4 * np.hypot(down, across), 0, 255)).astype(np.uint8)).convert(
        "RGB"
    )


def _two_tone(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Black where it is darker than its mean brightness, white elsewhere."""
    grey = np.asarray(image.convert("L"))
    return Image.fromarray(np.where(grey < grey.mean(), 0, 255).astype(np.uint8)).convert("RGB")


def _hue(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """All hues turned by the same angle, between 60 and 300 degrees."""
    hue, saturation, value = image.convert("HSV").split()
    turn = int(chance.integers(43, 213))
    return Image.merge("HSV", (hue.point(lambda level: (level + turn) % 256), saturation, value)).convert(
        "RGB"
    )


def _posterise(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return ImageOps.posterize(image, 2)


def _inversion(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return ImageOps.invert(image)


def _softening(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 60))


def _background(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A new plain colour around the object; without a plain surrounding, a wide frame of that colour."""
    red, green, blue = colorsys.hsv_to_rgb(chance.random(), chance.uniform(0.3, 1), chance.uniform(0.3, 1))
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    pixels = np.asarray(image)
    outside = surrounding(pixels)
    if outside.mean() >= 0.05:
        return Image.fromarray(np.where(outside[..., None], np.array(colour, np.uint8), pixels))
    framed = Image.new("RGB", image.size, colour)
    inner = image.resize(
        (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.BILINEAR
    )
    framed.paste(inner, ((image.width - inner.width) // 2, (image.height - inner.height) // 2))
    return framed


def _texture(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Cloudy light and shade over the whole picture, coarse and fine."""
    shade = np.zeros((image.height, image.width), np.float32)
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(chance.uniform(-1, 1, (cells, cells)).astype(np.float32))
        shade += np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC)) / cells**0.5
    light = 1 + 0.5 * shade[..., None]
    return Image.fromarray(np.clip(np.asarray(image) * light, 0, 255).astype(np.uint8))


_SHIFTS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "greyscale": _greyscale,
    "line_drawing": _line_drawing,
    "two_tone": _two_tone,
    "hue": _hue,
    "posterise": _posterise,
    "inversion": _inversion,
    "softening": _softening,
    "background": _background,
    "texture": _texture,
}
SIMULATED_SHIFTS = tuple(_SHIFTS)


def simulate(image: Image.Image, name: str, *, seed: int = 0, key: str = "") -> Image.Image:
    """The RGB picture under a simulated shift, at its own size; a pure function of the arguments.

    Args:
        name: one of `SIMULATED_SHIFTS`.
        key: the picture's name, so that chance differs from picture to picture.

    Raises:
        TetherError: an unknown shift.
    """
    if name not in _SHIFTS:
        raise TetherError(f"There is no simulated shift {name!r}{near_misses(name, SIMULATED_SHIFTS)}")
    return _SHIFTS[name](image, np.random.default_rng(derived_seed(seed, name, key)))


def simulated_shifts(
    split: PictureSplit, names: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, PictureSplit]:
    """The split once per simulated shift, by the shift's name; the pictures are changed when they are read.

    Args:
        names: of shifts; by default all that leave the split's answers as they are.

    Raises:
        TetherError: an unknown shift, or a split that is altered already.
    """
    if split.alteration:
        raise TetherError(f"The split {split.name!r} is altered already, by {split.alteration!r}.")
    if names is None:
        names = [name for name in SIMULATED_SHIFTS if split.allows(f"simulated:{name}")]
    for name in names:
        if name not in _SHIFTS:
            raise TetherError(f"There is no simulated shift {name!r}{near_misses(name, SIMULATED_SHIFTS)}")
    return {
        name: replace(
            split,
            name=f"{split.name} {name}",
            domain=f"{split.domain} {name}",
            alteration=f"simulated:{name}:{seed}",
        )
        for name in names
    }


def surrounding(pixels: Pixels, tolerance: int = 24) -> Bool[np.ndarray, "height width"]:
    """Which pixels have the border's usual colour, within `tolerance`, and hang together with the border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0)
    alike = (np.abs(pixels - colour) <= tolerance).all(-1)
    reached = alike.copy()
    reached[1:-1, 1:-1] = False
    before = 0
    while (count := np.count_nonzero(reached)) > before:
        before = count
        for lines, open_lines in ((reached, alike), (reached.T, alike.T)):
            for order in (range(1, len(lines)), range(len(lines) - 2, -1, -1)):
                step = order.step
                for line in order:
                    lines[line] |= open_lines[line] & lines[line - step]
    return reached
