"""COCO and Flickr30k with the splits of Karpathy and Fei-Fei (CVPR 2015), from the JSON as published.

`dataset_coco.json` and `dataset_flickr30k.json` list `images`, each with `filename`, for COCO also `filepath` (the
folder), `split` (train, restval, val, test), and `sentences` with the caption as it was written in `raw`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tether._files import read_json
from tether.config import method
from tether.data.captions import CaptionBenchmark, CaptionedImage, CaptionSplit
from tether.data.locating import image_inside, require_there
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

_SPLITS = {"train": "train", "restval": "restval", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class KarpathySource:
    """Where one of the two collections is.

    Args:
        annotations: `dataset_coco.json` or `dataset_flickr30k.json`.
        images: the folder or `.zip` archive that `filepath/filename` is relative to: for COCO the one with
            `train2014` and `val2014`, for Flickr30k the one with the pictures.
    """

    annotations: str
    images: str


@method("karpathy")
@dataclass(frozen=True, kw_only=True)
class KarpathyConfig(DataConfig):
    """Train on one collection, test on it and, as shifted domains, on the test pictures of others.

    Args:
        annotations, images: of the collection to train on, see `KarpathySource`.
        shifted: other collections by the name of their domain.
        restval: train on COCO's `restval` pictures too, as is usual (113,287 pictures instead of 82,783).
        captions_per_picture: the first so many captions of a picture are used; None for all. A few of COCO's
            pictures have six or seven; published numbers are for five, which makes 25,000 of 5,000 test pictures.

    Raises:
        TetherError: a number of captions below 1.
    """

    annotations: str
    images: str
    shifted: Mapping[str, KarpathySource] = field(default_factory=dict)
    restval: bool = True
    captions_per_picture: int | None = 5

    def __post_init__(self):
        if self.captions_per_picture is not None and self.captions_per_picture < 1:
            raise TetherError(
                f"captions_per_picture is at least 1 or null, found {self.captions_per_picture}."
            )

    def load(self) -> CaptionBenchmark:
        """Read the lists and look whether every picture that is used is there; pictures are read when they are used.

        Raises:
            TetherError: a file is not of the published form, pictures are missing, or a domain has the name of the
                one that is trained on.
        """
        source = KarpathySource(annotations=self.annotations, images=self.images)
        home, splits = _read(source, self.captions_per_picture)
        train = splits["train"] + (splits["restval"] if self.restval else [])
        tests = {home: CaptionSplit(f"test {home}", tuple(splits["test"]))}
        _require_there(source, [*train, *splits["validation"], *splits["test"]])
        for domain, other in self.shifted.items():
            if domain == home:
                raise TetherError(
                    f"The domain {domain!r} is the one that is trained on; give this one another name."
                )
            shifted = _read(other, self.captions_per_picture, domain)[1]["test"]
            _require_there(other, shifted)
            tests[domain] = CaptionSplit(f"test {domain}", tuple(shifted))
        return CaptionBenchmark(
            name=f"{home} (Karpathy)",
            train=CaptionSplit("train", tuple(train)),
            validation=CaptionSplit("validation", tuple(splits["validation"])),
            tests=tests,
            in_distribution=home,
            notes=(
                "Karpathy splits; "
                + (
                    "all captions of a picture."
                    if self.captions_per_picture is None
                    else f"the first {self.captions_per_picture} captions of a picture."
                ),
            ),
        )


def _read(
    source: KarpathySource, at_most: int | None, domain: str = ""
) -> tuple[str, dict[str, list[CaptionedImage]]]:
    """The collection's name, and its pictures by split."""
    path = Path(source.annotations)
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise TetherError(
            f"{path} has no list of `images`; expected dataset_coco.json or dataset_flickr30k.json as published with "
            "the Karpathy splits."
        )
    name = str(content.get("dataset") or path.stem)
    root = os.path.abspath(source.images)
    splits: dict[str, list[CaptionedImage]] = {split: [] for split in _SPLITS.values()}
    for position, entry in enumerate(images):
        place = f"{path}, images[{position}]"
        split = _text(entry, "split", place)
        if split not in _SPLITS:
            raise TetherError(f"{place}: the split is {split!r}{near_misses(split, tuple(_SPLITS))}")
        folder = _text(entry, "filepath", place) if "filepath" in entry else ""
        file = _text(entry, "filename", place)
        sentences = entry.get("sentences")
        if not isinstance(sentences, list):
            raise TetherError(f"{place}: expected a list of `sentences`, found {sentences!r:.60}.")
        captions = [" ".join(_text(sentence, "raw", place).split()) for sentence in sentences]
        splits[_SPLITS[split]].append(
            CaptionedImage(
                image=image_inside(root, f"{folder}/{file}" if folder else file, place),
                captions=tuple(caption for caption in captions if caption)[:at_most],
                identity=f"{name} {file}",
                domain=domain or name,
            )
        )
    return name, splits


def _text(entry: Any, key: str, place: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise TetherError(f"{place}: expected a text as `{key}`, found {value!r:.60}.")
    return value


def _require_there(source: KarpathySource, examples: list[CaptionedImage]) -> None:
    if not examples:
        raise TetherError(f"{source.annotations} lists no picture of the splits that are used.")
    require_there(examples[0].image.root, [example.image for example in examples])
