"""The rules of a metric, brought in from outside: what a task's answers are, and what numbers come of them.

    features ─▶ Reader ─▶ output ─▶ Scorer.rows ─▶ a row of numbers per example ─▶ Scorer.scores ─▶ Scores

A reader says what is made of a picture's features at one alpha: a classifier's logits, or the features themselves
where they are ranked among others later, or classified among the classes of their split. Rows can be gathered from
processes, and each example counts once. Scores know their metrics; the first one is what tuning, alpha and significance
go by. Most are means over pictures; for functions of sums over pictures, such as mean IoU, see
`tether.evaluation.sum_scores`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether import _distributed
from tether.data.records import PictureSplit
from tether.errors import TetherError
from tether.evaluation.metrics import once_by_index
from tether.evaluation.significance import Interval, Mean, Statistic, bootstrap

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many pictures or prompts are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how good answers are.

    Attributes:
        name: in files, such as "top1".
        title: for people, such as "top-1 accuracy".
        higher_is_better: its direction.
        share: whether it is a fraction between 0 and 1, shown in percent.
    """

    name: str
    title: str
    higher_is_better: bool = True
    share: bool = True


class Scores(ABC):
    """What answers to all pictures of one split are worth.

    Attributes:
        split: the pictures, in order.
        metrics: what is measured; by the first one, a share of which more is better, settings and alpha are chosen
            and methods are told apart.
        primary: for every picture a number whose mean over the split is the first metric.
        untuned: what answers at alpha 0, in words.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    untuned: ClassVar[str] = "the zero-shot model"
    split: PictureSplit

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        metrics = vars(cls).get("metrics")
        if metrics and not (metrics[0].higher_is_better and metrics[0].share):
            raise TetherError(
                f"The first metric of {cls.__name__} is {metrics[0].title!r}, by which methods are chosen and told "
                "apart: that takes a share, and higher is better. Put such a metric first."
            )

    @property
    @abstractmethod
    def primary(self) -> Float[Tensor, " n"]: ...

    @property
    def statistic(self) -> Statistic:
        """The first metric as a function of sums over pictures, which a bootstrap computes again."""
        return Mean(self.primary)

    @property
    @abstractmethod
    def interval(self) -> Interval:
        """95 % interval of the first metric: what other pictures of the same kind might have given."""

    @abstractmethod
    def values(self) -> dict[str, float | None]:
        """Every metric by name; None where the split has none, such as top-5 among five classes."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What these scores can be made of again, with the split."""

    @abstractmethod
    def picked(self, places: Sequence[int]) -> "Scores":
        """The same without all but some pictures of the split."""

    @classmethod
    @abstractmethod
    def pooled(cls, parts: Sequence[Any]) -> "Scores":
        """Answers on the pictures of several splits of one domain, such as those of folds, as answers on one split."""

    @property
    def competing(self) -> int:
        """Number of different answers that compete in this split."""
        return self.n

    @staticmethod
    def interval_of(values: Sequence[float], runs: Sequence[Any]) -> Interval:
        """95 % interval over draws of pictures, and of runs, of the first metric's mean over runs on one split.

        Args:
            values: the metric in each run.
            runs: the scores of each.
        """
        statistics = {"": [one.statistic for one in runs]}
        estimate = bootstrap(statistics, {"": runs[0].identities}, draws=2_000)
        return Interval(estimate.low, estimate.high)

    def queries(self, domain: str) -> tuple[Any, ...]:
        """Some queries and what came up, as `tether.evaluation.results.Query`; none where nothing is searched."""
        return ()

    @property
    def n(self) -> int:
        """Number of pictures."""
        return len(self.split)

    @property
    def value(self) -> float:
        """The first metric."""
        return self.primary.double().mean().item()

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """What each picture is a picture of."""
        return tuple(example.identity for example in self.split.examples)

    def numbers(self) -> dict[str, object]:
        """All measures as JSON can hold them, with the hash of the split and how it was scored."""
        first, *rest = self.metrics
        values = self.values()
        return {
            "split": self.split.name,
            "domain": self.split.domain,
            "n": self.n,
            first.name: values[first.name],
            "interval": [self.interval.low, self.interval.high],
            **{metric.name: values[metric.name] for metric in rest},
            "convention": self.split.convention,
            "digest": self.split.digest,
        }


@runtime_checkable
class Scorer(Protocol):
    """The rules of one split."""

    def rows(self, output: Any, index: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """For each picture of a batch a row of numbers; all that is kept of it.

        Args:
            output: the reader's; what it is judged by comes with it where that is too large to be held for a split.
        """

    def scores(self, rows: Float[Tensor, "n k"]) -> Scores:
        """From the rows of all pictures of the split in order."""


@runtime_checkable
class Reader(Protocol):
    """What is made of a batch at one alpha: of image features of length 1, [b, dim], unless the reader has an attribute
    `encoder` that says otherwise, see `tether.evaluation.encoder.Encoder`."""

    def __call__(self, features: Any) -> Any:
        """The output for what the encoder gives."""

    def scorer(self, split: Any) -> Scorer:
        """The rules by which outputs for a split are scored."""


def answer(
    splits: Mapping[str, PictureSplit],
    scorer: Callable[[PictureSplit, int], Scorer],
    batches: Callable[[Any], Iterable[tuple[Any, Int[Tensor, " b"]]]],
    respond: Callable[[Any, Any], Iterable[Any]],
    progress: Progress | None = None,
    batch_done: Callable[[], None] = lambda: None,
) -> list[dict[str, Scores]]:
    """Scores on each split of every one that `respond` asks, each picture read once.

    Args:
        scorer: of a split and the number of the one that answers.
        batches: what is asked and numbers of this process's pictures of a split, see `batches_of`.
        respond: outputs for a batch by one after the other, always as many.
        batch_done: called after each batch.

    Raises:
        TetherError: there is no split, or one without pictures.
    """
    if not splits:
        raise TetherError("There is no split to evaluate.")
    results: list[dict[str, Scores]] = []
    total, done = sum(map(len, splits.values())), 0
    for name, split in splits.items():
        if not len(split):
            raise TetherError(f"Split {split.name!r} has no examples; there is nothing to evaluate.")
        scorers: list[Scorer] = []
        seen, rows = [], []
        for batch, index in batches(split):
            of_batch = []
            for number, output in enumerate(respond(batch, split)):
                if number == len(scorers):
                    scorers.append(scorer(split, number))
                of_batch.append(scorers[number].rows(output, index))
            rows.append(torch.stack(of_batch, 1))
            batch_done()
            seen.append(index)
            done += len(index) * _distributed.world_size()
            if progress:
                progress(f"evaluating {name}", min(done, total), total)
        index = _distributed.gather(torch.cat(seen))
        (by_picture,) = once_by_index(index, len(split), _distributed.gather(torch.cat(rows).cpu()))
        results = results or [{} for _ in scorers]
        for number, result in enumerate(results):
            result[name] = scorers[number].scores(by_picture[:, number])
    return results
