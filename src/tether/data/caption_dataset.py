"""A caption and its picture as the item of a torch data set, each a pure function of (seed, epoch, index)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tether.data.alterations import alter
from tether.data.captions import CaptionSplit
from tether.data.reading import read_image
from tether.data.seeds import derived_seed


class CaptionDataset(Dataset):
    """The captions of a split, each with its picture, transformed; as long as there are captions.

    The chance in a transform depends on (seed, epoch, picture) and nothing else: captions of one picture share its
    view, and the picture that was read last is kept, so a group of captions costs one picture. Index it with
    `(epoch, index)`, or with `index` alone for epoch 0. An item is a dict:

        pixels   what the transform made, [3, h, w]; the same tensor for captions of one picture that follow each other
        text     the caption
        picture  int, number of the picture in the split
        index    int, number of the caption in the split

    A picture that cannot be read raises `TetherError`.
    """

    def __init__(self, split: CaptionSplit, transform: Callable[[Image.Image], Tensor], *, seed: int = 0):
        self.split = split
        self.transform = transform
        self.seed = seed
        self._last: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.split.captions)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        picture = int(self.split.pictures[index])
        if self._last is None or self._last[0] != (epoch, picture):
            self._last = (epoch, picture), self._pixels(epoch, picture)
        return {
            "pixels": self._last[1],
            "text": self.split.captions[index],
            "picture": picture,
            "index": index,
        }

    def identity(self, index: int) -> str:
        """Where the picture of a caption is, by which messages name it."""
        return str(self.split.examples[int(self.split.pictures[index])].image)

    def _pixels(self, epoch: int, picture: int) -> Tensor:
        reference = self.split.examples[picture].image
        image = alter(read_image(reference), self.split.alteration, reference.name)
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, picture))
            return self.transform(image)
        finally:
            torch.default_generator.set_state(before)


def collate_captions(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items in which every picture occurs once, to be encoded once.

    Returns:
        pixels [p, 3, h, w] and numbers `pictures` [p] of the distinct pictures; for each of b captions `row` [b], the
        row of its picture in them (`image_features[row]` pairs with the text features), `label` [b], the number of its
        picture, by which captions are positives of each other, `index` [b], its own number, and `text`, a list.
    """
    rows: dict[int, int] = {}
    pixels = []
    for item in items:
        if item["picture"] not in rows:
            rows[item["picture"]] = len(rows)
            pixels.append(item["pixels"])
    return {
        "pixels": torch.stack(pixels),
        "pictures": torch.tensor(list(rows)),
        "row": torch.tensor([rows[item["picture"]] for item in items]),
        "label": torch.tensor([item["picture"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "text": [item["text"] for item in items],
    }
