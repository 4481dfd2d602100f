"""Scores whose metrics are functions of sums over pictures, such as ratios of sums: mean IoU, recall per class."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tether.data.records import PictureSplit
from tether.evaluation.scoring import Scores
from tether.evaluation.significance import Interval, Statistic


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores(Scores):
    """All that is kept of each picture is a row of numbers, and the first metric is no mean over pictures.

    Attributes:
        rows: one per picture, in the split's order.
    """

    split: PictureSplit
    rows: Float[Tensor, "n k"]

    @cached_property
    def interval(self) -> Interval:
        return self.interval_of([self.value], [self])

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def picked(self, places: Sequence[int]) -> "RowScores":
        examples = tuple(self.split.examples[place] for place in places)
        return replace(self, split=replace(self.split, examples=examples), rows=self.rows[list(places)])

    @classmethod
    def pooled(cls, parts: Sequence["RowScores"]) -> "RowScores":
        examples = tuple(example for part in parts for example in part.split.examples)
        split = replace(parts[0].split, examples=examples)
        return replace(parts[0], split=split, rows=torch.cat([part.rows for part in parts]))


def pseudo_values(value: Float[Tensor, ""], without: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What each picture adds to a metric, shifted so that their mean is the metric itself.

    Jackknife pseudo-values n · v − (n − 1) · v without the picture (Tukey 1958); of a mean they are its numbers.

    Args:
        value: v.
        without: v without each of the pictures; NaN of one that alone says anything.
    """
    n = len(without)
    pseudo = n * value - (n - 1) * torch.where(without.isnan(), value, without)
    return pseudo - pseudo.mean() + value


@dataclass(frozen=True, kw_only=True, eq=False)
class SumScores(RowScores):
    """Rows that add up over pictures, and metrics of their sums. A metric is made by two names:

    class IoUScores(SumScores):
        metrics = (Metric(name="miou", title="mean IoU"),)

        @staticmethod
        def values_of(sums):  # of rows (intersections, unions), each [classes]
            intersections, unions = sums.chunk(2, -1)
            return (intersections / unions).nanmean(-1, keepdim=True)  # over the classes that occur
    """

    @staticmethod
    @abstractmethod
    def values_of(sums: Float[Tensor, "*d k"]) -> Float[Tensor, "*d m"]:
        """The metrics, in their order, of sums of rows over any pictures; NaN where these say nothing."""

    @cached_property
    def sums(self) -> Float[Tensor, " k"]:
        """Of the rows of all pictures."""
        return self.rows.double().sum(0)

    @property
    def statistic(self) -> Statistic:
        return Statistic(self.rows, lambda sums: self.values_of(sums)[..., 0])

    @property
    def value(self) -> float:
        return self.values_of(self.sums)[0].item()

    @cached_property
    def primary(self) -> Float[Tensor, " n"]:
        """Of the first metric, see `pseudo_values`."""
        without = self.values_of(self.sums - self.rows.double())[:, 0]
        return pseudo_values(self.values_of(self.sums)[0], without)

    def values(self) -> dict[str, float | None]:
        values = self.values_of(self.sums).tolist()
        return {
            metric.name: None if value != value else value
            for metric, value in zip(self.metrics, values, strict=True)
        }
