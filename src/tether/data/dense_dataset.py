"""Pictures with answers for pixels and objects as a torch data set, each item a function of (seed, epoch, index)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from tether.data.alterations import alter
from tether.data.dense import DenseSplit
from tether.data.dense_transforms import DenseTransform, at_size
from tether.data.reading import read_image
from tether.data.seeds import derived_seed
from tether.data.targets import DenseTarget
from tether.errors import TetherError

_OF_OBJECTS = ("boxes", "labels", "masks", "crowd", "difficult", "areas")


class DenseDataset(Dataset):
    """Pictures and answers of a split, transformed together; chance depends on (seed, epoch, index) and nothing else.

    Index it with `(epoch, index)`, or with `index` alone for epoch 0. An item is what the transform makes, see
    `tether.data.dense_transforms.dense_test_transform`, with:

        index      int, position in the split
        size       (height, width) of the picture as it was read (and altered), for which answers are given back
        target     its `DenseTarget` at that size, by which answers are judged; only with `keep_target`

    A picture or an answer that cannot be read raises `TetherError`; `tether.data.dense_checking.problems` finds all of
    them beforehand.

    Example:

        dataset = DenseDataset(benchmark.train, dense_train_transform(model.image), seed=0)
        loader = DataLoader(dataset, batch_size=8, collate_fn=collate_dense)
    """

    def __init__(
        self, split: DenseSplit, transform: DenseTransform, *, seed: int = 0, keep_target: bool = False
    ):
        self.split = split
        self.transform = transform
        self.seed = seed
        self.keep_target = keep_target

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        picture, target = self.pair(index)
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
            item = self.transform(picture, target)
        finally:
            torch.default_generator.set_state(before)
        item |= {"index": index, "size": (picture.height, picture.width)}
        return item | ({"target": target} if self.keep_target else {})

    def pair(self, index: int) -> tuple[Any, DenseTarget]:
        """The picture (PIL, RGB) as read and altered, and its answer at the same size.

        Raises:
            TetherError: one of them cannot be read, or they do not fit; the message names the picture.
        """
        example = self.split.examples[index]
        picture = read_image(example.image)
        size = (picture.height, picture.width)
        try:
            target = example.target.read(*size)
        except TetherError as error:
            raise TetherError(f"Cannot read the answer for the picture {example.image}: {error}") from error
        altered = alter(picture, self.split.alteration, example.image.name)
        return altered, at_size(target, size, (altered.height, altered.width))

    def identity(self, index: int) -> str:
        """Where a picture is, by which messages name it."""
        return str(self.split.examples[index].image)


def collate_dense(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items.

    Returns:
        pixels [b, 3, h, w]; semantic [b, h, w], where items have it; `objects`, where items have boxes: for each item
        a dict of boxes, labels, crowd, difficult, areas and, if any, masks; index [b]; content and size, lists of
        (height, width); `target`, where items have it, a list of `DenseTarget`.
    """
    batch: dict[str, Any] = {
        "pixels": torch.stack([item["pixels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "content": [item["content"] for item in items],
        "size": [item["size"] for item in items],
    }
    if "semantic" in items[0]:
        batch["semantic"] = torch.stack([item["semantic"] for item in items])
    if "boxes" in items[0]:
        batch["objects"] = [{name: item[name] for name in _OF_OBJECTS if name in item} for item in items]
    if "target" in items[0]:
        batch["target"] = [item["target"] for item in items]
    return batch
