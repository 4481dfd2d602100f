"""Make the built-in model's pre-training pictures: `python -m makers.builtin_clip.pictures PACKAGES OUT`.

Emoji of vendors that `emoji-shift` does not use, and general icon sets of designers whom `icon-shift` does not test,
under licences that ask for no more than naming them. The product (`pictures.zip` with transparent pictures,
`pictures.json` with names and captions) is large and cheap to make again, so it is not
committed; `makers.builtin_clip.pretraining` reads it.
"""

import io
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from PIL import Image

from makers._building import command, member
from makers._emoji_sources import Emoji, IconSet, Packages, render, words_of
from makers._icon_sources import DERIVED, FAMILIES, LICENCES, fingerprint
from makers.emoji_shift import SIZE
from tether._files import write_atomically, write_json
from tether.data.emoji_classes import CLASS_NAMES

VENDORS = ("emojione", "noto-v1", "streamline-emojis")
LEFT_OUT_CATEGORIES = ("Emoji", "Logos", "Programming")
LEFT_OUT_SETS = (
    "fluent-emoji",
    "circle-flags",
    "flag",
    "flagpack",
    "cif",
    "bitcoin-icons",
    "svg-spinners",
    "line-md",
)
PICTURES_PER_NAME, WORDS_PER_NAME, SYNONYMS = 12, 2, 3


def build(packages: Packages, out: Path) -> None:
    """Draw every picture once and write `pictures.zip` and `pictures.json` into `out`."""
    rows = []

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for prefix, icon, row, picture in chain(_emojis(packages), _icons(packages)):
                buffer = io.BytesIO()
                picture.save(buffer, "webp", lossless=True, method=2)
                file = f"{prefix}/{icon}.webp"
                archive.writestr(member(file), buffer.getvalue())
                rows.append({"file": file, **row})

    write_atomically(out / "pictures.zip", write)
    sets = {}
    for prefix, count in Counter(row["file"].split("/")[0] for row in rows).most_common():
        icons = packages.icon_set(prefix)
        sets[prefix] = {
            "title": icons.title,
            "author": icons.author,
            "licence": icons.licence,
            "pictures": count,
        }
    write_json(out / "pictures.json", {"packages": packages.versions, "sets": sets, "pictures": rows})


def _emojis(packages: Packages) -> Iterator[tuple[str, str, dict, Image.Image]]:
    for prefix in VENDORS:
        icons = packages.icon_set(prefix)
        for code, icon in packages.drawings(icons).items():
            emoji = packages.emojis[code]
            if "flag" not in emoji.subgroup and (picture := render(icons.svg(icon), SIZE)):
                row = {
                    "name": emoji.name,
                    "captions": _captions(emoji),
                    "kind": "emoji",
                    "coloured": icons.coloured,
                }
                yield prefix, icon, row, picture


def _captions(emoji: Emoji) -> list[str]:
    """Captions that also fit other emoji come last: the class name, where the emoji is of a class of `emoji-shift`."""
    keywords = [word for word in emoji.keywords if word not in emoji.name]
    captions = [emoji.name]
    if keywords:
        captions += [f"{emoji.name}, {', '.join(keywords[:3])}", ", ".join(keywords[:4])]
    if emoji.subgroup in CLASS_NAMES:
        captions += [f"{emoji.name}, {CLASS_NAMES[emoji.subgroup]}", CLASS_NAMES[emoji.subgroup]]
    return captions


def _icons(packages: Packages) -> Iterator[tuple[str, str, dict, Image.Image]]:
    """Of every name at most `PICTURES_PER_NAME` drawings that differ, first one of each set, then further ones."""
    sets = {prefix: packages.icon_set(prefix) for prefix in _prefixes(packages)}
    drawings: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for prefix, icons in sets.items():
        before: Counter[str] = Counter()
        for icon in icons.bodies:
            if name := _name(icon):
                drawings[name].append((before[name], prefix, icon))
                before[name] += 1
    synonyms = {prefix: _synonyms(icons) for prefix, icons in sets.items()}
    for name in sorted(drawings):
        seen: set[bytes] = set()
        for _, prefix, icon in sorted(drawings[name]):
            if len(seen) == PICTURES_PER_NAME:
                break
            picture = render(sets[prefix].svg(icon), SIZE)
            if picture is None or (shape := fingerprint(picture)) in seen:
                continue
            seen.add(shape)
            row = {
                "name": name,
                "captions": [name, *synonyms[prefix].get(icon, ())],
                "kind": "icon",
                "coloured": sets[prefix].coloured,
            }
            yield prefix, icon, row, picture


def _prefixes(packages: Packages) -> list[str]:
    """The general sets that are drawn from: none of a family that `icon-shift` tests."""
    left_out = {*LEFT_OUT_SETS, *DERIVED, *(prefix for family in FAMILIES.values() for prefix in family)}
    return [
        prefix
        for prefix, info in sorted(packages.collections.items())
        if info["license"].get("spdx") in LICENCES
        and info.get("category") not in LEFT_OUT_CATEGORIES
        and prefix not in left_out
    ]


def _name(icon: str) -> str | None:
    """The words of an icon's name, where they are few enough to name a thing."""
    words = list(words_of(icon))
    name = " ".join(words)
    return name if len(words) <= WORDS_PER_NAME and 2 < len(name) <= 40 else None


def _synonyms(icons: IconSet) -> dict[str, list[str]]:
    """Further names that a set has for its icons, by icon: other people's words for the same drawing."""
    found: dict[str, list[str]] = defaultdict(list)
    for alias, entry in sorted(icons.aliases.items()):
        parent, name = entry["parent"], _name(alias)
        if set(entry) == {"parent"} and name and name not in (_name(parent), *found[parent]):
            found[parent].append(name)
    return {icon: names[:SYNONYMS] for icon, names in found.items()}


if __name__ == "__main__":
    command(lambda packages, out: build(Packages(packages), out), __doc__, "iconify/ and emojibase/")
