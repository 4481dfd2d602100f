"""What a classifier did on one split: the rules, its answers, and every number that is derived from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether._alpha import Alpha
from tether.data.records import Split
from tether.errors import TetherError
from tether.evaluation.metrics import (
    expected_calibration_error,
    label_rank,
    macro_f1,
    mean_per_class_accuracy,
)
from tether.evaluation.scoring import Metric, Scores
from tether.evaluation.significance import Interval, wilson_interval


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores(Scores):
    """Answers of one classifier to all pictures of one split, in the split's order, and measures of them.

    Attributes:
        predictions: index of the answered class.
        confidences: probability given to the answer (softmax over the classes that compete in this split).
        ranks: place of the true class among the answers, 0 for right.
        classes: number of class names.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="top1", title="top-1 accuracy"),
        Metric(name="top5", title="top-5 accuracy"),
        Metric(name="mean_per_class", title="mean per-class accuracy"),
        Metric(name="macro_f1", title="macro F1"),
        Metric(name="calibration_error", title="calibration error", higher_is_better=False),
    )

    split: Split
    predictions: Int[Tensor, " n"]
    confidences: Float[Tensor, " n"]
    ranks: Int[Tensor, " n"]
    classes: int

    def __post_init__(self):
        n = len(self.split)
        if n == 0:
            raise TetherError(f"Split {self.split.name!r} has no examples; there is nothing to evaluate.")
        if not len(self.predictions) == len(self.confidences) == len(self.ranks) == n:
            raise TetherError(f"Split {self.split.name!r} has {n} pictures, but not as many answers.")
        if bad := int((~self.confidences.isfinite()).sum()):
            raise TetherError(
                f"The model's answers to {bad} of {n} pictures of split {self.split.name!r} are not numbers "
                f"(NaN or infinity), so it has no accuracy there. Its weights are probably broken: look at "
                f"the training loss, and lower the learning rate."
            )

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Which pictures were answered rightly."""
        return self.ranks == 0

    @property
    def primary(self) -> Float[Tensor, " n"]:
        """1 where the answer is right."""
        return self.correct.double()

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """The true classes."""
        return torch.tensor([example.label for example in self.split.examples])

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return self.correct.double().mean().item()

    @property
    def top5(self) -> float | None:
        """Share of pictures whose true class is among the first five; None where that is every class."""
        return (self.ranks < 5).double().mean().item() if self.competing > 5 else None

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of `top1`: what other pictures of the same kind might have given."""
        return wilson_interval(self.top1, self.n)

    @property
    def mean_per_class(self) -> float:
        """Accuracy averaged over the classes that occur."""
        return mean_per_class_accuracy(*self._counted_as)

    @property
    def macro_f1(self) -> float:
        """F1 averaged over the classes that occur."""
        return macro_f1(*self._counted_as)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in 15 bins."""
        return expected_calibration_error(self.confidences, self.correct)

    def picked(self, places: Sequence[int]) -> "SplitScores":
        examples = tuple(self.split.examples[place] for place in places)
        tensors = {name: tensor[list(places)] for name, tensor in self.tensors().items()}
        return replace(self, split=replace(self.split, examples=examples), **tensors)

    @classmethod
    def pooled(cls, parts: Sequence["SplitScores"]) -> "SplitScores":
        examples = tuple(example for part in parts for example in part.split.examples)
        tensors = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
        return cls(split=replace(parts[0].split, examples=examples), classes=parts[0].classes, **tensors)

    @staticmethod
    def interval_of(values: Sequence[float], runs: Sequence["SplitScores"]) -> Interval:
        return wilson_interval(math.fsum(values) / len(values), runs[0].n)

    def values(self) -> dict[str, float | None]:
        return {metric.name: getattr(self, metric.name) for metric in self.metrics}

    def tensors(self) -> dict[str, Tensor]:
        return {"predictions": self.predictions, "confidences": self.confidences, "ranks": self.ranks}

    def numbers(self) -> dict[str, object]:
        numbers = {**super().numbers(), "classes": self.competing}
        if self.split.class_names is not None:
            numbers["class_names"] = list(self.split.class_names)
        if self.split.templates is not None:
            numbers["templates"] = list(self.split.templates)
        return numbers

    @cached_property
    def competing(self) -> int:
        """Number of different answers that compete in this split, groups counted once."""
        return len(set(self.split.canonical_classes(self.classes)) - {-1})

    @cached_property
    def _counted_as(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        counts_as = torch.tensor(self.split.canonical_classes(self.classes))
        return counts_as[self.predictions.long()], counts_as[self.labels]


class ClassScorer:
    """Prediction, rank of the label and confidence of each row of logits, by the rules of one split."""

    def __init__(self, split: Split, classes: int):
        if split.highest_class >= classes:
            raise TetherError(
                f"Split {split.name!r} has class {split.highest_class}, but the classifier knows only classes 0 to "
                f"{classes - 1}. Use the class names of the split's own benchmark."
            )
        self.split, self.classes = split, classes
        self.labels = torch.tensor([example.label for example in split.examples])
        self.counts_as = torch.tensor(split.canonical_classes(classes))
        self.grouped = bool(split.groups)

    def rows(self, logits: Float[Tensor, "b classes"], index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
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


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores on the way from the zero-shot model (alpha 0) to the fine-tuned one (1), one dict per alpha."""

    alphas: tuple[Alpha, ...]
    scores: tuple[dict[str, Any], ...]

    def at(self, alpha: Alpha) -> dict[str, Any]:
        """Scores by split at one of the alphas.

        Raises:
            TetherError: this alpha was not evaluated.
        """
        if alpha not in self.alphas:
            known = "; ".join(map(alpha_text, self.alphas))
            raise TetherError(f"Alpha {alpha_text(alpha)} was not evaluated; there are: {known}.")
        return self.scores[self.alphas.index(alpha)]

    def curve(self, name: str) -> list[float]:
        """The first metric on one split at every alpha."""
        return [scores[name].value for scores in self.scores]


def alpha_text(alpha: Alpha) -> str:
    """An alpha as people read it: "0.5", or "image 0.5, text 0.3"."""
    if isinstance(alpha, Mapping):
        return ", ".join(f"{tower} {value:.4g}" for tower, value in alpha.items())
    return f"{alpha:.4g}"
