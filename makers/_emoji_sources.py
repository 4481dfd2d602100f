"""Emoji and icon drawings from two npm packages: which drawing is which emoji, its words, and its picture.

Used only when the built-in data is made (`make data`) and when the built-in model is pre-trained; both need the
unpacked packages `@iconify/json` (SVG bodies of some 240 icon sets) and `emojibase-data` (Unicode CLDR names,
keywords, groups) and the dependency group `build` (resvg).
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from tether._files import read_json
from tether.errors import TetherError

_GENDER = re.compile(
    r"\b(?:man|woman|person|men|women|people|boy|girl|child|mr?s claus|santa claus|mx claus)\b"
)
_FILLER = re.compile(r"face|sign|symbol|button|person|with")
_VARIATION = re.compile(r"-(?:fe0f|FE0F)")


@dataclass(frozen=True)
class Emoji:
    """One emoji without skin tone: its code, CLDR words, and where Unicode files it."""

    code: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str

    @cached_property
    def identity(self) -> str:
        """What must not be shared between splits: gender variants of one drawing ("man farmer", "farmer") are one."""
        plain = _slug(_GENDER.sub("", self.name))
        return plain if self.group == "people-body" and plain else _slug(self.name)


@dataclass(frozen=True)
class IconSet:
    """One Iconify set: SVG bodies by name, their canvas, and whom to thank for them."""

    prefix: str
    title: str
    author: str
    licence: str
    licence_url: str
    coloured: bool
    bodies: dict[str, dict]
    aliases: dict[str, dict]
    characters: dict[str, str]
    width: float
    height: float

    def svg(self, name: str, colour: str = "#000000") -> str:
        """The SVG document of an icon; `colour` is what `currentColor` means."""
        icon = self.bodies[name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" color="{colour}">{icon["body"]}</svg>'
        )


class Packages:
    """The two unpacked npm packages in one folder: `iconify/` and `emojibase/`.

    Raises:
        TetherError: a package is missing there.
    """

    def __init__(self, root: Path):
        self._iconify, self._emojibase = root / "iconify", root / "emojibase"
        for folder, package in ((self._iconify, "@iconify/json"), (self._emojibase, "emojibase-data")):
            if not (folder / "package.json").is_file():
                raise TetherError(
                    f"Expected the unpacked npm package {package} in {folder}, found none. Run `make packages` "
                    f"(it needs npm), or unpack `npm pack {package}` there."
                )

    @cached_property
    def versions(self) -> dict[str, str]:
        folders = {"@iconify/json": self._iconify, "emojibase-data": self._emojibase}
        return {name: read_json(folder / "package.json")["version"] for name, folder in folders.items()}

    @cached_property
    def collections(self) -> dict[str, dict]:
        return read_json(self._iconify / "collections.json")

    def icon_set(self, prefix: str) -> IconSet:
        data = read_json(self._iconify / "json" / f"{prefix}.json")
        info = self.collections[prefix]
        return IconSet(
            prefix=prefix,
            title=info["name"],
            author=info["author"]["name"],
            licence=info["license"].get("spdx") or info["license"]["title"],
            licence_url=info["license"].get("url", ""),
            coloured=bool(info.get("palette")),
            bodies={name: icon for name, icon in data["icons"].items() if not icon.get("hidden")},
            aliases=data.get("aliases", {}),
            characters=data.get("chars", {}),
            width=data.get("width", 16),
            height=data.get("height", 16),
        )

    @cached_property
    def emojis(self) -> dict[str, Emoji]:
        """Every emoji that has a Unicode subgroup, by upper-case code without variation selectors."""
        messages = read_json(self._emojibase / "en" / "messages.json")
        groups = {group["order"]: group["key"] for group in messages["groups"]}
        subgroups = {subgroup["order"]: subgroup["key"] for subgroup in messages["subgroups"]}
        emojis = {}
        for row in read_json(self._emojibase / "en" / "data.json"):
            if "subgroup" in row:
                code = _code(row["hexcode"])
                group, subgroup = groups[row["group"]], subgroups[row["subgroup"]]
                emojis[code] = Emoji(code, row["label"], tuple(row.get("tags", ())), group, subgroup)
        return emojis

    @cached_property
    def _codes_by_word(self) -> dict[str, str]:
        """Emoji code by every squashed name that any source uses for it; CLDR names win over nicknames."""
        words: dict[str, str] = {}
        for code, emoji in self.emojis.items():
            words.setdefault(_squash(emoji.name), code)
        for prefix in ("twemoji", "noto", "fluent-emoji-flat"):
            icons = self.icon_set(prefix)
            for character, name in icons.characters.items():
                if _code(character) in self.emojis:
                    words.setdefault(_squash(name), _code(character))
        for file in sorted((self._emojibase / "en" / "shortcodes").glob("*.json")):
            for character, names in read_json(file).items():
                if _code(character) in self.emojis:
                    for name in [names] if isinstance(names, str) else names:
                        words.setdefault(_squash(name), _code(character))
        return words

    @cached_property
    def _codes_by_loose_word(self) -> dict[str, str]:
        """As above without filler words ("face", "sign"), for sets named after older CLDR; ambiguous names left out."""
        codes: dict[str, set[str]] = {}
        for word, code in self._codes_by_word.items():
            codes.setdefault(_FILLER.sub("", word), set()).add(code)
        return {word: found.pop() for word, found in codes.items() if len(found) == 1 and len(word) > 2}

    def drawings(self, icons: IconSet) -> dict[str, str]:
        """Icon name by emoji code, for the emoji that this set draws; no icon stands for two emoji.

        The set's own table of characters is used where it has one; else names are compared, exact ones first.
        """
        found: dict[str, str] = {}
        if icons.characters:
            for character, icon in icons.characters.items():
                if _code(character) in self.emojis and icon in icons.bodies:
                    found.setdefault(_code(character), icon)
            return found
        parents = {name: alias["parent"] for name, alias in icons.aliases.items() if set(alias) == {"parent"}}
        taken: set[str] = set()
        for look_up in (
            lambda name: self._codes_by_word.get(_squash(name)),
            lambda name: self._codes_by_loose_word.get(_FILLER.sub("", _squash(re.sub(r"-\d$", "", name)))),
        ):
            for name in (*icons.bodies, *parents):
                icon, code = parents.get(name, name), look_up(name)
                if code and code not in found and icon in icons.bodies and icon not in taken:
                    found[code] = icon
                    taken.add(icon)
        return found


def render(svg: str, size: int) -> Image.Image | None:
    """An SVG drawn into a transparent `size`×`size` RGBA picture, aspect kept and centred; None if nothing shows."""
    import resvg_py

    try:
        picture = Image.open(
            io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)))
        )
    except ValueError:  # resvg could not parse this drawing
        return None
    picture = picture.convert("RGBA")
    if picture.size != (size, size):
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = canvas
    return picture if picture.getextrema()[3][1] > 0 else None


def words_of(name: str) -> Iterator[str]:
    """The words of an icon name such as `arrow-up-bold-24`, without numbers and drawing-style words."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        is_lamp = word == "light" and (before == "traffic" or after == "bulb")
        if len(word) > 1 and not word.isdigit() and (is_lamp or word not in _STYLE_WORDS):
            yield word


_STYLE_WORDS = frozenset(
    """
    outline outlined filled fill line linear bold light thin regular solid duotone twotone two-tone
    sharp rounded round broken sm md lg xl xs alt fa ic icon 16px 24px 20px 32px 48px stroke twotone
    color colored flat mono variant v1 v2 v3 ltr rtl baseline bulk remix bx bxs
    """.split()
)


def _code(text: str) -> str:
    return _VARIATION.sub("", text).upper()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _squash(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower().replace("&", "and"))
