"""The icon sets of `icon-shift`: who drew them, in which look, and what two pictures have in common.

A *family* is everything that one designer or company drew, and what others derived from it. The families named here
are tested by `icon-shift` and are in no pre-training picture.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from makers._building import on_white

LICENCES = ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "BSD-3-Clause", "Unlicense")
"""They ask for no more than naming the author."""

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "akar": ("akar-icons",),
    "basil": ("basil",),
    "bootstrap": ("bi",),
    "boxicons": ("boxicons", "bx", "bxs"),
    "clarity": ("clarity",),
    "dinkie": ("dinkie-icons",),
    "flat-ui": ("flat-ui",),
    "glyphs": ("glyphs", "glyphs-poly"),
    "gravity": ("gravity-ui",),
    "halfmann": ("majesticons", "pixelarticons"),
    "huge": ("hugeicons",),
    "iconamoon": ("iconamoon",),
    "iconoir": ("iconoir",),
    "iconpark": ("icon-park", "icon-park-outline", "icon-park-solid", "icon-park-twotone"),
    "icons8": ("flat-color-icons", "icons8", "wpf"),
    "jam": ("jam",),
    "lets": ("lets-icons",),
    "lucide": ("lucide", "lucide-lab", "feather"),
    "marketeq": ("marketeq",),
    "microsoft": ("fluent", "fluent-color", "fluent-mdl2", "fluent-emoji-flat"),
    "mingcute": ("mingcute",),
    "mozilla": ("fxemoji",),
    "mynaui": ("mynaui", "vadivam"),
    "pepicons": ("pepicons", "pepicons-pencil", "pepicons-pop", "pepicons-print"),
    "phosphor": ("ph",),
    "proicons": ("proicons",),
    "remix": ("ri",),
    "solar": ("solar",),
    "streamline": (
        "covid",
        "guidance",
        "streamline",
        "streamline-block",
        "streamline-color",
        "streamline-cyber",
        "streamline-cyber-color",
        "streamline-flex",
        "streamline-flex-color",
        "streamline-freehand",
        "streamline-freehand-color",
        "streamline-kameleon-color",
        "streamline-pixel",
        "streamline-plump",
        "streamline-plump-color",
        "streamline-sharp",
        "streamline-sharp-color",
        "streamline-stickies-color",
        "streamline-ultimate",
        "streamline-ultimate-color",
    ),
    "tabler": ("tabler",),
    "tdesign": ("tdesign",),
    "teenyicons": ("teenyicons",),
    "twitter": ("twemoji",),
    "unicons": ("uil", "uim", "uis", "uit"),
}
"""Prefixes of the sets of every family, as Iconify names them."""

DERIVED = ("la", "reicon")
"""Neither tested nor trained on: Icons8's redrawing of Font Awesome, which is trained on, and a set of which many
drawings are Solar's, which is tested (`makers.icon_shift_overlap` found them)."""


EMOJI = ("fluent-emoji-flat", "fxemoji", "twemoji")
_PIXEL = ("dinkie-icons", "pixelarticons", "streamline-pixel")
_HAND_DRAWN = ("pepicons-pencil", "pepicons-print", "streamline-freehand", "streamline-freehand-color")
_DUOTONE_WORDS = {"duotone", "twotone", "duo", "bulk", "lineduotone"}
_SOLID_WORDS = {"solid", "fill", "filled", "f"}
_LINE_WORDS = {"line", "outline", "outlined", "linear", "thin", "light", "regular", "stroke", "broken"}
_MOST_LINE_INK, _LEAST_SOLID_INK = 0.45, 0.42


def look(prefix: str, icon: str, coloured: bool, picture: Image.Image) -> str | None:
    """The look of an icon: what its set and its name say, if the share of ink agrees; None where it does not.

    A name that says nothing is taken for a line drawing or a solid one by its ink alone.
    """
    words = set(icon.split("-"))
    if prefix in EMOJI:
        return "emoji"
    if prefix in _PIXEL:
        return "pixel"
    if prefix in _HAND_DRAWN:
        return "hand-drawn"
    if coloured:
        return "colour"
    if words & _DUOTONE_WORDS or prefix in ("icon-park-twotone", "uim"):
        return "duotone"
    share = ink(picture)
    if words & _SOLID_WORDS or prefix in ("bxs", "uis", "icon-park-solid"):
        return "solid" if share > _LEAST_SOLID_INK else None
    if words & _LINE_WORDS:
        return "line" if share < _MOST_LINE_INK else None
    return "line" if share < _LEAST_SOLID_INK else "solid" if share > 0.5 else None


def ink(picture: Image.Image) -> float:
    """Share of its own bounding box that a transparent picture covers."""
    alpha = np.asarray(picture.getchannel("A").crop(picture.getbbox()), np.float32)
    return float(alpha.mean()) / 255


def fingerprint(picture: Image.Image, side: int = 16) -> bytes:
    """The shape of a picture on white or nothing, in `side` × `side` bits: alike for sizes and variants of a drawing.

    The drawing fills the square, so that margins do not matter; a bit says whether there is more ink than on average.
    """
    drawn = ImageOps.invert(on_white(picture).convert("L"))
    drawn = drawn.crop(drawn.getbbox() or (0, 0, *drawn.size)).resize((side, side), Image.Resampling.BOX)
    dark = np.asarray(drawn, np.float32)
    return np.packbits(dark > dark.mean()).tobytes()
