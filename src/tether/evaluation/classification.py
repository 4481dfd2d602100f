"""Classify the pictures of several splits."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from tether import _distributed
from tether.data.dataset import ImageDataset
from tether.data.records import Split
from tether.data.transforms import test_transform
from tether.errors import TetherError, without_traceback
from tether.evaluation.classifier import Classifier, Progress, evaluating
from tether.evaluation.metrics import label_rank, once_by_index
from tether.evaluation.scores import SplitScores
from tether.models.model import Model


def evaluate(
    model: Model,
    splits: Mapping[str, Split],
    classifier: Classifier,
    *,
    batch_size: int = 64,
    workers: int = 0,
    open_split: Callable[[Split], Dataset] | None = None,
    progress: Progress | None = None,
) -> dict[str, SplitScores]:
    """Scores of the model as it is now on each split, with the split's own class mask and groups.

    Under `torchrun` the processes share the pictures, and each gets the complete result.

    Args:
        workers: processes that read pictures; 0 reads in this one.
        open_split: makes the data set of a split, whose items are dicts with "pixels" and "index"; by default
            `ImageDataset` with the model's own test transform.

    Raises:
        TetherError: a split without pictures, a label beyond the classifier, or answers that are not numbers.
    """

    def batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        return batches_of(model, split, batch_size, workers, open_split)

    def respond(pixels: Tensor, split: Split) -> list[Tensor]:
        return [classifier(model.encode_image(pixels))]

    with evaluating(model):
        return answer(splits, len(classifier.weight), batches, respond, progress)[0]


def answer(
    splits: Mapping[str, Split],
    classes: int,
    batches: Callable[[Split], Iterable[tuple[Tensor, Int[Tensor, " b"]]]],
    respond: Callable[[Tensor, Split], Iterable[Float[Tensor, "b classes"]]],
    progress: Progress | None = None,
    batch_done: Callable[[], None] = lambda: None,
) -> list[dict[str, SplitScores]]:
    """Scores on each split of every classifier that `respond` asks, each picture read once.

    Args:
        batches: pixels and numbers of this process's pictures of a split, see `batches_of`.
        respond: logits of a batch by one classifier after the other, always as many.
        batch_done: called after each batch.

    Raises:
        TetherError: there is no split, or one without pictures.
    """
    if not splits:
        raise TetherError("There is no split to evaluate.")
    results: list[dict[str, SplitScores]] = []
    total, done = sum(map(len, splits.values())), 0
    for name, split in splits.items():
        scorer = Scorer(split, classes)
        seen, rows = [], []
        for pixels, index in batches(split):
            rows.append(torch.stack([scorer(logits, index) for logits in respond(pixels, split)], 1))
            batch_done()
            seen.append(index)
            done += len(index) * _distributed.world_size()
            if progress:
                progress(f"evaluating {name}", min(done, total), total)
        index = _distributed.gather(torch.cat(seen))
        (found,) = once_by_index(index, len(split), _distributed.gather(torch.cat(rows).cpu()))
        results = results or [{} for _ in range(found.shape[1])]
        for place, result in enumerate(results):
            result[name] = scorer.scores(found[:, place])
    return results


def batches_of(
    model: Model,
    split: Split,
    batch_size: int,
    workers: int = 0,
    open_split: Callable[[Split], Dataset] | None = None,
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
    """Pixels, where the model computes, and numbers of this process's pictures; shares are equally long."""
    data = open_split(split) if open_split else ImageDataset(split, test_transform(model.image))
    try:
        for batch in DataLoader(Subset(data, share_of_process(len(split))), batch_size, num_workers=workers):
            yield batch["pixels"].to(model.device), batch["index"]
    except TetherError as error:
        raise without_traceback(error) from error


class Scorer:
    """Prediction, rank of the label and confidence of each row of logits, by the rules of one split."""

    def __init__(self, split: Split, classes: int):
        if not len(split):
            raise TetherError(f"Split {split.name!r} has no examples; there is nothing to evaluate.")
        highest = max(split.labels.union(split.class_mask or ()))
        if highest >= classes:
            raise TetherError(
                f"Split {split.name!r} has class {highest}, but the classifier knows only classes 0 to "
                f"{classes - 1}. Use the class names of the split's own benchmark."
            )
        self.split, self.classes = split, classes
        self.labels = torch.tensor([example.label for example in split.examples])
        self.counts_as = torch.tensor(split.canonical_classes(classes))
        self.grouped = bool(split.groups)

    def __call__(self, logits: Float[Tensor, "b classes"], index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
        counts_as = self.counts_as.to(logits.device)
        labels = counts_as[self.labels[index].to(logits.device)]
        logits = logits.double().masked_fill(counts_as < 0, -math.inf)
        predictions = logits.argmax(1)
        probabilities = logits.softmax(1)
        if self.grouped:  # a group answers with its best class, and with the confidence of all its classes
            target = counts_as.clamp(min=0).expand_as(logits)
            logits = torch.full_like(logits, -math.inf).scatter_reduce(1, target, logits, "amax")
            probabilities = torch.zeros_like(probabilities).scatter_add(1, target, probabilities)
        confidences = probabilities.gather(1, counts_as[predictions][:, None]).squeeze(1)
        return torch.stack([predictions.double(), label_rank(logits, labels).double(), confidences], 1)

    def scores(self, rows: Float[Tensor, "n 3"]) -> SplitScores:
        """The scores of the split, from the rows of all its pictures in order."""
        return SplitScores(
            split=self.split,
            predictions=rows[:, 0].long(),
            ranks=rows[:, 1].long(),
            confidences=rows[:, 2].contiguous(),
            classes=self.classes,
        )


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
