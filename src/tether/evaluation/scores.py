"""What a classifier did on one split: its answers, and every number that is derived from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether._alpha import Alpha
from tether.data.records import Split
from tether.errors import TetherError
from tether.evaluation.metrics import expected_calibration_error, macro_f1, mean_per_class_accuracy
from tether.evaluation.significance import Interval, wilson_interval


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores:
    """Answers of one classifier to all pictures of one split, in the split's order, and measures of them.

    Attributes:
        predictions: index of the answered class.
        confidences: probability given to the answer (softmax over the classes that compete in this split).
        ranks: place of the true class among the answers, 0 for right.
        classes: number of class names.
    """

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
    def n(self) -> int:
        """Number of pictures."""
        return len(self.ranks)

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Which pictures were answered rightly."""
        return self.ranks == 0

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """The true classes."""
        return torch.tensor([example.label for example in self.split.examples])

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """What each picture is a picture of; see `Example.identity`."""
        return tuple(example.identity for example in self.split.examples)

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

    def numbers(self) -> dict[str, object]:
        """All measures as JSON can hold them, with the hash of the split and how it was scored."""
        return {
            "split": self.split.name,
            "domain": self.split.domain,
            "n": self.n,
            "top1": self.top1,
            "interval": [self.interval.low, self.interval.high],
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
            "convention": self.split.convention,
            "classes": self.competing,
            "digest": self.split.digest,
        }

    @cached_property
    def competing(self) -> int:
        """Number of different answers that compete in this split, groups counted once."""
        return len(set(self.split.canonical_classes(self.classes)) - {-1})

    @cached_property
    def _counted_as(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        counts_as = torch.tensor(self.split.canonical_classes(self.classes))
        return counts_as[self.predictions.long()], counts_as[self.labels]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores on the way from the zero-shot model (alpha 0) to the fine-tuned one (1), one dict per alpha."""

    alphas: tuple[Alpha, ...]
    scores: tuple[dict[str, SplitScores], ...]

    def at(self, alpha: Alpha) -> dict[str, SplitScores]:
        """Scores by split at one of the alphas.

        Raises:
            TetherError: this alpha was not evaluated.
        """
        if alpha not in self.alphas:
            known = "; ".join(map(alpha_text, self.alphas))
            raise TetherError(f"Alpha {alpha_text(alpha)} was not evaluated; there are: {known}.")
        return self.scores[self.alphas.index(alpha)]

    def curve(self, name: str) -> list[float]:
        """Top-1 accuracy on one split at every alpha."""
        return [scores[name].top1 for scores in self.scores]


def alpha_text(alpha: Alpha) -> str:
    """An alpha as people read it: "0.5", or "image 0.5, text 0.3"."""
    if isinstance(alpha, Mapping):
        return ", ".join(f"{tower} {value:.4g}" for tower, value in alpha.items())
    return f"{alpha:.4g}"
