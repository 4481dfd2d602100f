"""Make the built-in data set `emoji-shift` from its npm packages: `python -m makers.emoji_shift PACKAGES OUT`.

The product is committed as package data: one zip of WebP pictures per vendor, `index.json` (words, class, identity
and fold of every emoji; source, licence, count and hash of every vendor) and `CARD.md`.
"""

import hashlib
import io
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from makers._building import command, on_white, write_zip
from makers._emoji_sources import Emoji, IconSet, Packages, render
from tether._files import sha256_file, write_json, write_text
from tether.data.emoji_classes import CLASS_NAMES

SIZE, QUALITY, FOLDS = 128, 80, 3
IN_DISTRIBUTION = "twemoji"
SHIFTED = ("noto", "fluent-emoji", "fluent-emoji-high-contrast", "emojione-monotone", "fxemoji")


def build(packages: Packages, out: Path) -> None:
    """Render every vendor's drawing of every emoji that the in-distribution vendor draws in a class, and index them."""
    vendors = {prefix: packages.icon_set(prefix) for prefix in (IN_DISTRIBUTION, *SHIFTED)}
    drawings = {prefix: packages.drawings(icons) for prefix, icons in vendors.items()}
    chosen = [
        emoji
        for code, emoji in packages.emojis.items()
        if emoji.subgroup in CLASS_NAMES and code in drawings[IN_DISTRIBUTION]
    ]
    folds = assign_folds(chosen)
    sets = {}
    for prefix, icons in vendors.items():
        pictures = {
            f"{emoji.code.lower()}.webp": _webp(picture)
            for emoji in chosen
            if (name := drawings[prefix].get(emoji.code)) and (picture := render(icons.svg(name), SIZE))
        }
        path = out / f"{prefix}.zip"
        write_zip(path, pictures)
        sets[prefix] = _describe(icons) | {"pictures": len(pictures), "sha256": sha256_file(path)}
    index = {
        "name": "emoji-shift",
        "version": 1,
        "packages": packages.versions,
        "size": SIZE,
        "folds": FOLDS,
        "in_distribution": IN_DISTRIBUTION,
        "shifted": list(SHIFTED),
        "classes": CLASS_NAMES,
        "sets": sets,
        "emojis": [
            {
                "code": emoji.code,
                "name": emoji.name,
                "keywords": list(emoji.keywords),
                "class": emoji.subgroup,
                "identity": emoji.identity,
                "fold": folds[emoji.identity],
            }
            for emoji in chosen
        ],
    }
    write_json(out / "index.json", index)
    card = _card(index)
    write_text(out / "CARD.md", card)


def assign_folds(emojis: list[Emoji]) -> dict[str, int]:
    """Fold (0 … FOLDS−1) by identity, stratified by class: in each class identities take turns in the order of a hash.

    An identity that has drawings in two classes ("person" and "person-role") is placed by the first and keeps its fold.
    """
    folds: dict[str, int] = {}
    turn = 0
    by_class: dict[str, list[str]] = defaultdict(list)
    for emoji in emojis:
        if emoji.identity not in by_class[emoji.subgroup]:
            by_class[emoji.subgroup].append(emoji.identity)
    for identities in by_class.values():
        for identity in sorted(identities, key=lambda text: hashlib.sha256(text.encode()).hexdigest()):
            if identity not in folds:
                folds[identity] = turn % FOLDS
                turn += 1
    return folds


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    on_white(picture).save(buffer, "webp", quality=QUALITY, method=6)
    return buffer.getvalue()


def _describe(icons: IconSet) -> dict[str, str]:
    return {
        "title": icons.title,
        "author": icons.author,
        "licence": icons.licence,
        "licence_url": icons.licence_url,
    }


def _card(index: dict) -> str:
    per_class = Counter(emoji["class"] for emoji in index["emojis"])
    rows = "\n".join(
        f"| {prefix} | {'in-distribution' if prefix == index['in_distribution'] else 'shifted'} | {entry['title']} "
        f"by {entry['author']} | [{entry['licence']}]({entry['licence_url']}) | {entry['pictures']} "
        f"| `{entry['sha256'][:16]}…` |"
        for prefix, entry in index["sets"].items()
    )
    classes = ", ".join(f"{CLASS_NAMES[key]} ({per_class[key]})" for key in CLASS_NAMES)
    versions = ", ".join(f"`{name}` {version}" for name, version in index["packages"].items())
    return f"""# emoji-shift

The same {len(index["emojis"])} emoji drawn by {len(index["sets"])} vendors: real pictures, real words, real
distribution shift. Made by `make data` from the npm packages {versions}; this card is written by the same command.

| domain | role | source | licence | pictures | SHA-256 of the zip |
|---|---|---|---|---|---|
{rows}

The drawings belong to their authors under the licences named; they are rendered at {index["size"]}×{index["size"]}
pixels on white and stored as WebP of quality {QUALITY}, otherwise unchanged. Names, keywords and groups come from
Unicode CLDR (Unicode licence v3) through `emojibase-data` (MIT).

**Task.** Which of {len(CLASS_NAMES)} CLDR subgroups is shown? Left out: flags, keycaps, letters, skin tones, hair
styles, and subgroups with fewer than six drawings.

**Splits.** {index["folds"]} folds *by emoji identity*, stratified by class; fold *k* is the test split of run *k*, a
fifth of the identities left (per class) is its validation split, the rest trains. Gender variants of one drawing are
one identity. A test emoji is in no training split of any vendor, and over the folds each emoji is tested once.
Training and validation use the in-distribution vendor only.

**Known limits.** Labels are Unicode's filing, not what is seen: some neighbouring classes can hardly be told apart
("a hand sign", "a closed hand or fist"). Vendors draw different subsets, so domains differ in class balance.
emojione-monotone resembles emojione and noto resembles noto-v1, both of which the built-in model saw in pre-training;
fluent-emoji-high-contrast resembles fluent-emoji, which it did not see. fluent-emoji-flat shares its drawings with
fluent-emoji and is used nowhere.

**Classes** (number of emoji): {classes}.
"""


if __name__ == "__main__":
    command(lambda packages, out: build(Packages(packages), out), __doc__, "iconify/ and emojibase/")
