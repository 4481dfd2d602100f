"""Make the data set `typefaces` from npm packages: `python -m makers.typefaces PACKAGES OUT`.

Letters and digits in some 190 typefaces. Text faces (serif and sans-serif) are the in-distribution domain;
monospaced faces, handwriting, script and display faces are shifted ones. Split by typeface: a typeface that is
tested is in no training split. The packages are installed into PACKAGES with npm; OUT gets `typefaces.csv` (read
by `ManifestConfig`), `pictures.zip` and a card, `CARD.md`.
"""

import csv
import hashlib
import io
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from makers._building import command, write_zip
from makers._typeface_sources import LICENCES, TYPEFACES, Typeface, fetch, read_typeface
from tether._files import sha256_file, write_atomically, write_text
from tether.errors import TetherError

SIZE, INK, DRAWN = 96, 72, 160
"""Pixels: of a picture's sides, of the longer side of what is drawn on it, and of the type that is drawn first."""
IN_DISTRIBUTION = "text"
TEXT_STYLES = ("sans-serif", "serif")
TEST_SHARE, VALIDATION_SHARE = 0.32, 0.12
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase.replace("l", "")
"""Without the small l, which many typefaces draw like the capital I or the digit 1."""
LEAST_DIFFERENCE = 7.0
"""Of two typefaces, see `difference`; related ones have 2 to 6, the most alike of independent ones 8."""

Shapes = Float[np.ndarray, "characters pixels"]


@dataclass(frozen=True)
class Drawn:
    """A typeface with its split and its pictures by character; a small letter that is drawn like its capital is
    left out."""

    typeface: Typeface
    split: str
    pictures: Mapping[str, Image.Image]

    @property
    def domain(self) -> str:
        return IN_DISTRIBUTION if self.typeface.style in TEXT_STYLES else self.typeface.style


def build(folder: Path, out: Path, typefaces: Mapping[str, Sequence[str]] = TYPEFACES) -> None:
    """Draw every character of every typeface and write pictures, manifest and card into `out`.

    Args:
        folder: where `fetch` installed the packages.
        typefaces: packages by style.

    Raises:
        TetherError: a package is not as expected, lacks a character, or two typefaces are nearly the same.
    """
    drawn = []
    for style, packages in typefaces.items():
        read = [read_typeface(folder, package, style) for package in packages]
        splits = assign_splits([typeface.name for typeface in read]) if style in TEXT_STYLES else {}
        drawn += [Drawn(one, splits.get(one.name, "test"), draw(one)) for one in read]
    closest = most_alike({one.typeface.name: one.pictures for one in drawn})
    files, rows = {}, []
    for one in drawn:
        for character, picture in one.pictures.items():
            kind, class_name = describe(character)
            path = f"{one.typeface.name}/{kind}-{character}.png"
            files[path] = _png(picture)
            caption = f"the {kind} {character} in {one.typeface.family}, a {one.typeface.style} typeface"
            rows.append([path, class_name, caption, one.domain, one.split, one.typeface.name])
    write_zip(out / "pictures.zip", files)
    write_atomically(out / "typefaces.csv", lambda temporary: _write_csv(temporary, rows))
    text = card(drawn, closest, sha256_file(out / "pictures.zip"), sha256_file(out / "typefaces.csv"))
    write_text(out / "CARD.md", text)


def assign_splits(names: Sequence[str]) -> dict[str, str]:
    """Train, validation or test by typeface, in the order of a hash of the names."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    tested = round(TEST_SHARE * len(names))
    validated = tested + round(VALIDATION_SHARE * len(names))
    return {
        name: "test" if place < tested else "validation" if place < validated else "train"
        for place, name in enumerate(ordered)
    }


def describe(character: str) -> tuple[str, str]:
    """What kind of character it is, and its class's name; a letter's two cases are one class."""
    if character.isdigit():
        return "digit", f"the digit {character}"
    return ("capital" if character.isupper() else "small"), f"the letter {character.upper()}"


def draw(typeface: Typeface) -> dict[str, Image.Image]:
    """Every character in black on a white square, centred, its longer side `INK` pixels long.

    Raises:
        TetherError: the typeface does not have all digits and letters.
    """
    font = ImageFont.truetype(str(typeface.file), DRAWN)
    unknown = _glyph(font, "\U0010ffff")  # what the font shows for characters that it does not have
    pictures: dict[str, Image.Image] = {}
    for character in CHARACTERS:
        picture = _glyph(font, character)
        if picture is None or picture == unknown:
            raise TetherError(f"The typeface {typeface.family} has no {character!r}.")
        if picture != pictures.get(character.upper()):
            pictures[character] = picture
    return pictures


def difference(first: Shapes, second: Shapes) -> float:
    """Mean difference of two typefaces' characters, in levels of grey (0 to 255) at 24 × 24 pixels.

    A row of NaN is a character that a typeface does not have.
    """
    return float(np.nanmean(np.abs(first - second)))


def most_alike(pictures: Mapping[str, Mapping[str, Image.Image]]) -> tuple[float, str, str]:
    """The smallest `difference` of two typefaces, and their names.

    Raises:
        TetherError: it is less than `LEAST_DIFFERENCE`, as of two typefaces with the same drawings; such a pair
            could lie on both sides of a split.
    """
    shapes = {name: _shapes(own) for name, own in pictures.items()}
    names = list(shapes)
    closest = min(
        (difference(shapes[first], shapes[second]), first, second)
        for place, first in enumerate(names)
        for second in names[:place]
    )
    if closest[0] < LEAST_DIFFERENCE:
        raise TetherError(
            f"The typefaces {closest[1]} and {closest[2]} are nearly the same (difference {closest[0]:.1f}, "
            f"expected at least {LEAST_DIFFERENCE}); leave one out, or a test would be of typefaces trained on."
        )
    return closest


def card(drawn: Sequence[Drawn], closest: tuple[float, str, str], pictures: str, manifest: str) -> str:
    """The data card: what is in the set, from where, under which licence, and how to read it."""
    sizes = Counter((one.domain, one.split) for one in drawn for _ in one.pictures)
    faces = Counter((one.domain, one.split) for one in drawn)
    counts = "\n".join(
        f"| {domain} | {split} | {faces[domain, split]} | {count} |"
        for (domain, split), count in sizes.items()
    )
    sources = "\n".join(
        f"| {one.typeface.family} | {one.domain} | {one.split} | `@fontsource/{one.typeface.name}` "
        f"{one.typeface.version} | {one.typeface.licence} | {one.typeface.attribution.replace('|', '/')} |"
        for one in drawn
    )
    return f"""# typefaces

Letters and digits in {len(drawn)} typefaces, black on white, {SIZE} × {SIZE} pixels. Made by
`python -m makers.typefaces` from npm packages of Fontsource; this card is written by the same command.

**Task.** Which of 36 characters is shown, 26 letters and 10 digits? The two cases of a letter are one class. The
small l is left out (many typefaces draw it like I or 1), and so is a small letter that is drawn like its capital.
The longer side of what is drawn has {INK} pixels, so size and place tell nothing.

**Domains and splits.** Text faces, serif and sans-serif, are the in-distribution domain. The split is *by typeface*,
in the order of a hash of the names: a typeface that is tested is in no training split. A typeface is an
`identity`, so intervals of means over domains take pictures of one typeface together.

| domain | split | typefaces | pictures |
|---|---|---|---|
{counts}

The two most alike typefaces are {closest[1]} and {closest[2]}, with a mean difference of {closest[0]:.1f} levels of
grey; typefaces with shared drawings have less than {LEAST_DIFFERENCE:.0f} and are refused.

**Known limits.** O and 0, I and 1 can hardly be told apart in some typefaces. One weight of each typeface, upright.
Monospaced faces are close to text faces; display faces range from bold text to blackletter, shadows and pixels.

**Use.**

```yaml
data:
  method: manifest
  path: build/typefaces/typefaces.csv
  root: build/typefaces/pictures.zip
  templates: characters
  corruptions: mixture
```

**Files.** `pictures.zip` SHA-256 `{pictures}`, `typefaces.csv` SHA-256 `{manifest}`.

**Sources and licences.** Only {" and ".join(LICENCES)} are taken. The pictures show single characters and contain no
font; the typefaces belong to their authors.

| typeface | domain | split | package | licence | attribution |
|---|---|---|---|---|---|
{sources}
"""


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (right - left + DRAWN, bottom - top + DRAWN))  # some draw beyond their box
    ImageDraw.Draw(canvas).text((DRAWN // 2 - left, DRAWN // 2 - top), character, font=font, fill=255)
    if (box := canvas.getbbox()) is None:
        return None
    ink = ImageOps.contain(canvas.crop(box), (INK, INK), Image.Resampling.LANCZOS)
    picture = Image.new("L", (SIZE, SIZE))
    picture.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return ImageOps.invert(picture)


def _shapes(pictures: Mapping[str, Image.Image]) -> Shapes:
    missing = np.full(24 * 24, np.nan)
    return np.stack(
        [
            np.asarray(pictures[character].resize((24, 24)), float).ravel()
            if character in pictures
            else missing
            for character in CHARACTERS
        ]
    )


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "caption", "domain", "split", "identity"])
        writer.writerows(rows)


def _fetch_and_build(folder: Path, out: Path) -> None:
    fetch(folder, [package for packages in TYPEFACES.values() for package in packages])
    build(folder, out)


if __name__ == "__main__":
    command(_fetch_and_build, __doc__, "npm installs them there")
