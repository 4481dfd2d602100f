"""Effective robustness: accuracy on shifted data beyond what accuracy on ordinary data predicts.

Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts", section 3. Over models without any
robust method, accuracy under a natural shift is close to a line in accuracy without it, when both are on
logit axes. A method's effective robustness is how far it lies above that line:

    rho = shifted - sigmoid(intercept + slope * logit(in-distribution))

A method that only moves along the line is better or worse, but no more robust.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tether.errors import TetherError
from tether.evaluation.significance import Interval, student_t_quantile


@dataclass(frozen=True)
class BaselineLine:
    """Least-squares line through ordinary models on logit axes, with what its interval needs."""

    slope: float
    intercept: float
    residual: float
    points: int
    centre: float
    scatter: float

    def predict(self, in_distribution: float) -> float:
        """Shifted accuracy expected of an ordinary model with this in-distribution accuracy."""
        return sigmoid(self.intercept + self.slope * logit(in_distribution))

    def interval(self, in_distribution: float, confidence: float = 0.95) -> Interval:
        """Confidence interval of that expectation (of the line, not of one more model)."""
        x = logit(in_distribution)
        error = self.residual * math.sqrt(1 / self.points + (x - self.centre) ** 2 / self.scatter)
        half = student_t_quantile(0.5 + confidence / 2, self.points - 2) * error
        middle = self.intercept + self.slope * x
        return Interval(sigmoid(middle - half), sigmoid(middle + half))


def fit_baseline(in_distribution: Sequence[float], shifted: Sequence[float]) -> BaselineLine:
    """The line through ordinary models' accuracies (fractions strictly between 0 and 1).

    Raises:
        TetherError: fewer than three models, lengths that differ, an accuracy of 0 or 1, or equal in-distribution
            accuracies, through which no line can be told.
    """
    if len(in_distribution) != len(shifted) or len(shifted) < 3:
        raise TetherError(
            "A baseline with an interval needs at least 3 models with both accuracies; found "
            f"{len(in_distribution)} and {len(shifted)}."
        )
    x, y = [logit(value) for value in in_distribution], [logit(value) for value in shifted]
    n, centre, level = len(x), math.fsum(x) / len(x), math.fsum(y) / len(y)
    scatter = math.fsum((value - centre) ** 2 for value in x)
    if scatter < 1e-12:
        raise TetherError(
            "All baseline models have the same in-distribution accuracy; no line can be fitted."
        )
    slope = math.fsum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / scatter
    intercept = level - slope * centre
    squares = math.fsum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return BaselineLine(slope, intercept, math.sqrt(squares / (n - 2)), n, centre, scatter)


def effective_robustness(
    line: BaselineLine, in_distribution: float, shifted: float
) -> tuple[float, Interval]:
    """`shifted` minus what the line expects, and its 95 % interval from the uncertainty of the line alone."""
    expected = line.interval(in_distribution)
    value = shifted - line.predict(in_distribution)
    return value, Interval(shifted - expected.high, shifted - expected.low)


def logit(accuracy: float) -> float:
    """log(p / (1 - p)).

    Raises:
        TetherError: an accuracy of 0 or 1 has no logit; see `inside`.
    """
    if not 0 < accuracy < 1:
        raise TetherError(f"Logit axes hold accuracies strictly between 0 and 1; found {accuracy}.")
    return math.log(accuracy / (1 - accuracy))


def sigmoid(value: float) -> float:
    """Inverse of `logit`."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def inside(accuracy: float, n: int) -> float:
    """An accuracy measured on `n` pictures moved off 0 and 1 by half a picture, so that it has a place on the
    axis.
    """
    return min(max(accuracy, 0.5 / (n + 1)), 1 - 0.5 / (n + 1))
