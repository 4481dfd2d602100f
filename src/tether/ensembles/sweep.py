"""Every alpha on the way from the zero-shot model to the tuned one, on pictures that are read once."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tether._alpha import Alpha, alpha_of
from tether.data.records import PictureSplit
from tether.errors import TetherError
from tether.evaluation.classification import no_autocast_cache, whole_batches_of
from tether.evaluation.classifier import evaluating
from tether.evaluation.encoder import encoder_of
from tether.evaluation.scores import Sweep, alpha_text
from tether.evaluation.scoring import Progress, Reader, Scorer, answer
from tether.evaluation.sharing import shared_prefix
from tether.models.model import Model
from tether.models.weight_path import Path, restoring


def alpha_sweep(
    model: Model,
    path: Path,
    splits: Mapping[str, PictureSplit],
    alphas: Sequence[Alpha],
    reader: Callable[[float], Reader],
    *,
    batch_size: int = 64,
    workers: int = 0,
    open_split: Callable[[PictureSplit], Dataset] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Scores at every alpha of a path from the zero-shot model to the tuned one, reading each picture once.

    Per batch the model is set to one alpha after the other. Pictures are encoded once per distinct alpha
    of the image tower, from the first module that the path changes on, and readers are made once per distinct
    alpha of the text tower, so a grid of i × t alphas costs i image passes and t text passes. The model is
    the zero-shot one afterwards, bit for bit, whatever happens.

    Args:
        path: of the model, such as `attached.path()` or `WeightPath(model.module, delta)`, inside its `with` block.
        alphas: numbers, or `{"image": a, "text": b}`.
        reader: called once per distinct alpha of the text tower with the model there, for example
            `lambda alpha: zero_shot_classifier(model, names, templates)` or an interpolated linear head.

    Raises:
        TetherError: as `evaluate`; no alpha, one that is given twice or is not finite.
    """
    towers = _towers(alphas)
    with restoring(path), evaluating(model), no_autocast_cache():
        readers: dict[float, Reader] = {}
        for _, text in towers:
            if text not in readers:
                path.set(text)  # what belongs to neither tower, such as the logit scale, goes with it
                readers[text] = reader(text)
        images = list(dict.fromkeys(image for image, _ in towers))
        members = [[i for i, (image, _) in enumerate(towers) if image == one] for one in images]

        encoder = encoder_of(next(iter(readers.values())))  # that of the task, so of all of them

        def batches(split: PictureSplit) -> Iterator[tuple[dict[str, Any], Tensor]]:
            return whole_batches_of(model, split, batch_size, workers, open_split, encoder)

        far = ("evaluating", 0, sum(map(len, splits.values())))

        def tell(*news: Any) -> None:
            nonlocal far
            far = news
            if progress:
                progress(*far)

        def respond(batch: Mapping[str, Any], split: PictureSplit) -> Iterator[Any]:
            for image, group in zip(images, members, strict=True):
                path.set(image, "image")
                features = encoder(model, batch)
                tell(*far)  # at every alpha: a batch at all of them may take half a minute
                for i in group:
                    yield readers[towers[i][1]](features)

        members_in_order = list(itertools.chain(*members))

        def scorer(split: PictureSplit, number: int) -> Scorer:
            return readers[towers[members_in_order[number]][1]].scorer(split)

        with shared_prefix(model.module, path.changes("image")) as forget_useless:
            answers = answer(splits, scorer, batches, respond, tell, forget_useless)
    order = {member: number for number, member in enumerate(members_in_order)}
    return Sweep(tuple(alphas), tuple(answers[order[i]] for i in range(len(towers))))


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
