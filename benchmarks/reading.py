"""What reading pictures ahead saves in an evaluation: `python -m benchmarks.reading`.

    python -m benchmarks.reading [--pictures 48] [--size 2000 1500] [--batch 8] [--threads 2] [--rounds 5]

The same photographs (JPEG, made of noise) are classified by ViT-B/16 with random weights in two ways that take
turns in one process: each batch read and then computed, and the coming batches read while one is computed. The
figure is the median over rounds of the ratio of their times; beside it stand the times of reading alone and of
computing alone. Nothing can be faster than the longer of the two, nor, where all cores are at work, than their
processor time shared among the cores.
"""

import argparse
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks._methods import vit_b_16
from tether.data import ImageDataset, test_transform
from tether.data.records import Example, ImageRef, Split
from tether.evaluation.reading import read_ahead


def photographs(folder: Path, count: int, size: tuple[int, int]) -> Split:
    """A split of `count` JPEG files of `size` (width, height), as costly to decode as photographs."""
    generator = np.random.default_rng(0)
    examples = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        grain = generator.normal(0, 8, (size[1], size[0], 3))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + grain
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number}.jpg", quality=90)
        examples.append(Example(ImageRef(str(folder), f"{number}.jpg"), 0, identity=str(number)))
    return Split(name="photographs", domain="photographs", examples=tuple(examples))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(2000, 1500), help="width and height of a picture"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = vit_b_16(nullcontext)
    model.eval()
    starts = range(0, options.pictures, options.batch)

    with tempfile.TemporaryDirectory() as folder:
        data = ImageDataset(
            photographs(Path(folder), options.pictures, tuple(options.size)), test_transform(model.image)
        )

        def read(start: int) -> Tensor:
            part = range(start, min(start + options.batch, options.pictures))
            return default_collate([data[index] for index in part])["pixels"]

        def in_turn() -> Tensor:
            return torch.cat([model.encode_image(read(start)) for start in starts])

        def ahead() -> Tensor:
            batches = read_ahead(data, range(options.pictures), batch_size=options.batch)
            return torch.cat([model.encode_image(batch["pixels"]) for batch in batches])

        pixels = [read(start) for start in starts]
        ways = {
            "reading alone": lambda: [read(start) for start in starts],
            "computing alone": lambda: [model.encode_image(batch) for batch in pixels],
            "in turn": in_turn,
            "ahead": ahead,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with torch.no_grad():
            if not torch.equal(in_turn(), ahead()):
                raise RuntimeError("Reading ahead changes the features.")
            for _ in range(options.rounds):
                for name, way in ways.items():
                    began = perf_counter()
                    way()
                    seconds[name].append(perf_counter() - began)
    print(f"{options.pictures} pictures of {' × '.join(map(str, options.size))}, {options.threads} threads")
    for name, found in seconds.items():
        print(f"{name:>16} {1000 * median(found) / options.pictures:7.1f} ms a picture")
    ratio = median(b / a for a, b in zip(seconds["in turn"], seconds["ahead"], strict=True))
    longest = max(median(seconds[name]) for name in ("reading alone", "computing alone"))
    print(f"ahead ÷ in turn {ratio:.3f} (the longer one alone {longest / median(seconds['in turn']):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
