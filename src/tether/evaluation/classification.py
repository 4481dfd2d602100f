"""Classify the pictures of several splits with one set of weights, or with a whole path of them at once."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tether import _distributed
from tether._alpha import TOWERS, Alpha, alpha_of, tower_of
from tether.data.dataset import ImageDataset
from tether.data.records import Split
from tether.data.transforms import test_transform
from tether.ensembles.weight_space import WeightPath
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier, Progress, evaluating
from tether.evaluation.metrics import label_rank, once_by_index
from tether.evaluation.reading import read_ahead
from tether.evaluation.scores import SplitScores, Sweep, alpha_text
from tether.evaluation.sharing import shared_prefix
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


def alpha_sweep(
    model: Model,
    delta: Mapping[str, Tensor],
    splits: Mapping[str, Split],
    alphas: Sequence[Alpha],
    classifier: Callable[[float], Classifier],
    *,
    batch_size: int = 64,
    workers: int = 0,
    open_split: Callable[[Split], Dataset] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Scores of the weights W0 + alpha · delta for every alpha, reading each picture once.

    Per batch the weights are set to one alpha after the other. Pictures are encoded once per distinct alpha
    of the image tower, from the first module that delta changes on, and classifiers are made once per distinct
    alpha of the text tower, so a grid of i × t alphas costs i image passes and t text passes. The weights are
    as before afterwards, bit for bit, whatever happens.

    Args:
        delta: fine-tuned minus base weights, by parameter name.
        alphas: numbers, or `{"image": a, "text": b}`.
        classifier: called once per distinct alpha of the text tower with the weights set, for example
            `lambda alpha: zero_shot_classifier(model, names, templates)` or an interpolated linear head.

    Raises:
        TetherError: as `evaluate`; no alpha, one that is given twice or is not finite.
    """
    towers = _towers(alphas)
    image_changes, text_changes = (
        {name: change for name, change in delta.items() if tower_of(name) == tower} for tower in TOWERS
    )
    image_path, text_path = WeightPath(model.module, image_changes), WeightPath(model.module, text_changes)
    with image_path, text_path, evaluating(model), no_autocast_cache():
        classifiers: dict[float, Classifier] = {}
        for _, text in towers:
            if text not in classifiers:
                image_path.set(
                    text
                )  # what belongs to neither tower, such as the logit scale, is counted there
                text_path.set(text)
                classifiers[text] = classifier(text)
        images = list(dict.fromkeys(image for image, _ in towers))
        members = [[i for i, (image, _) in enumerate(towers) if image == one] for one in images]

        def batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
            return batches_of(model, split, batch_size, workers, open_split)

        def respond(pixels: Tensor, split: Split) -> Iterator[Tensor]:
            for image, group in zip(images, members, strict=True):
                image_path.set(image)
                features = model.encode_image(pixels)
                for i in group:
                    yield classifiers[towers[i][1]](features)

        classes = len(next(iter(classifiers.values())).weight)
        with shared_prefix(model.module, image_changes) as forget_useless:
            answers = answer(splits, classes, batches, respond, progress, forget_useless)
    order = {member: place for place, member in enumerate(itertools.chain(*members))}
    return Sweep(tuple(alphas), tuple(answers[order[i]] for i in range(len(towers))))


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
                progress(name, min(done, total), total)
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
    """Pixels, where the model computes, and numbers of this process's pictures; shares are equally long.

    The coming batches are read meanwhile, see `tether.evaluation.reading`.
    """
    data = open_split(split) if open_split else ImageDataset(split, test_transform(model.image))
    share = share_of_process(len(split))
    with closing(read_ahead(data, share, batch_size=batch_size, workers=workers)) as batches:
        for batch in batches:
            yield batch["pixels"].to(model.device), batch["index"]


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


def _towers(alphas: Iterable[Alpha]) -> list[tuple[float, float]]:
    """Every alpha as (image, text)."""
    pairs = []
    for alpha in alphas:
        pair = (alpha_of(alpha, "image"), alpha_of(alpha, "text"))
        if not all(map(math.isfinite, pair)):
            raise TetherError(f"Every alpha must be a finite number; found {alpha_text(alpha)}.")
        if pair in pairs:
            raise TetherError(f"Alpha {alpha_text(alpha)} is given twice.")
        pairs.append(pair)
    if not pairs:
        raise TetherError("A sweep needs at least one alpha, for example 0, 0.1, …, 1.")
    return pairs


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
