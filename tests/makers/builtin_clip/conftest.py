"""A folder of pre-training pictures as small as can be."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

WORDS = "cat dog bird fish tree house car boat sun moon star leaf rock hand foot eye".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures.zip` and `pictures.json` of sixteen words; the first four are animals, the first eight are emoji."""
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    with zipfile.ZipFile(path / "pictures.zip", "w") as archive:
        for number, word in enumerate(WORDS):
            picture = Image.new("RGBA", (32, 32), (number * 15, 80, 200 - number * 10, 255))
            with archive.open(f"a/{word}.webp", "w") as file:
                picture.save(file, "webp", lossless=True)
            captions = [word, f"{word}, small thing {number}", "an animal" if number < 4 else word]
            kind = "emoji" if number < 8 else "icon"
            rows.append(
                {"file": f"a/{word}.webp", "name": word, "captions": captions, "kind": kind, "coloured": True}
            )
    (path / "pictures.json").write_text(json.dumps({"pictures": rows}))
    return path
