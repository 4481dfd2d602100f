"""A split as a torch data set whose every item is a pure function of (seed, epoch, index)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tether.data.alterations import alter
from tether.data.reading import read_image
from tether.data.records import PictureSplit
from tether.data.seeds import derived_seed


class ImageDataset(Dataset):
    """Pictures of a split, transformed; chance depends on (seed, epoch, index) and nothing else.

    Worker processes, their number, the order of reading and the world size therefore never change an item.
    Index it with `(epoch, index)`, or with `index` alone for epoch 0. An item is a dict:

        pixels     what the transform made, [3, h, w]
        label      int, where the split has labels
        index      int, position in the split
        text_pick  int in [0, 2**31), drawn anew in every epoch: a caller with n texts for this picture or its
                   class
                   takes text number `text_pick % n`

    A picture that cannot be read raises `TetherError`; `tether.data.check` finds all of them beforehand.

    Args:
        cache_bytes: decoded pictures are kept in memory until they fill this much.

    Example:

        dataset = ImageDataset(benchmark.train, train_transform(model.image), seed=0)
        first_view, second_view = dataset[0, 7]["pixels"], dataset[1, 7]["pixels"]
    """

    def __init__(
        self,
        split: PictureSplit,
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        cache_bytes: int = 0,
    ):
        self.split = split
        self.transform = transform
        self.seed = seed
        self._room = cache_bytes
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        example = self.split.examples[index]
        picture = self.picture(index)
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
            text_pick = int(torch.randint(2**31, ()))
            pixels = self.transform(picture)
        finally:
            torch.default_generator.set_state(before)
        item = {"pixels": pixels, "index": index, "text_pick": text_pick}
        return item | ({"label": example.label} if hasattr(example, "label") else {})

    def picture(self, index: int) -> Image.Image:
        """The picture as read and altered, before the transform.

        Raises:
            TetherError: it cannot be read.
        """
        if index in self._cache:
            return Image.fromarray(self._cache[index])
        example = self.split.examples[index]
        picture = alter(read_image(example.image), self.split.alteration, example.image.name)
        size = picture.width * picture.height * 3
        if size <= self._room:
            self._room -= size
            self._cache[index] = np.asarray(picture)
        return picture

    def identity(self, index: int) -> str:
        """Where a picture is, by which messages name it."""
        return str(self.split.examples[index].image)

    def labels(self) -> list[int]:
        """The label of every picture, for an order that is balanced by it."""
        return [example.label for example in self.split.examples]

    def describe(self) -> str:
        """One paragraph for a run's record: what the pictures are and what is done to them."""
        split = self.split
        altered = f", altered by {split.alteration}" if split.alteration else ""
        steps = " → ".join(str(step) for step in getattr(self.transform, "transforms", [self.transform]))
        return (
            f"{split.name}: {len(split):,} pictures of {len(split.labels)} classes, domain "
            f"{split.domain}{altered}, {split.convention}, sha256 {split.digest}; seed {self.seed}; "
            f"{steps}"
        )
