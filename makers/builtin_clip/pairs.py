"""Captioned pictures for contrastive pre-training: strong augmentation, cached stem features, caption choice."""

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from tether._files import read_json, write_atomically
from tether.data.emoji_shift import TEMPLATES
from tether.errors import TetherError


@dataclass(frozen=True)
class CaptionedPicture:
    """A transparent picture in an archive; equal names are positives of each other."""

    file: str
    name: str
    captions: tuple[str, ...]
    kind: str
    coloured: bool


class CaptionedPictures:
    """`pictures.zip` and `pictures.json` of one folder, as `makers.builtin_clip.pictures` writes them.

    Raises:
        TetherError: the folder lacks one of the two files.
    """

    def __init__(self, folder: Path):
        self.archive = folder / "pictures.zip"
        if not self.archive.is_file():
            raise TetherError(
                f"Expected pre-training pictures in {folder} (pictures.zip), found none; run `make pictures`."
            )
        self.rows = [
            CaptionedPicture(row["file"], row["name"], tuple(row["captions"]), row["kind"], row["coloured"])
            for row in read_json(folder / "pictures.json")["pictures"]
        ]

    @property
    def captions(self) -> list[str]:
        return [caption for row in self.rows for caption in row.captions]


def augment(picture: Image.Image, coloured: bool, size: int, random: np.random.Generator) -> Image.Image:
    """One random rendering of a transparent picture: place, turn, recolour, background, tone, sharpness; RGB."""
    if not coloured:
        picture = _tinted(picture, random)
    if random.random() < 0.3:
        picture = picture.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    side = int(size * random.uniform(0.72, 1.12))
    width = int(side * random.uniform(0.9, 1.1))
    picture = picture.resize((width, side), Image.Resampling.BILINEAR)
    dark = not coloured and picture.resize((1, 1)).getpixel((0, 0))[0] < 128
    canvas = _background(size, dark, coloured, random)
    slack_x, slack_y = size - width, size - side
    place = (int(slack_x * random.uniform(0.2, 0.8)), int(slack_y * random.uniform(0.2, 0.8)))
    canvas.paste(picture, place, picture)
    if coloured:
        canvas = _restyled(canvas, random)
    if random.random() < 0.4:
        canvas = ImageEnhance.Brightness(canvas).enhance(random.uniform(0.75, 1.2))
        canvas = ImageEnhance.Contrast(canvas).enhance(random.uniform(0.7, 1.3))
    if random.random() < 0.1:
        canvas = canvas.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    return canvas


def _tinted(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    any_colour = tuple(int(value) for value in random.integers(0, 256, 3))
    colour = (0, 0, 0) if random.random() < 0.5 else any_colour
    tinted = Image.new("RGBA", picture.size, (*colour, 255))
    tinted.putalpha(picture.getchannel("A"))
    return tinted


def _background(size: int, dark: bool, coloured: bool, random: np.random.Generator) -> Image.Image:
    if random.random() < 0.6 and (coloured or dark):
        return Image.new("RGB", (size, size), "white")
    low, high = (150, 256) if dark else (0, 256) if coloured else (0, 110)
    first, second = (tuple(int(value) for value in random.integers(low, high, 3)) for _ in range(2))
    if random.random() < 0.5:
        return Image.new("RGB", (size, size), first)
    ramp = Image.linear_gradient("L").resize((size, size)).rotate(90 * int(random.integers(4)))
    return Image.composite(
        Image.new("RGB", (size, size), first), Image.new("RGB", (size, size), second), ramp
    )


def _restyled(canvas: Image.Image, random: np.random.Generator) -> Image.Image:
    style = random.random()
    if style < 0.15:
        return ImageOps.autocontrast(canvas.convert("L")).convert("RGB")
    if style < 0.23:
        return canvas.convert("L").point(lambda value: 255 if value > 140 else 0).convert("RGB")
    if style < 0.33:
        return ImageOps.invert(canvas.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")
    if style < 0.40:
        return ImageOps.posterize(canvas, int(random.integers(1, 4)))
    if style < 0.70:
        canvas = ImageEnhance.Color(canvas).enhance(random.uniform(0.2, 1.8))
        hue, saturation, value = canvas.convert("HSV").split()
        shift = int(random.integers(-18, 19))
        return Image.merge("HSV", (hue.point(lambda h: (h + shift) % 256), saturation, value)).convert("RGB")
    return canvas


def cache_stem_features(
    pictures: CaptionedPictures,
    path: Path,
    stem: Callable[[Tensor], Tensor],
    *,
    size: int,
    views: dict[str, int],
    seed: int,
    workers: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> np.ndarray:
    """Stem features of `views[kind]` augmented views of every picture, as a float16 array on disk.

    Rows follow `view_offsets`: all views of picture 0, then of picture 1, … A finished file is used again.
    """
    jobs = [(index, view) for index, row in enumerate(pictures.rows) for view in range(views[row.kind])]
    if not path.is_file():

        def write(temporary: Path) -> None:
            array, chunk = None, 256
            chunks = (jobs[start : start + chunk] for start in range(0, len(jobs), chunk))
            with ProcessPoolExecutor(workers, initializer=_open, initargs=(pictures, size, seed)) as pool:
                for number, pixels in enumerate(_in_order(pool, chunks)):
                    normalised = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
                    features = stem(normalised.contiguous(memory_format=torch.channels_last)).numpy()
                    if array is None:
                        shape = (len(jobs), *features.shape[1:])
                        array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                    array[number * chunk : number * chunk + len(features)] = features
                    if progress:
                        progress("caching stem features", min(chunk * (number + 1), len(jobs)), len(jobs))
            array.flush()

        write_atomically(path, write)
    return np.load(path, mmap_mode="r")


def view_offsets(pictures: CaptionedPictures, views: dict[str, int]) -> np.ndarray:
    """First row of every picture in the array of `cache_stem_features`, and the number of rows at the end."""
    return np.concatenate([[0], np.cumsum([views[row.kind] for row in pictures.rows])])


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator) -> Iterator[np.ndarray]:
    """Results in the order of the chunks with at most eight ahead, so that memory stays bounded."""
    waiting = []
    for chunk in chunks:
        waiting.append(pool.submit(_augmented, chunk))
        if len(waiting) > 8:
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()


def _open(pictures: CaptionedPictures, size: int, seed: int) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = (pictures, zipfile.ZipFile(pictures.archive), size, seed)


def _augmented(jobs: list[tuple[int, int]]) -> np.ndarray:
    pictures, archive, size, seed = _worker
    out = np.empty((len(jobs), size, size, 3), np.uint8)
    for place, (index, view) in enumerate(jobs):
        row = pictures.rows[index]
        picture = Image.open(io.BytesIO(archive.read(row.file))).convert("RGBA")
        random = np.random.default_rng([seed, index, view])
        out[place] = np.asarray(augment(picture, row.coloured, size, random))
    return out


class PairDataset(Dataset):
    """Picture–caption pairs from cached features: item (epoch, index) is a pure function of the seed and both.

    The unit is a *name*, so frequent names do not crowd the batch; a picture of it, a view and a caption are drawn
    anew each time. Names of kind `often` appear `repeats` times per epoch.
    """

    def __init__(
        self,
        pictures: CaptionedPictures,
        features: np.ndarray,
        views: dict[str, int],
        tokenize: Callable[[list[str]], Tensor],
        *,
        often: str,
        repeats: int,
        seed: int,
    ):
        self._features, self._offsets, self._seed = features, view_offsets(pictures, views), seed
        self._rows = pictures.rows
        by_name: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(pictures.rows):
            by_name[row.name].append(index)
        self._names = list(by_name.values())
        kinds = [{self._rows[index].kind for index in indices} for indices in self._names]
        self._items = np.array(
            [n for n, kind in enumerate(kinds) for _ in range(repeats if often in kind else 1)]
        )
        self._often = often
        self._name_ids = {name: number for number, name in enumerate(by_name)}
        texts = sorted({caption for row in pictures.rows for caption in row.captions})
        self._text_ids = {text: number for number, text in enumerate(texts)}
        shared: dict[str, set[str]] = defaultdict(set)
        for row in pictures.rows:
            for caption in row.captions:
                shared[caption].add(row.name)
        self._shared = {caption for caption, names in shared.items() if len(names) > 1}
        self._tokens = torch.stack(
            [tokenize([template.format(t) for t in texts]) for template in TEMPLATES]
        ).to(torch.int16)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor | int]:
        """`pixels` (stem features, fp32), `tokens`, `name` (id), `general` (id of the picture's class caption or −1),
        `caption` (id if the caption drawn fits several names, else −1)."""
        epoch, index = item
        random = np.random.default_rng([self._seed, epoch, index])
        indices = self._names[self._items[index]]
        if random.random() < 0.8:
            indices = [index for index in indices if self._rows[index].kind == self._often] or indices
        picture = indices[random.integers(len(indices))]
        row = self._rows[picture]
        view = random.integers(self._offsets[picture], self._offsets[picture + 1])
        caption = row.captions[0 if random.random() < 0.5 else random.integers(len(row.captions))]
        template = random.integers(len(TEMPLATES)) if random.random() < 0.6 else 0
        general = row.captions[-1] if row.captions[-1] in self._shared else None
        return {
            "pixels": torch.from_numpy(self._features[view].astype(np.float32)),
            "tokens": self._tokens[template, self._text_ids[caption]].long(),
            "name": self._name_ids[row.name],
            "general": self._text_ids[general] if general else -1,
            "caption": self._text_ids[caption] if caption in self._shared else -1,
            "index": index,
        }
