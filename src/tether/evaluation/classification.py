"""Have a model answer for the pictures of several splits."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tether import _distributed
from tether.data.records import PictureSplit
from tether.evaluation.classifier import evaluating
from tether.evaluation.encoder import IMAGE_FEATURES, Encoder, encoder_of
from tether.evaluation.reading import read_ahead
from tether.evaluation.scoring import Progress, Reader, Scores, answer
from tether.models.model import Model


def evaluate(
    model: Model,
    splits: Mapping[str, PictureSplit],
    classifier: Reader,
    *,
    batch_size: int = 64,
    workers: int = 0,
    open_split: Callable[[PictureSplit], Dataset] | None = None,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores of the model as it is now on each split, by the split's own rules.

    Under `torchrun` the processes share the pictures, and each gets the complete result.

    Args:
        workers: processes that read pictures; 0 reads in this one.
        open_split: makes the data set of a split, whose items are dicts with "pixels" and "index"; by default
            what the reader's encoder makes, for image features `ImageDataset` with the model's own test transform.

    Raises:
        TetherError: a split without pictures, a label beyond the classifier, or answers that are not numbers.
    """

    encoder = encoder_of(classifier)

    def batches(split: PictureSplit) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return whole_batches_of(model, split, batch_size, workers, open_split, encoder)

    def respond(batch: Mapping[str, Any], split: PictureSplit) -> list[Any]:
        return [classifier(encoder(model, batch))]

    with evaluating(model):
        return answer(splits, lambda split, _: classifier.scorer(split), batches, respond, progress)[0]


def batches_of(
    model: Model,
    split: PictureSplit,
    batch_size: int,
    workers: int = 0,
    open_split: Callable[[PictureSplit], Dataset] | None = None,
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """Pixels, where the model computes, and numbers of this process's pictures; shares are equally long."""
    for batch, index in whole_batches_of(model, split, batch_size, workers, open_split):
        yield batch["pixels"], index


def whole_batches_of(
    model: Model,
    split: PictureSplit,
    batch_size: int,
    workers: int = 0,
    open_split: Callable[[PictureSplit], Dataset] | None = None,
    encoder: Encoder = IMAGE_FEATURES,
) -> Iterator[tuple[dict[str, Any], Int[Tensor, " b"]]]:
    """Batches with all that an encoder asks for, pixels where the model computes, and numbers of their pictures.

    The coming batches are read meanwhile, see `tether.evaluation.reading`.
    """
    data = open_split(split) if open_split else encoder.open_split(model, split)
    share = share_of_process(len(split))
    options = {"batch_size": batch_size, "workers": workers, "collate": encoder.collate}
    with closing(read_ahead(data, share, **options)) as batches:
        for batch in batches:
            yield {**batch, "pixels": batch["pixels"].to(model.device)}, batch["index"]


def share_of_process(n: int) -> Sequence[int]:
    """Indices this process evaluates; all processes get equally many, the last ones wrap around."""
    world = _distributed.world_size()
    return [i % n for i in range(_distributed.rank(), math.ceil(n / world) * world, world)] if n else []


@contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Autocast keeps cast weights and does not see that they change in place; make it cast them each time."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
