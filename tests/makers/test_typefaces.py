"""The data set of typefaces, made from fonts that matplotlib ships, laid out as Fontsource's packages are."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import ImageFont, ImageOps

from makers._typeface_sources import TYPEFACES, fetch, read_typeface
from makers.typefaces import CHARACTERS, assign_splits, build, describe
from tether._files import sha256_file
from tether.data import ManifestConfig, load_benchmark, read_image
from tether.errors import TetherError

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
SMALL = {
    "sans-serif": {"deja": "DejaVuSans", "bold": "DejaVuSans-Bold", "cmss": "cmss10", "stix": "STIXGeneral"},
    "serif": {
        "cmr": "cmr10",
        "serif": "DejaVuSerif",
        "stixbold": "STIXGeneralBol",
        "heavy": "DejaVuSerif-Bold",
    },
    "monospace": {"mono": "DejaVuSansMono"},
    "script": {"italic": "STIXGeneralItalic"},
}


@pytest.fixture
def package(tmp_path):
    """`package(name, font)`: an installed package with that font file."""

    def make(name, font, *, version="5.3.0", licence="OFL-1.1", weight=400):
        place = tmp_path / "packages/node_modules/@fontsource" / name
        (place / "files").mkdir(parents=True, exist_ok=True)
        about = {"family": name.title(), "weights": [weight, 900]}
        about["license"] = {
            "type": licence,
            "attribution": f"Copyright {name} | x Bold.ttf: Copyright {name} | x",
        }
        (place / "package.json").write_text(json.dumps({"version": version}))
        (place / "metadata.json").write_text(json.dumps(about))
        (place / f"files/{name}-latin-{weight}-normal.woff2").write_bytes(Path(font).read_bytes())
        return tmp_path / "packages"

    return make


@pytest.fixture
def packages(package):
    for style in SMALL.values():
        for name, font in style.items():
            folder = package(name, FONTS / f"{font}.ttf")
    return folder


def names(typefaces):
    return {style: tuple(fonts) for style, fonts in typefaces.items()}


def changed(font, path, change):
    """A copy of a font whose table of characters is changed."""
    with TTFont(FONTS / font) as file:
        for table in file["cmap"].tables:
            change(table.cmap)
        file.save(path)
    return path


def test_the_product_is_a_benchmark_split_by_typeface(packages, tmp_path):
    out = tmp_path / "out"
    build(packages, out, names(SMALL))
    benchmark = load_benchmark(
        ManifestConfig(
            path=str(out / "typefaces.csv"), root=str(out / "pictures.zip"), templates="characters"
        )
    )
    assert benchmark.in_distribution == "text" and list(benchmark.tests) == ["monospace", "script", "text"]
    assert len(benchmark.class_names) == 36 and {"the digit 0", "the letter Q"} < set(benchmark.class_names)
    parts = [benchmark.train, benchmark.validation, benchmark.tests["text"]]
    by_part = [part.identities for part in parts]
    assert [len(faces) for faces in by_part] == [
        5,
        1,
        2,
    ]  # a typeface of those trained on is cut off to choose by
    assert set().union(*by_part) == {*SMALL["sans-serif"], *SMALL["serif"]}
    assert len(benchmark.tests["monospace"]) == 61
    card = (out / "CARD.md").read_text()
    assert "| Deja | text |" in card and "`@fontsource/cmr` 5.3.0 | OFL-1.1 | Copyright cmr / x |" in card
    assert sha256_file(out / "pictures.zip") in card and sha256_file(out / "typefaces.csv") in card

    build(packages, tmp_path / "again", names(SMALL))
    for file in ("pictures.zip", "typefaces.csv", "CARD.md"):
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_pictures_show_their_character_as_large_as_every_other(packages, tmp_path):
    build(packages, tmp_path, names(SMALL))
    benchmark = load_benchmark(
        ManifestConfig(path=str(tmp_path / "typefaces.csv"), root=str(tmp_path / "pictures.zip"))
    )
    font = ImageFont.truetype(str(FONTS / "DejaVuSansMono.ttf"), 200)
    for example in benchmark.tests["monospace"].examples:
        picture = read_image(example.image)
        left, top, right, bottom = ImageOps.invert(picture).getbbox()
        assert picture.size == (96, 96) and max(right - left, bottom - top) == 72
        assert abs(left + right - 96) <= 1 and abs(top + bottom - 96) <= 1
        character = Path(example.image.name).stem.split("-")[1]
        assert benchmark.class_names[example.label] == describe(character)[1]
        mask = font.getmask(character).getbbox()
        assert (right - left) / (bottom - top) == pytest.approx(
            (mask[2] - mask[0]) / (mask[3] - mask[1]), rel=0.06
        )
        assert np.asarray(picture).min() < 40


def test_small_letters_drawn_like_capitals_are_left_out(packages, package, tmp_path):
    def no_small_letters(characters):
        for letter in range(ord("a"), ord("z") + 1):
            characters[letter] = characters[letter - 32]

    package("caps", changed("cmtt10.ttf", tmp_path / "caps.ttf", no_small_letters))
    build(packages, tmp_path, {**names(SMALL), "display": ("caps",)})
    benchmark = load_benchmark(
        ManifestConfig(path=str(tmp_path / "typefaces.csv"), root=str(tmp_path / "pictures.zip"))
    )
    assert len(benchmark.tests["display"]) == 36


def test_what_is_refused(packages, package, tmp_path):
    package("copy", FONTS / "DejaVuSans.ttf")
    with pytest.raises(TetherError, match=r"copy and deja are nearly the same \(difference 0\.0"):
        build(packages, tmp_path, {**names(SMALL), "display": ("copy",)})
    package("gap", changed("cmtt10.ttf", tmp_path / "gap.ttf", lambda characters: characters.pop(ord("K"))))
    with pytest.raises(TetherError, match="typeface Gap has no 'K'"):
        build(packages, tmp_path, {"display": ("gap",)})
    package("free", FONTS / "cmr10.ttf", licence="Proprietary")
    with pytest.raises(TetherError, match=r"licence of @fontsource/free is 'Proprietary', expected OFL-1\.1"):
        read_typeface(packages, "free", "serif")
    with pytest.raises(TetherError, match=r"version 5\.3\.0 of @fontsource/deja, expected 5\.2\.8"):
        read_typeface(packages, "deja@5.2.8", "serif")
    with pytest.raises(TetherError, match="npm package @fontsource/none"):
        read_typeface(packages, "none", "serif")
    next((packages / "node_modules/@fontsource/deja/files").iterdir()).unlink()
    with pytest.raises(TetherError, match=r"no font deja-latin-400-normal\.woff2"):
        read_typeface(packages, "deja", "serif")
    assert not (tmp_path / "typefaces.csv").exists()


def test_the_weight_nearest_to_regular_is_taken(package):
    folder = package("bold", FONTS / "cmr10.ttf", weight=700)
    assert read_typeface(folder, "bold", "display").file.name == "bold-latin-700-normal.woff2"


def test_every_typeface_is_named_once_and_enough_of_them_are_tested():
    everything = [name.partition("@")[0] for packages in TYPEFACES.values() for name in packages]
    assert len(everything) == len(set(everything)) == 193
    for style in ("sans-serif", "serif"):
        splits = assign_splits([name.partition("@")[0] for name in TYPEFACES[style]])
        assert set(splits) == {name.partition("@")[0] for name in TYPEFACES[style]}
        assert [list(splits.values()).count(split) for split in ("train", "validation")] == [24, 5]
    assert len(CHARACTERS) == 61


def test_packages_are_installed_with_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(TetherError, match=r"install Node\.js"):
        fetch(tmp_path / "packages", ["abel"])
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin/npm"
    npm.write_text('#!/bin/sh\necho "$@" > "$3/called"\n')
    npm.chmod(0o755)
    fetch(tmp_path / "packages", ["abel", "orienta@5.2.8"])
    wanted = json.loads((tmp_path / "packages/package.json").read_text())["dependencies"]
    assert wanted == {"@fontsource/abel": "5.3.0", "@fontsource/orienta": "5.2.8"}
    assert (tmp_path / "packages/called").read_text().startswith("install --prefix")
    npm.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    with pytest.raises(TetherError, match="no such package"):
        fetch(tmp_path / "packages", ["abel"])
