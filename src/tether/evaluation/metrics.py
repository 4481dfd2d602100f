"""Measures of a classifier, as pure functions over all examples of a split.

Every function takes the whole split at once (labels and predictions are a few bytes per picture), so a result
never depends on batch size, number of processes or a padded last batch. All results are fractions between 0
and 1.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether.errors import TetherError


def label_rank(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Place of the true class in each row, 0 for the highest logit.

    Classes with the same logit are ordered by their index, so equal logits never count as right by luck of a
    sort.
    """
    true = logits.gather(1, labels.long()[:, None])
    above = logits > true
    ties_before = (logits == true) & (torch.arange(logits.shape[1], device=logits.device) < labels[:, None])
    return (above | ties_before).sum(1)


def top_k_accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int = 1) -> float:
    """Share of rows whose true class is among the `k` highest logits.

    Raises:
        TetherError: no rows, a NaN logit, or a `k` at which every answer would be right.
    """
    _some(len(labels))
    if not 1 <= k < max(2, logits.shape[1]):
        raise TetherError(
            f"top-{k} accuracy of {logits.shape[1]} classes says nothing: choose k from 1 to "
            f"{logits.shape[1] - 1}."
        )
    if torch.isnan(logits).any():
        rows = int(torch.isnan(logits).any(1).sum())
        raise TetherError(f"{rows} of {len(labels)} rows of logits hold NaN; accuracy is undefined.")
    return (label_rank(logits, labels) < k).double().mean().item()


def per_class_accuracy(
    predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: int
) -> tuple[Float[Tensor, " classes"], Int[Tensor, " classes"]]:
    """Accuracy of each class (NaN where a class has no example) and the number of its examples."""
    counts = torch.bincount(labels.long(), minlength=classes)
    right = torch.bincount(labels[predictions == labels].long(), minlength=classes)
    return right.double() / counts.double(), counts


def mean_per_class_accuracy(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Accuracy averaged over the classes that occur among the labels, each class with the same weight."""
    _some(len(labels))
    return per_class_accuracy(predictions, labels, int(labels.max()) + 1)[0].nanmean().item()


def macro_f1(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """F1 averaged over the classes that occur among the labels.

    This is the convention of WILDS (Koh et al. 2021, iWildCam): a class that is only ever predicted lowers
    the precision of nobody but itself and is left out of the mean.
    """
    _some(len(labels))
    classes = int(max(labels.max(), predictions.max())) + 1
    actual = torch.bincount(labels.long(), minlength=classes).double()
    guessed = torch.bincount(predictions.long(), minlength=classes).double()
    right = torch.bincount(labels[predictions == labels].long(), minlength=classes).double()
    occurring = actual > 0
    return (2 * right / (actual + guessed))[occurring].mean().item()


def expected_calibration_error(
    confidences: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equally wide bins of confidence, weighted by bin size.

    Naeini et al. 2015; Guo et al. 2017, equation 3. `confidences` are the probabilities of the predicted
    classes.

    Raises:
        TetherError: no examples, or a confidence that is not a probability.
    """
    _some(len(confidences))
    if not ((confidences >= 0) & (confidences <= 1 + 1e-5)).all():
        raise TetherError(
            "Confidences must be probabilities between 0 and 1; found NaN or something outside."
        )
    bin_of = (confidences.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidences.device)
    gap.index_add_(0, bin_of, correct.double() - confidences.double())
    return (gap.abs().sum() / len(confidences)).item()


def once_by_index(index: Int[Tensor, " m"], expected: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Rows of `values` in the order of `index`, each index kept once; how results of several processes are
    joined.

    Samplers pad the last batch of a process with repeated examples; counting those would change the result.

    Raises:
        TetherError: the indices are not exactly 0 … expected - 1.
    """
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    kept = order[first]
    if not torch.equal(index[kept], torch.arange(expected, device=index.device, dtype=index.dtype)):
        raise TetherError(
            f"Expected one result for each of {expected} examples; found {len(kept)} distinct ones. "
            f"A part of the split was not evaluated, or another split was mixed in."
        )
    return tuple(value[kept] for value in values)


def _some(count: int) -> None:
    if count == 0:
        raise TetherError("There is nothing to measure: the split has no examples.")
