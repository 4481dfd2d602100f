"""Make the built-in model's pre-training pictures: `python -m makers.builtin_clip.pictures PACKAGES OUT`.

Emoji of vendors that `emoji-shift` does not use, and general icon sets whose licence asks for no more than naming
them. The product (`pictures.zip` with transparent pictures, `pictures.json` with names and captions) is large and
cheap to make again, so it is not committed; `makers.builtin_clip.pretraining` reads it.
"""

import io
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from makers._building import command, member
from makers._emoji_sources import Emoji, Packages, render, words_of
from makers.emoji_shift import SIZE
from tether._files import write_atomically, write_json
from tether.data.emoji_classes import CLASS_NAMES

VENDORS = ("emojione", "noto-v1", "streamline-emojis")
LICENCES = ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "BSD-3-Clause", "Unlicense")
LEFT_OUT_CATEGORIES = ("Emoji", "Logos", "Programming")
LEFT_OUT_SETS = (
    "fluent-emoji",
    "circle-flags",
    "flag",
    "flagpack",
    "cif",
    "bitcoin-icons",
    "svg-spinners",
    "bpmn",
)
PICTURES_PER_NAME, WORDS_PER_NAME = 6, 2


def build(packages: Packages, out: Path) -> None:
    """Draw every picture once and write `pictures.zip` and `pictures.json` into `out`."""
    rows = []

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for prefix, icon, row, svg in (*_emojis(packages), *_icons(packages)):
                if picture := render(svg, SIZE):
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


def _emojis(packages: Packages) -> Iterator[tuple[str, str, dict, str]]:
    for prefix in VENDORS:
        icons = packages.icon_set(prefix)
        for code, icon in packages.drawings(icons).items():
            emoji = packages.emojis[code]
            if "flag" not in emoji.subgroup:
                row = {
                    "name": emoji.name,
                    "captions": _captions(emoji),
                    "kind": "emoji",
                    "coloured": icons.coloured,
                }
                yield prefix, icon, row, icons.svg(icon)


def _captions(emoji: Emoji) -> list[str]:
    """Captions that also fit other emoji come last: the class name, where the emoji is of a class of `emoji-shift`."""
    keywords = [word for word in emoji.keywords if word not in emoji.name]
    captions = [emoji.name]
    if keywords:
        captions += [f"{emoji.name}, {', '.join(keywords[:3])}", ", ".join(keywords[:4])]
    if emoji.subgroup in CLASS_NAMES:
        captions += [f"{emoji.name}, {CLASS_NAMES[emoji.subgroup]}", CLASS_NAMES[emoji.subgroup]]
    return captions


def _icons(packages: Packages) -> Iterator[tuple[str, str, dict, str]]:
    drawn: dict[str, int] = defaultdict(int)
    for prefix, info in sorted(packages.collections.items()):
        if (
            info["license"].get("spdx") not in LICENCES
            or info.get("category") in LEFT_OUT_CATEGORIES
            or prefix in LEFT_OUT_SETS
        ):
            continue
        icons = packages.icon_set(prefix)
        seen = set()
        for icon in icons.bodies:
            words = list(words_of(icon))
            name = " ".join(words)
            if (
                len(words) <= WORDS_PER_NAME
                and 2 < len(name) <= 40
                and name not in seen
                and drawn[name] < PICTURES_PER_NAME
            ):
                seen.add(name)
                drawn[name] += 1
                row = {"name": name, "captions": [name], "kind": "icon", "coloured": icons.coloured}
                yield prefix, icon, row, icons.svg(icon)


if __name__ == "__main__":
    command(lambda packages, out: build(Packages(packages), out), __doc__, "iconify/ and emojibase/")
