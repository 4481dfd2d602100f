"""How near `icon-shift` is to the pre-training pictures: `python -m makers.icon_shift_overlap PICTURES SHIFT STEM`.

For every picture of the benchmark, the pre-training picture of the nearest shape (`fingerprint`) and the one that the
built-in model's stem, as it was before pre-training, sees as the most similar. The designers are others, so what is
found are things that everybody draws alike, or a set that was derived from another. `--pairs FILE` draws the most
similar pairs that the shapes do not tell, to be looked at.
"""

import argparse
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from makers._building import errors_as_lines, on_white
from makers._icon_sources import fingerprint
from makers.builtin_clip.stem import load_stem
from makers.icon_shift import LEAST_DIFFERENCE, SIZE
from tether._files import read_json
from tether.data import icon_shift
from tether.data.icon_shift import LOOKS
from tether.models.hybrid import LiteStem


def report(pictures: Path, shift: Path, stem: LiteStem, pairs_file: Path | None = None) -> None:
    """Print the share of each look whose nearest pre-training picture counts as the same drawing, and of whom.

    By shape that are fewer than `LEAST_DIFFERENCE` bits; by what the stem sees, a cosine as large as that of the middle
    one of those pairs.
    """
    trained = [row["file"] for row in read_json(pictures / "pictures.json")["pictures"]]
    known = _shapes(pictures / "pictures.zip", trained)
    index = read_json(shift / "index.json")
    pairs: Counter[tuple[str, str]] = Counter()
    things: Counter[str] = Counter()
    seen = _features(pictures / "pictures.zip", trained, stem)
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for look in LOOKS:
        own = icon_shift.pictures(index, look)
        archive, files = shift / f"{look}.zip", [picture.file for picture in own]
        distances, places = nearest(_shapes(archive, files), known)
        twins = distances < LEAST_DIFFERENCE
        cosines, similar = _most_similar(_features(archive, files, stem), seen)
        found[look] = (twins, cosines, similar)
        for twin in np.flatnonzero(twins):
            pairs[own[twin].file.split("/")[0], trained[places[twin]].split("/")[0]] += 1
            things[own[twin].thing] += 1
    limit = float(np.median(np.concatenate([cosines[twins] for twins, cosines, _ in found.values()])))
    print(
        f"| look | pictures | twin by shape | cosine of {limit:.3f} or more | either |\n|---|---|---|---|---|"
    )
    for look, (twins, cosines, _) in found.items():
        alike = cosines >= limit
        shares = " | ".join(f"{part.mean():.1%}" for part in (twins, alike, twins | alike))
        print(f"| {look} | {len(twins)} | {shares} |")
    if pairs_file:
        _draw(pairs_file, pictures, shift, index, trained, found)
    print(
        "Most often:",
        ", ".join(f"{own} = {other} ({count})" for (own, other), count in pairs.most_common(20)),
    )
    print("Things:", ", ".join(f"{thing} ({count})" for thing, count in things.most_common(20)))


def nearest(shapes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of bits (as ±1) the number of bits by which the nearest known row differs, and its place."""
    products, places = _most_similar(shapes, known)
    return (shapes.shape[1] - products) / 2, places


def _most_similar(rows: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the largest product with a known row, and its place."""
    largest, places = [], []
    for start in range(0, len(rows), 256):
        products = rows[start : start + 256] @ known.T
        places.append(products.argmax(1))
        largest.append(products.max(1))
    return np.concatenate(largest), np.concatenate(places)


@torch.no_grad()
def _features(archive: Path, files: Sequence[str], stem: LiteStem) -> np.ndarray:
    """What the stem sees of each picture, by place, as a row of unit length."""
    rows = []
    with zipfile.ZipFile(archive) as opened:
        for start in range(0, len(files), 128):
            images = [
                np.asarray(_drawing(opened.read(file)), np.float32) for file in files[start : start + 128]
            ]
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
            maps = stem(pixels)
            rows.append(
                torch.nn.functional.normalize((maps - maps.mean((2, 3), keepdim=True)).flatten(1), dim=1)
            )
    return torch.cat(rows).numpy()


def _drawing(data: bytes) -> Image.Image:
    """A drawing as the benchmark has it: `SIZE` pixels a side, on white."""
    return on_white(Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE)))


def _draw(
    file: Path,
    pictures: Path,
    shift: Path,
    index: dict,
    trained: Sequence[str],
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    count: int = 60,
) -> None:
    """The most similar pairs that have other shapes: above the benchmark's picture, below the pre-training one."""
    pairs = sorted(
        (
            (-cosines[place], look, place)
            for look, (twins, cosines, _) in found.items()
            for place in np.flatnonzero(~twins)
        ),
    )[:count]
    sheet = Image.new("RGB", (12 * 116, -(-len(pairs) // 12) * 236), "white")
    with zipfile.ZipFile(pictures / "pictures.zip") as others:
        for number, (_, look, place) in enumerate(pairs):
            left, top = number % 12 * 116, number // 12 * 236
            with zipfile.ZipFile(shift / f"{look}.zip") as opened:
                own = icon_shift.pictures(index, look)[place].file
                sheet.paste(_drawing(opened.read(own)), (left, top))
            other = trained[found[look][2][place]]
            sheet.paste(_drawing(others.read(other)), (left, top + 114))
    sheet.save(file)


def _shapes(archive: Path, files: Sequence[str]) -> np.ndarray:
    with zipfile.ZipFile(archive) as opened:
        packed = [fingerprint(Image.open(io.BytesIO(opened.read(file)))) for file in files]
    bits = np.unpackbits(np.frombuffer(b"".join(packed), np.uint8)).reshape(len(files), -1)
    return 2 * bits.astype(np.float32) - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures.zip and pictures.json")
    parser.add_argument("shift", type=Path, help="folder of icon-shift")
    parser.add_argument("stem", type=Path, help="what `make stem` wrote")
    parser.add_argument("--pairs", type=Path, help="picture to draw")
    arguments = parser.parse_args()
    with errors_as_lines():
        report(arguments.pictures, arguments.shift, load_stem(arguments.stem).eval(), arguments.pairs)
