"""What a model's retrieval on one split is worth: ranks both ways, and where pictures and texts lie."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.data.captions import CaptionSplit
from tether.errors import TetherError
from tether.evaluation.classifier import evaluating
from tether.evaluation.results import Found, Query
from tether.evaluation.retrieval import KS, best_ranks, feature_space, hits, pairs_of_groups, recall, top_k
from tether.evaluation.scoring import Metric, Progress, Scores
from tether.evaluation.significance import Interval
from tether.models import Model

SHOWN = 5
"""Pictures that are kept for each caption, to be shown."""

_WAYS = (("text_to_image", "text → image"), ("image_to_text", "image → text"))
_SPACE = ("alignment", "image_uniformity", "text_uniformity", "cross_uniformity")


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalScores(Scores):
    """Ranks of all pictures and captions of one split, in the split's order.

    Attributes:
        image_ranks: place of each picture's best caption, from 1.
        text_ranks: place of each caption's picture.
        nearest: numbers of the pictures that come first for each caption.
        space: alignment of the right pairs, and uniformity of pictures, of texts and across the two; NaN of one
            picture alone.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="recall", title="recall at 1, mean of both ways"),
        *(
            Metric(name=f"{way}_recall_at_{k}", title=f"{words} recall at {k}")
            for way, words in _WAYS
            for k in KS
        ),
        *(
            Metric(
                name=f"{way}_median_rank", title=f"{words} median rank", higher_is_better=False, share=False
            )
            for way, words in _WAYS
        ),
        Metric(name="alignment", title="alignment", higher_is_better=False, share=False),
        Metric(name="image_uniformity", title="uniformity of pictures", higher_is_better=False, share=False),
        Metric(name="text_uniformity", title="uniformity of texts", higher_is_better=False, share=False),
        Metric(name="cross_uniformity", title="uniformity across both", share=False),
    )

    split: CaptionSplit
    image_ranks: Int[Tensor, " n"]
    text_ranks: Int[Tensor, " captions"]
    nearest: Int[Tensor, "captions shown"]
    space: Float[Tensor, "4"]

    def __post_init__(self) -> None:
        ranks = (len(self.image_ranks), len(self.text_ranks))
        if ranks != (len(self.split), len(self.split.captions)):
            raise TetherError(
                f"Split {self.split.name!r} has {len(self.split)} pictures and {len(self.split.captions)} captions, "
                f"but ranks of {ranks[0]} and {ranks[1]}."
            )

    @cached_property
    def primary(self) -> Float[Tensor, " n"]:
        """Half of whether the picture finds a caption first, half of how many of its captions find it first.

        Captions count alike, however many a picture has: the mean over pictures is the mean of both recalls.
        """
        by_picture = hits(self.image_ranks)[:, 0]
        by_caption = hits(self.text_ranks)[:, 0] * len(self.split) / len(self.text_ranks)
        captions = torch.zeros_like(by_picture)
        captions.index_add_(0, torch.from_numpy(self.split.pictures), by_caption)
        return (by_picture + captions) / 2

    @cached_property
    def interval(self) -> Interval:
        return self.interval_of([self.value], [self])

    def picked(self, places: Sequence[int]) -> "RetrievalScores":
        """The ranks stay as they were, among all pictures and captions."""
        examples = tuple(self.split.examples[place] for place in places)
        number = torch.full((len(self.split),), -1)
        number[list(places)] = torch.arange(len(places))
        rows = [row for row, picture in enumerate(self.split.pictures.tolist()) if number[picture] >= 0]
        return replace(
            self,
            split=replace(self.split, examples=examples),
            image_ranks=self.image_ranks[list(places)],
            text_ranks=self.text_ranks[rows],
            nearest=torch.where(self.nearest < 0, -1, number[self.nearest])[rows],
        )

    @classmethod
    def pooled(cls, parts: Sequence["RetrievalScores"]) -> "RetrievalScores":
        """Ranks are those among the pictures and captions of the own part."""
        examples = tuple(example for part in parts for example in part.split.examples)
        starts = [sum(len(part.split) for part in parts[:i]) for i in range(len(parts))]
        nearest = [
            torch.where(part.nearest < 0, -1, part.nearest + start)[
                :, : min(p.nearest.shape[1] for p in parts)
            ]
            for part, start in zip(parts, starts, strict=True)
        ]
        space = torch.stack([part.space for part in parts])
        weights = torch.tensor([[len(part.split)] for part in parts], dtype=torch.float64) * ~space.isnan()
        return cls(
            split=replace(parts[0].split, examples=examples),
            image_ranks=torch.cat([part.image_ranks for part in parts]),
            text_ranks=torch.cat([part.text_ranks for part in parts]),
            nearest=torch.cat(nearest),
            space=(space.nan_to_num() * weights).sum(0) / weights.sum(0),
        )

    def queries(self, domain: str, limit: int = 6) -> tuple[Query, ...]:
        """Captions at equal distances, with the pictures that come first."""
        captions, pictures = self.split.captions, self.split.pictures.tolist()
        chosen = [i * len(captions) // limit for i in range(min(limit, len(captions)))]
        return tuple(
            Query(
                domain=domain,
                text=captions[row],
                rank=int(self.text_ranks[row]),
                found=tuple(
                    Found(index=index, identity=self.identities[index], right=index == pictures[row])
                    for index in self.nearest[row].tolist()
                    if index >= 0
                ),
            )
            for row in chosen
        )

    def values(self) -> dict[str, float | None]:
        values: dict[str, float | None] = {"recall": self.value}
        for (way, _), ranks in zip(_WAYS, (self.text_ranks, self.image_ranks), strict=True):
            of_way = recall(ranks)
            values |= {f"{way}_recall_at_{k}": share for k, share in of_way.at.items()}
            values[f"{way}_median_rank"] = of_way.median_rank
        for name, number in zip(_SPACE, self.space.tolist(), strict=True):
            values[name] = None if math.isnan(number) else number
        return values

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("image_ranks", "text_ranks", "nearest", "space")}


@dataclass(frozen=True, eq=False)
class CaptionReader:
    """Pictures' features as they are, to be ranked among those of captions.

    Args:
        texts: features of the captions of each split, by the captions.
    """

    texts: Mapping[tuple[str, ...], Float[Tensor, "captions dim"]]

    def __call__(self, features: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
        return features.float()

    def scorer(self, split: Any) -> "RetrievalScorer":
        """Ranks among all pictures and captions of a split."""
        return RetrievalScorer(split, self.texts[split.captions])


def caption_reader(
    model: Model, splits: Iterable[CaptionSplit], *, progress: Progress | None = None
) -> CaptionReader:
    """The captions of some splits as the model encodes them now; those that several splits have, once.

    evaluate(model, benchmark.tests, caption_reader(model, benchmark.tests.values()))
    """
    distinct = dict.fromkeys(split.captions for split in splits)  # a simulated shift has the same
    return CaptionReader({captions: _encoded(model, captions, progress) for captions in distinct})


def _encoded(
    model: Model, captions: Sequence[str], progress: Progress | None, batch_size: int = 256
) -> Float[Tensor, "captions dim"]:
    """Features of captions; short ones together."""
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))
    parts = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            texts = [captions[index] for index in order[start : start + batch_size]]
            parts.append(model.encode_text(model.tokenize(texts)).cpu())
            if progress:
                progress("encoding captions", min(start + batch_size, len(order)), len(order))
    features = torch.cat(parts)
    return torch.empty_like(features).index_copy_(0, torch.tensor(order), features)


class RetrievalScorer:
    """Ranks both ways, when the features of all pictures are there."""

    def __init__(self, split: CaptionSplit, texts: Float[Tensor, "captions dim"]) -> None:
        self._split, self._texts = split, texts

    def rows(self, output: Float[Tensor, "b dim"], index: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        return output

    def scores(self, rows: Float[Tensor, "n dim"]) -> RetrievalScores:
        texts = self._texts
        if not bool(rows.isfinite().all() and texts.isfinite().all()):
            raise TetherError(
                f"The model's features on split {self._split.name!r} are not numbers (NaN or infinity), so it has no "
                f"recall there. Its weights are probably broken: look at the training loss, and lower the rate."
            )
        pictures = torch.from_numpy(self._split.pictures)
        pairs = pairs_of_groups(torch.arange(len(rows)), pictures)
        space = [math.nan] * len(_SPACE)  # one picture has no distance to others
        if len(rows) > 1:
            measured = feature_space(rows, texts, pairs)
            space = [getattr(measured, name) for name in _SPACE]
        return RetrievalScores(
            split=self._split,
            image_ranks=best_ranks(rows, texts, pairs),
            text_ranks=best_ranks(texts, rows, pairs.flip(1)),
            nearest=top_k(texts, rows, min(SHOWN, len(rows)))[1],
            space=torch.tensor(space, dtype=torch.float64),
        )
