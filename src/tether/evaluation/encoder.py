"""From the pictures of a split to what a reader reads: how they are opened, collated and put through the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tether.data.dataset import ImageDataset
from tether.data.dense_dataset import DenseDataset, collate_dense
from tether.data.dense_transforms import Fit, dense_test_transform
from tether.data.records import PictureSplit
from tether.data.transforms import test_transform
from tether.models.model import Model


@runtime_checkable
class Encoder(Protocol):
    """What stands before a reader. Of one task, so it is the same at every alpha.

    Attributes:
        collate: makes a batch of items; None for torch's own.
    """

    collate: Callable[[list[Any]], Any] | None

    def open_split(self, model: Model, split: PictureSplit, *, cache_bytes: int = 0) -> Dataset:
        """Items of a split, dicts with "pixels", "index" and whatever else is encoded or scored.

        Args:
            cache_bytes: memory that decoded pictures may be kept in, where the data set can.
        """

    def __call__(self, model: Model, batch: Mapping[str, Any]) -> Any:
        """What a reader is given, of a batch with its pixels where the model computes."""


@dataclass(frozen=True)
class ImageFeatures:
    """Features of length 1 of the pictures alone: what classifiers and retrieval read."""

    collate: None = None

    def open_split(self, model: Model, split: PictureSplit, *, cache_bytes: int = 0) -> Dataset:
        return ImageDataset(split, test_transform(model.image), cache_bytes=cache_bytes)

    def __call__(self, model: Model, batch: Mapping[str, Any]) -> Float[Tensor, "b dim"]:
        return model.encode_image(batch["pixels"])


@dataclass(frozen=True)
class WithAnswers:
    """Pictures as they go into the model, with their answers beside them: what detectors read, which hold the model.

    A reader is given the batch of `collate_dense` with `target`, of each picture its `DenseTarget` at the size it was
    read in, by which its scorer judges.

    Args:
        fit: how pictures are brought to the model's size.
    """

    fit: Fit = "pad"
    collate: Callable[[list[Any]], Any] = collate_dense

    def open_split(self, model: Model, split: PictureSplit, *, cache_bytes: int = 0) -> Dataset:
        """Nothing is kept in memory: answers are as large as pictures."""
        return DenseDataset(split, dense_test_transform(model.image, fit=self.fit), keep_target=True)

    def __call__(self, model: Model, batch: Mapping[str, Any]) -> dict[str, Any]:
        return dict(batch)


class FeatureMaps(WithAnswers):
    """The same with `maps`, those of `Model.feature_maps`: what heads read that do not hold the model."""

    def __call__(self, model: Model, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**batch, "maps": model.feature_maps(batch["pixels"])}


IMAGE_FEATURES = ImageFeatures()


def encoder_of(reader: Any) -> Encoder:
    """What a reader has as its `encoder`; image features where it has none."""
    return getattr(reader, "encoder", IMAGE_FEATURES)
