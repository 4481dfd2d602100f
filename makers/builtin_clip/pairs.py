"""Captioned pictures for contrastive pre-training: strong augmentation, cached stem features, caption choice."""

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage
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
    """One random rendering of a transparent picture: place, turn, recolour, background, tone, sharpness; RGB.

    A picture of one colour may be coloured in, and any picture drawn on a coarse grid.
    """
    if not coloured:
        coloured = random.random() < 0.35
        picture = (_coloured_in if coloured else _tinted)(picture, random)
    if random.random() < 0.2:
        picture = _pixelated(picture, random)
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


def _coloured_in(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """What the lines enclose is filled with one or two colours, as in drawings with coloured surfaces."""
    alpha = np.asarray(picture.getchannel("A"))
    parts, count = ndimage.label(np.pad(alpha < 128, 1, constant_values=True))
    first, second, line = random.integers(0, 256, (3, 3))
    if random.random() < 0.5:
        line = line // 4
    fills = np.where(random.random((count + 1, 1)) < 0.6, first, second)
    inside = (parts != parts[0, 0])[1:-1, 1:-1]
    surfaces = np.dstack([fills[parts[1:-1, 1:-1]], np.where(inside, 255, 0)]).astype(np.uint8)
    lines = np.dstack([np.broadcast_to(line, (*alpha.shape, 3)), alpha]).astype(np.uint8)
    return Image.alpha_composite(Image.fromarray(surfaces, "RGBA"), Image.fromarray(lines, "RGBA"))


def _pixelated(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """On a grid of 12 to 32 squares a side, each of them drawn or not."""
    side, least = int(random.integers(12, 33)), int(random.integers(80, 140))
    coarse = picture.resize((side, side), Image.Resampling.BOX)
    coarse.putalpha(coarse.getchannel("A").point(lambda alpha: 255 if alpha > least else 0))
    return coarse.resize(picture.size, Image.Resampling.NEAREST)


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


class StemFeatures:
    """Stem features of all views, float16, in files of `PER_FILE` views each."""

    PER_FILE = 8192

    def __init__(self, files: Sequence[Path]):
        self._files = [np.load(file, mmap_mode="r") for file in files]

    def __getitem__(self, view: int) -> np.ndarray:
        file, row = divmod(view, self.PER_FILE)
        return self._files[file][row]


def cache_stem_features(
    pictures: CaptionedPictures,
    folder: Path,
    stem: Callable[[Tensor], Tensor],
    *,
    size: int,
    views: dict[str, int],
    seed: int,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> StemFeatures:
    """Stem features of `views[kind]` augmented views of every picture, written into `folder`.

    Rows follow `view_offsets`: all views of picture 0, then of picture 1, … Files that are there are used again, so
    that a run that was killed loses little.
    """
    jobs = [(index, view) for index, row in enumerate(pictures.rows) for view in range(views[row.kind])]
    folder.mkdir(exist_ok=True)
    files = []
    with ProcessPoolExecutor(workers, initializer=_open, initargs=(pictures, size, seed)) as pool:
        for start in range(0, len(jobs), StemFeatures.PER_FILE):
            files.append(folder / f"{len(files):04d}.npy")
            part = jobs[start : start + StemFeatures.PER_FILE]
            chunks = (part[first : first + 256] for first in range(0, len(part), 256))
            if not files[-1].is_file():
                features = np.concatenate(
                    [
                        stem(_normalised(pixels)).numpy().astype(np.float16)
                        for pixels in _in_order(pool, chunks)
                    ]
                )
                write_atomically(files[-1], lambda temporary, kept=features: _save(temporary, kept))
            if progress:
                progress("caching stem features", start + len(part), len(jobs))
    return StemFeatures(files)


def view_offsets(pictures: CaptionedPictures, views: dict[str, int]) -> np.ndarray:
    """Number of every picture's first view in `cache_stem_features`, and the number of views at the end."""
    return np.concatenate([[0], np.cumsum([views[row.kind] for row in pictures.rows])])


def _normalised(pixels: np.ndarray) -> Tensor:
    normalised = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return normalised.contiguous(memory_format=torch.channels_last)


def _save(path: Path, features: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, features)


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

    The unit is a *name*; a picture of it, a view and a caption are drawn anew each time. A name appears once per
    epoch for each of its pictures, so what many designers draw comes often; names of kind `often` appear `repeats`
    times.
    """

    def __init__(
        self,
        pictures: CaptionedPictures,
        features: StemFeatures,
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
            [
                number
                for number, (kind, own) in enumerate(zip(kinds, self._names, strict=True))
                for _ in range(repeats if often in kind else len(own))
            ]
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
        if random.random() < 0.6:
            indices = [index for index in indices if self._rows[index].kind == self._often] or indices
        picture = indices[random.integers(len(indices))]
        row = self._rows[picture]
        view = random.integers(self._offsets[picture], self._offsets[picture + 1])
        caption = row.captions[0 if random.random() < 0.5 else random.integers(len(row.captions))]
        template = random.integers(len(TEMPLATES)) if random.random() < 0.6 else 0
        general = row.captions[-1] if row.captions[-1] in self._shared else None
        return {
            "pixels": torch.from_numpy(self._features[int(view)].astype(np.float32)),
            "tokens": self._tokens[template, self._text_ids[caption]].long(),
            "name": self._name_ids[row.name],
            "general": self._text_ids[general] if general else -1,
            "caption": self._text_ids[caption] if caption in self._shared else -1,
            "index": index,
        }
