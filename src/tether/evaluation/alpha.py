"""Choose alpha without looking at the test: from validation pictures and simulated shifts of the same
pictures.

What is known when alpha must be chosen is a validation set that looks like the training data. It measures
in-distribution accuracy without bias, but says nothing about pictures that look different, and its best alpha
tends to be too large for them. The same validation pictures, altered (greyscale, blur, other colours, ...),
are a stand-in for unknown shifts. Their *level* of accuracy does not carry over to real shifts; which alphas
they prefer does so better, and without peeking. Hence the default rule:

    "bounded loss"     Of all alphas whose validation accuracy is at most a bounded amount below the best, take the
                       one with the highest mean accuracy on the simulated shifts. The bound is one standard
                       error of the difference to the best on the same pictures (Breiman et al. 1984, section
                       3.4.3, made paired: neighbours on the path answer nearly all pictures alike, so the
                       error of the difference is far below that of either accuracy), and at least
                       `tolerance`, because on a huge validation set a real but negligible loss should not
                       forbid a large gain.

So validation accuracy is a constraint, and the biased stand-in only decides among alphas that validation
cannot, or need not, tell apart. For comparison there are

    "in distribution"  the highest validation accuracy (how WiSE-FT's alpha is chosen in FLYP; Goyal et al. 2023),
    "mean"             the highest mean of validation and simulated accuracy, half and half.

Ties go to the alpha nearer to the zero-shot model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tether._alpha import Alpha, alpha_of
from tether._choosing import check_rule
from tether.errors import TetherError, near_misses
from tether.evaluation.scores import Sweep, alpha_text
from tether.evaluation.scoring import Scores


@dataclass(frozen=True)
class AlphaPoint:
    """Accuracies at one alpha, and how far below the best validation accuracy it is.

    Attributes:
        loss: validation accuracy lost against the best alpha.
        loss_error: standard error of `loss`, over the same pictures.
        allowed: whether the rule let this alpha compete.
    """

    alpha: Alpha
    in_distribution: float
    simulated: dict[str, float]
    simulated_mean: float | None
    loss: float
    loss_error: float
    allowed: bool


@dataclass(frozen=True)
class AlphaChoice:
    """The chosen alpha, why, and everything the choice was made from."""

    alpha: Alpha
    rule: str
    reason: str
    pictures: int
    curve: tuple[AlphaPoint, ...]


def choose_alpha(
    sweep: Sweep,
    in_distribution: str,
    simulated: Sequence[str] = (),
    *,
    rule: str = "bounded loss",
    tolerance: float = 0.005,
) -> AlphaChoice:
    """The alpha that `rule` prefers; see the top of this module.

    Args:
        sweep: scores at every alpha to choose from, also of a grid with one alpha per tower.
        in_distribution: the split of `sweep` with the untouched validation pictures.
        simulated: its splits with the same pictures, altered.
        tolerance: validation accuracy that may be given up in any case, as a fraction.

    Raises:
        TetherError: a split that was not swept; "simulated" pictures that are not the validation pictures; a
            rule that does not exist or needs simulated shifts when there are none.
    """
    check_rule(rule)
    if not simulated and rule != "in distribution":
        raise TetherError(
            f"The rule {rule!r} needs simulated shifts of the validation pictures; there are none. Give "
            "some, or use the rule 'in distribution'."
        )
    _check_pictures(sweep.scores[0], in_distribution, simulated)
    validation = [scores[in_distribution] for scores in sweep.scores]
    best = min(range(len(validation)), key=lambda i: (-validation[i].value, _size(sweep.alphas[i])))
    curve = []
    for alpha, scores, own in zip(sweep.alphas, sweep.scores, validation, strict=True):
        shifted = {name: scores[name].value for name in simulated}
        loss, error = _paired_difference(validation[best], own)
        allowed = rule != "bounded loss" or loss <= max(error, tolerance) + 1e-12
        mean = math.fsum(shifted.values()) / len(shifted) if shifted else None
        curve.append(AlphaPoint(alpha, own.value, shifted, mean, loss, error, allowed))

    def goodness(point: AlphaPoint) -> float:
        if rule == "in distribution":
            return point.in_distribution
        return (
            point.simulated_mean if rule == "bounded loss" else (point.in_distribution + point.simulated_mean)
        )

    # Rounded, so that sums of the same numbers in another order tie.
    chosen = min(
        (point for point in curve if point.allowed),
        key=lambda point: (-round(goodness(point), 12), _size(point.alpha)),
    )
    reason = _reason(chosen, curve[best], curve, rule, validation[best].n, tolerance)
    return AlphaChoice(chosen.alpha, rule, reason, validation[best].n, tuple(curve))


def _check_pictures(scores: Mapping[str, Scores], in_distribution: str, simulated: Sequence[str]) -> None:
    for name in (in_distribution, *simulated):
        if name not in scores:
            raise TetherError(f"The sweep has no split {name!r}{near_misses(name, tuple(scores))}")
    pictures = scores[in_distribution].split.images
    for name in simulated:
        if scores[name].split.images != pictures:
            raise TetherError(
                f"Split {name!r} is not made of the pictures of {in_distribution!r}. Alpha may only be "
                f"chosen by validation pictures and simulated shifts of them, never by other test data."
            )
        if scores[name].split.is_corruption:
            raise TetherError(
                f"Split {name!r} is a corruption ({scores[name].split.alteration}), and corruptions are a "
                f"test. Choose alpha by simulated shifts (tether.data.simulated_shifts)."
            )


def _paired_difference(first: Scores, second: Scores) -> tuple[float, float]:
    """Mean of first minus second over the pictures, and its standard error clustered by identity."""
    difference = first.primary - second.primary
    mean = difference.mean()
    number = {name: i for i, name in enumerate(dict.fromkeys(first.identities))}
    cluster = torch.tensor([number[name] for name in first.identities])
    sums = torch.zeros(len(number), dtype=torch.float64).index_add_(0, cluster, difference - mean)
    return mean.item(), (sums.square().sum().sqrt() / len(difference)).item()


def _size(alpha: Alpha) -> float:
    """How far from the zero-shot model."""
    return abs(alpha_of(alpha, "image")) + abs(alpha_of(alpha, "text"))


def _reason(
    chosen: AlphaPoint,
    best: AlphaPoint,
    curve: Sequence[AlphaPoint],
    rule: str,
    pictures: int,
    tolerance: float,
) -> str:
    at = f"alpha {alpha_text(chosen.alpha)}"
    level = f"{100 * chosen.in_distribution:.1f} % of {pictures} validation pictures"
    if rule == "in distribution":
        text = f"Of {len(curve)} alphas, {at} is right on the most validation pictures ({level})."
    elif rule == "mean":
        text = (
            f"Of {len(curve)} alphas, {at} has the highest mean of validation accuracy ({level}) and "
            f"accuracy on {len(chosen.simulated)} simulated shifts of them "
            f"({100 * chosen.simulated_mean:.1f} %)."
        )
    else:
        allowed = sum(point.allowed for point in curve)
        shifts = f"{len(chosen.simulated)} simulated shifts of the same pictures"
        mean = f"{100 * chosen.simulated_mean:.1f} % on average"
        text = (
            f"Of {len(curve)} alphas, {allowed} {'loses' if allowed == 1 else 'lose'} at most one standard "
            f"error (or {100 * tolerance:.1f} points) of validation accuracy against the best one, alpha "
            f"{alpha_text(best.alpha)} with {100 * best.in_distribution:.1f} %. "
        )
        if allowed == 1:
            text += f"That is {at}: {mean} on {shifts}, at {level}."
        else:
            text += f"Among these, {at} is best on {shifts}: {mean}, at {level}."
    if _size(chosen.alpha) == 0:
        text += " That is the zero-shot model: on validation, fine-tuning did not help."
    elif len(curve) > 1 and _size(chosen.alpha) == max(_size(point.alpha) for point in curve):
        text += " It is the largest alpha tried."
    return f"{text} No test picture was used."
