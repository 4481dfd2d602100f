"""Make the built-in data set `icon-shift` from its npm packages: `python -m makers.icon_shift PACKAGES OUT`.

The same things in six looks and as emoji, drawn by some thirty families of designers. The product is package data:
one zip of lossless WebP pictures per look, `index.json` (class, family and look of every picture; fold of every
family; source and licence of every set; count and hash of every zip) and `CARD.md`.
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from makers._building import command, on_white, write_zip
from makers._emoji_sources import IconSet, Packages, render, words_of
from makers._icon_classes import MISNAMED, THINGS
from makers._icon_sources import EMOJI, FAMILIES, LICENCES, fingerprint, look
from tether._files import sha256_file, write_json, write_text
from tether.data import icon_shift
from tether.data.icon_shift import LOOKS, TRAINED_LOOKS
from tether.errors import TetherError
from tether.evaluation.significance import wilson_interval

SIZE, FOLDS = 112, 3
PER_FAMILY = 6
"""Pictures of one class in one look by one family, at most."""
LEAST_DIFFERENCE = 9
"""Of two pictures of one class and look: bits of 256 in which their shapes differ."""
LEAST_FAMILIES, LEAST_PICTURES = 10, {"line": 8, "solid": 4, "colour": 1}
"""What a class needs: families that draw it, and pictures in these looks."""
VALIDATION_SHARE = 0.2
TOPICS = (
    "interface essential",
    "content files",
    "coding apps websites",
    "computers devices electronics",
    "food drink",
    "food drink desert",
    "food drink fruit",
    "design",
    "design color",
    "ecology",
    "email",
    "entertainment events hobbies",
    "hand",
    "health",
    "internet network",
    "map navigation",
    "money payments",
    "music",
    "pet animals",
    "photography",
    "real estate",
    "school science",
    "shopping shipping",
    "social rewards",
    "technology",
    "transportation",
    "travel wayfinding",
    "video movies",
    "weather",
    "business product",
    "business products",
    "building real eastate",
    "basic ui",
    "other ui",
    "content",
    "devices",
    "drink food",
    "entertainment",
    "money",
    "nature",
    "shopping",
    "travel",
)
"""Words, as Streamline spells them, that some of its sets put before the name of a thing."""


@dataclass(frozen=True)
class Drawing:
    """One picture of the data set."""

    thing: str
    family: str
    look: str
    prefix: str
    icon: str
    picture: Image.Image

    @property
    def file(self) -> str:
        return f"{self.prefix}/{self.icon}.webp"


def build(packages: Packages, out: Path) -> None:
    """Draw what the families have of every class, leave out what is alike, and write pictures, index and card."""
    sets = {prefix: packages.icon_set(prefix) for prefix in _prefixes(packages)}
    found = _found(packages, sets)
    drawings = [drawing for thing in THINGS for drawing in distinct(_drawn(thing, found[thing], sets))]
    classes = chosen_classes(drawings)
    drawings = [drawing for drawing in drawings if drawing.thing in classes]
    counts = Counter((drawing.family, drawing.look) for drawing in drawings)
    folds = assign_folds(counts)
    validation = {name: validation_families(counts, folds, name) for name in TRAINED_LOOKS}
    zips = {}
    for name in LOOKS:
        own = {drawing.file: _webp(drawing.picture) for drawing in drawings if drawing.look == name}
        write_zip(out / f"{name}.zip", own)
        zips[name] = {"pictures": len(own), "sha256": sha256_file(out / f"{name}.zip")}
    per_set = Counter(drawing.prefix for drawing in drawings)
    index = {
        "name": "icon-shift",
        "version": 1,
        "packages": packages.versions,
        "size": SIZE,
        "folds": FOLDS,
        "looks": zips,
        "classes": classes,
        "families": {family: {"fold": fold, "sets": FAMILIES[family]} for family, fold in folds.items()},
        "validation": validation,
        "trained": {
            name: trained_classes(drawings, folds, families, name) for name, families in validation.items()
        },
        "sets": {
            prefix: _describe(icons) | {"pictures": per_set[prefix]}
            for prefix, icons in sets.items()
            if per_set[prefix]
        },
        "pictures": {
            name: {
                thing: sorted(d.file for d in drawings if d.look == name and d.thing == thing)
                for thing in classes
            }
            for name in LOOKS
        },
    }
    write_json(out / "index.json", index)
    text = card(index)
    write_text(out / "CARD.md", text)


def distinct(drawings: Iterator[Drawing]) -> Iterator[Drawing]:
    """Of the drawings of one class, in order: none that is like an earlier one of its look, few of one family."""
    shapes: dict[str, list[np.ndarray]] = defaultdict(list)
    counts: Counter[tuple[str, str]] = Counter()
    for drawing in drawings:
        shape = np.unpackbits(np.frombuffer(fingerprint(drawing.picture), np.uint8))
        alike = any((shape != other).sum() < LEAST_DIFFERENCE for other in shapes[drawing.look])
        if not alike and counts[drawing.family, drawing.look] < PER_FAMILY:
            shapes[drawing.look].append(shape)
            counts[drawing.family, drawing.look] += 1
            yield drawing


def chosen_classes(drawings: Sequence[Drawing]) -> list[str]:
    """The classes that enough families draw, in the looks that one can train on."""
    families: dict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        families[drawing.thing].add(drawing.family)
    pictures = Counter((drawing.thing, drawing.look) for drawing in drawings)
    return [
        thing
        for thing in families
        if len(families[thing]) >= LEAST_FAMILIES
        and all(pictures[thing, name] >= least for name, least in LEAST_PICTURES.items())
    ]


def assign_folds(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Fold by family, such that every look is divided as evenly as its families allow.

    Families are placed from the largest to the smallest, each where the looks that it has are still least drawn.
    """
    whole = Counter()
    for (_, name), count in counts.items():
        whole[name] += count
    shares = {
        family: {name: counts.get((family, name), 0) / whole[name] for name in whole} for family, _ in counts
    }
    drawn = [Counter() for _ in range(FOLDS)]
    folds = {}
    for family in sorted(shares, key=lambda family: (-max(shares[family].values()), family)):
        own = shares[family]
        costs = [sum((fold[name] + own[name]) ** 2 - fold[name] ** 2 for name in own) for fold in drawn]
        folds[family] = costs.index(min(costs))
        drawn[folds[family]].update(own)
    return dict(sorted(folds.items()))


def validation_families(
    counts: Mapping[tuple[str, str], int], folds: Mapping[str, int], name: str
) -> list[list[str]]:
    """For each fold, the families that validate a training on the look `name`: about a fifth of what is not tested.

    In the order of a hash, a family validates if it brings the validation split nearer to its size.
    """
    chosen = []
    for tested in range(FOLDS):
        others = {
            family: count
            for (family, own), count in counts.items()
            if own == name and folds[family] != tested
        }
        wanted, have, families = VALIDATION_SHARE * sum(others.values()), 0, []
        for family in sorted(
            others, key=lambda family: hashlib.sha256(f"{tested} {family}".encode()).hexdigest()
        ):
            if abs(have + others[family] - wanted) < abs(have - wanted) and len(families) < len(others) - 1:
                families.append(family)
                have += others[family]
        chosen.append(sorted(families))
    return chosen


def trained_classes(
    drawings: Sequence[Drawing], folds: Mapping[str, int], validation: Sequence[Sequence[str]], name: str
) -> list[str]:
    """The classes that have training pictures of the look `name` in every fold."""
    trained = [
        {
            drawing.thing
            for drawing in drawings
            if drawing.look == name and folds[drawing.family] != fold and drawing.family not in families
        }
        for fold, families in enumerate(validation)
    ]
    return [thing for thing in THINGS if all(thing in things for things in trained)]


def _prefixes(packages: Packages) -> list[str]:
    """Every set of the families, if its licence is one of those taken."""
    prefixes = [prefix for family in FAMILIES.values() for prefix in family]
    for prefix in prefixes:
        licence = packages.collections[prefix]["license"].get("spdx")
        if licence not in LICENCES:
            raise TetherError(
                f"The set {prefix} has the licence {licence}, expected one of {', '.join(LICENCES)}."
            )
    return prefixes


def _found(packages: Packages, sets: Mapping[str, IconSet]) -> dict[str, list[tuple[int, str, str]]]:
    """By class, the icons with one of its names: their number within the set, the set, the icon.

    An emoji has the name that Unicode gives it and the one that the vendor does.
    """
    things = {name: thing for thing, names in THINGS.items() for name in names}
    found: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for prefix, icons in sets.items():
        names = {icon: [_plain(icon)] for icon in icons.bodies}
        if prefix in EMOJI:
            for code, icon in packages.drawings(icons).items():
                names[icon].append(_plain(packages.emojis[code].name))
        before: Counter[str] = Counter()
        for icon, own in names.items():
            if (prefix, icon) in MISNAMED:
                continue
            if thing := next((things[name] for name in own if name in things), None):
                found[thing].append((before[thing], prefix, icon))
                before[thing] += 1
    return found


def _plain(icon: str) -> str:
    """An icon's name without words of drawing style, and without the topic that some sets put before it."""
    name = " ".join(word for word in words_of(icon) if word != "small")
    topics = [topic for topic in TOPICS if name.startswith(f"{topic} ")]
    return name[len(max(topics, key=len)) + 1 :] if topics else name


def _drawn(
    thing: str, found: Sequence[tuple[int, str, str]], sets: Mapping[str, IconSet]
) -> Iterator[Drawing]:
    families = {prefix: family for family, prefixes in FAMILIES.items() for prefix in prefixes}
    for _, prefix, icon in sorted(found):
        picture = render(sets[prefix].svg(icon), SIZE)
        if picture and (own := look(prefix, icon, sets[prefix].coloured, picture)):
            yield Drawing(thing, families[prefix], own, prefix, icon, picture)


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    on_white(picture).save(buffer, "webp", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def _describe(icons: IconSet) -> dict[str, str]:
    return {
        "title": icons.title,
        "author": icons.author,
        "licence": icons.licence,
        "licence_url": icons.licence_url,
    }


def card(index: dict) -> str:
    """The data card: counts, splits, limits, and whom to thank."""
    families, classes = index["families"], index["classes"]
    pictures = [picture for look in LOOKS for picture in icon_shift.pictures(index, look)]
    versions = ", ".join(f"`{name}` {version}" for name, version in index["packages"].items())
    per_class = Counter(picture.thing for picture in pictures)
    return f"""# icon-shift

{len(classes)} things in {len(LOOKS)} looks: {len(pictures):,} pictures by {len(families)} families of designers. Real
drawings, words that a person says, and a shift like that of DomainNet. Made by `make icons` from the npm packages
{versions}; this card is written by the same command.

**Task.** Which of {len(classes)} things is shown? Train on the drawings of one look, test on those and on all other
looks, always by designers who were not trained on.

| look | pictures | things | families | tested in fold 0 / 1 / 2 | ± at 60 %, folds pooled | SHA-256 of the zip |
|---|---|---|---|---|---|---|
{_looks(index)}

**Splits.** By *family*: everything that one designer or company drew, and what others derived from it (lucide and
feather; all sets of Streamline; all of Microsoft, emoji too). {index["folds"]} folds, and no family is in two of
training, validation and test; over the folds each picture is tested once. Validation takes about a fifth of the
pictures of the look that is trained on, by further families. A thing that lacks training pictures of the look in one
of the folds is left out of all three, in training and in every test:

| trained on | things | training, fold 0 / 1 / 2 | validation | test |
|---|---|---|---|---|
{_splits(index)}

**How it was made.** An icon belongs to a class if its name, without words of drawing style, is one of the class's;
synonyms are merged (home and house, bin and trash). A class needs {LEAST_FAMILIES} families, and in the looks
{_list([f"{name} ({least})" for name, least in LEAST_PICTURES.items()])} so many pictures. The look is told by the
set and the name and checked by the share of ink: where the two disagree, the picture is left out. A picture whose shape
(16 × 16 bits) differs in fewer than {LEAST_DIFFERENCE} bits from another one of its class and look is left out, so
sizes and variants of one drawing count once; a family has at most {PER_FAMILY} pictures of one class in one look.
Pictures have {index["size"]} × {index["size"]} pixels on white, lossless WebP, otherwise unchanged.

**Known limits.** Labels are designers' names for their icons, and nobody has looked at every one (seventeen that were
seen to show something else are left out): a "medal" may be a
rosette, an "inbox" a tray or an envelope. Pixel, hand-drawn and emoji come from few designers, so their numbers say
little about other designers' pixels or hands; where the table has more than ± 1.5 %, there are no more pictures. Every
look has its own balance of classes. Emoji are of three vendors, of which two are test domains of emoji-shift too. The
built-in model was pre-trained on no picture of these families (but for `streamline-emojis`, other drawings by
Streamline); simple things look alike whoever draws them.

**Things** (pictures): {", ".join(f"{thing} ({per_class[thing]})" for thing in classes)}.

**Sources and licences.** The drawings belong to their authors under the licences named.

| family | fold | set | source | licence | pictures |
|---|---|---|---|---|---|
{_sources(index)}
"""


def _list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _looks(index: dict) -> str:
    rows = []
    for name, entry in index["looks"].items():
        own = icon_shift.pictures(index, name)
        folds = Counter(index["families"][picture.family]["fold"] for picture in own)
        interval = wilson_interval(0.6, len(own))
        rows.append(
            f"| {name} | {len(own):,} | {len({picture.thing for picture in own})} "
            f"| {len({picture.family for picture in own})} "
            f"| {' / '.join(f'{folds[fold]:,}' for fold in range(FOLDS))} "
            f"| {(interval.high - interval.low) / 2:.1%} | `{entry['sha256'][:16]}…` |"
        )
    return "\n".join(rows)


def _splits(index: dict) -> str:
    rows = []
    for name in TRAINED_LOOKS:
        things = index["trained"][name]
        own = [picture for picture in icon_shift.pictures(index, name) if picture.thing in things]
        counts = Counter(picture.family for picture in own)
        parts = [Counter() for _ in range(FOLDS)]
        for fold, part in enumerate(parts):
            for family, count in counts.items():
                tested = index["families"][family]["fold"] == fold
                validates = family in index["validation"][name][fold]
                part["test" if tested else "validation" if validates else "train"] += count
        columns = [
            " / ".join(f"{part[kind]:,}" for part in parts) for kind in ("train", "validation", "test")
        ]
        rows.append(f"| {name} | {len(things)} | {' | '.join(columns)} |")
    return "\n".join(rows)


def _sources(index: dict) -> str:
    return "\n".join(
        f"| {family} | {entry['fold']} | {prefix} | {index['sets'][prefix]['title']} by "
        f"{index['sets'][prefix]['author']} | {_licence(index['sets'][prefix])} | {index['sets'][prefix]['pictures']} |"
        for family, entry in index["families"].items()
        for prefix in entry["sets"]
        if prefix in index["sets"]
    )


def _licence(entry: Mapping) -> str:
    """A licence's name, with its address where the set gives one."""
    return f"[{entry['licence']}]({entry['licence_url']})" if entry["licence_url"] else entry["licence"]


if __name__ == "__main__":
    command(lambda packages, out: build(Packages(packages), out), __doc__, "iconify/ and emojibase/")
