"""How near `icon-shift` is to the pre-training pictures: `python -m makers.icon_shift_overlap PICTURES SHIFT`.

For every picture of the benchmark, the pre-training picture of the nearest shape (`fingerprint`). The designers are
others, so what is found are things that everybody draws alike, or a set that was derived from another.
"""

import argparse
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from makers._building import errors_as_lines
from makers._icon_sources import fingerprint
from makers.icon_shift import LEAST_DIFFERENCE
from tether._files import read_json
from tether.data import icon_shift
from tether.data.icon_shift import LOOKS


def report(pictures: Path, shift: Path) -> None:
    """Print the share of each look whose nearest pre-training picture counts as the same drawing, and of whom."""
    trained = [row["file"] for row in read_json(pictures / "pictures.json")["pictures"]]
    known = _shapes(pictures / "pictures.zip", trained)
    index = read_json(shift / "index.json")
    pairs: Counter[tuple[str, str]] = Counter()
    things: Counter[str] = Counter()
    print("| look | pictures | with a twin in pre-training |\n|---|---|---|")
    for look in LOOKS:
        own = icon_shift.pictures(index, look)
        distances, places = nearest(_shapes(shift / f"{look}.zip", [picture.file for picture in own]), known)
        twins = np.flatnonzero(distances < LEAST_DIFFERENCE)
        print(f"| {look} | {len(own)} | {len(twins) / len(own):.1%} |")
        for twin in twins:
            pairs[own[twin].file.split("/")[0], trained[places[twin]].split("/")[0]] += 1
            things[own[twin].thing] += 1
    print(
        "Most often:",
        ", ".join(f"{own} = {other} ({count})" for (own, other), count in pairs.most_common(20)),
    )
    print("Things:", ", ".join(f"{thing} ({count})" for thing, count in things.most_common(20)))


def nearest(shapes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of bits (as ±1) the number of bits by which the nearest known row differs, and its place."""
    distances, places = [], []
    for start in range(0, len(shapes), 256):
        products = shapes[start : start + 256] @ known.T
        places.append(products.argmax(1))
        distances.append((shapes.shape[1] - products.max(1)) / 2)
    return np.concatenate(distances), np.concatenate(places)


def _shapes(archive: Path, files: Sequence[str]) -> np.ndarray:
    with zipfile.ZipFile(archive) as opened:
        packed = [fingerprint(Image.open(io.BytesIO(opened.read(file)))) for file in files]
    bits = np.unpackbits(np.frombuffer(b"".join(packed), np.uint8)).reshape(len(files), -1)
    return 2 * bits.astype(np.float32) - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures.zip and pictures.json")
    parser.add_argument("shift", type=Path, help="folder of icon-shift")
    arguments = parser.parse_args()
    with errors_as_lines():
        report(arguments.pictures, arguments.shift)
