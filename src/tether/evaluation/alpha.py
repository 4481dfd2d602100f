"""Choose alpha without looking at the test: from validation pictures and simulated shifts of the same
pictures.

What is known when alpha must be chosen is a validation set that looks like the training data. It measures
in-distribution accuracy without bias, but says nothing about pictures that look different, and its best alpha
tends to be too large for them. The same validation pictures, altered (greyscale, blur, other colours, ...),
are a stand-in for unknown shifts. Their *level* of accuracy does not carry over to real shifts; which alphas
they prefer does so better, and without peeking. Hence the default rule:

    "bounded loss"     Of all alphas whose validation accuracy is not worse than the best one's, as far as the
                       validation pictures can tell, take the one with the highest mean accuracy on the
                       simulated shifts. An alpha is worse if it loses more than `tolerance` (on a huge
                       validation set a real but negligible loss should not forbid a large gain) and more than
                       chance explains.

What chance explains is asked of the pictures that the two alphas answer differently (McNemar 1947); neighbours on
the path answer nearly all alike, and those say nothing. Were both equally good, each difference would have gone
either way with even odds, so the differences are summed by identity (pictures of one thing are one piece of
evidence) and all ways of giving these sums a sign are equally likely (Fisher 1935; `sign_flip_test`). An alpha is
worse if at most 16 % of them are as bad for it as what was seen: one standard error, one-sided, which is the rule
of Breiman et al. (1984, section 3.4.3) made paired and made exact. With the estimated standard error itself one
picture could decide: where two alphas differ on d of n pictures, all for the same one, the estimate is
√(d (n − d) / n) / n, and the loss of d / n always exceeds it. Here it takes three (1/2 and 1/4 of the signs are as
bad with one and two pictures, 1/8 with three).

How often an alpha may compete, over validation sets drawn anew, by what it truly loses; the two alphas differ on
a tenth of the pictures, and the former rule, by the estimated standard error, stands in brackets:

    validation pictures       42            100           236           1000          5000
    none lost              93 % (79)     91 % (82)     89 % (83)     86 % (84)     87 % (87)
    1 point lost           90 % (72)     84 % (73)     76 % (69)     54 % (50)     14 % (14)
    2 points lost          86 % (65)     75 % (62)     59 % (50)     18 % (15)      0 % (0)
    5 points lost          69 % (39)     38 % (24)      9 % (6)       0 % (0)       0 % (0)

A small set cannot shut out what loses little, and does not pretend to. The best of many equally good alphas is best
by luck, and so shuts out more of the others than these numbers say: on a path of eleven, of which neighbours
differ on 2 % of 236 pictures, 36 % (54). A level of 5 % would shut out 11 % of those, but let in nine alphas of ten
that lose one point of 236 pictures; and where neighbours are alike, so are the alphas that are left.

So validation accuracy is a constraint, and the biased stand-in only decides among alphas that validation
cannot, or need not, tell apart. For comparison there are

    "in distribution"  the highest validation accuracy (how WiSE-FT's alpha is chosen in FLYP; Goyal et al. 2023),
    "mean"             the highest mean of validation and simulated accuracy, half and half.

Ties go to the alpha nearer to the zero-shot model.

A point that may not compete needs no simulated shifts, and where one alone may compete, none does. So
`choose_economically` evaluates the validation pictures at every alpha first, and the simulated shifts only where they
decide (`competing`); what was not evaluated has no simulated accuracy. The choice is the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tether._alpha import Alpha, alpha_of
from tether._choosing import SIMULATED_PICTURES, check_rule
from tether.data.records import PictureSplit
from tether.data.simulated import simulated_shifts
from tether.data.splitting import thinned
from tether.errors import TetherError, near_misses
from tether.evaluation.scores import Sweep, alpha_text
from tether.evaluation.scoring import Scores

LEVEL = 0.16
"""An alpha is worse than the best if chance makes so great a loss at most this often: one standard error."""

ALL_SIGNS_OF = 16
"""Sums of which every combination of signs is gone through."""


@dataclass(frozen=True)
class AlphaPoint:
    """Accuracies at one alpha, and how far below the best validation accuracy it is.

    Attributes:
        simulated, simulated_mean: empty and None where the simulated shifts were not evaluated.
        loss: validation accuracy lost against the best alpha.
        loss_error: standard error of `loss`, over the same pictures and clustered by identity. For right and
            wrong answers to one picture per identity, `loss` and `loss_error` give the numbers of pictures that
            only one of the two alphas has right.
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


Evaluate = Callable[[Mapping[str, PictureSplit], Sequence[Alpha]], Sweep]
"""Gives scores on some splits at some alphas."""


def choose_economically(
    evaluate: Evaluate,
    validation: PictureSplit,
    alphas: Sequence[Alpha],
    *,
    rule: str = "bounded loss",
    pictures: int | None = SIMULATED_PICTURES,
) -> AlphaChoice:
    """The alpha that `rule` prefers, with no more evaluated than it takes.

    Args:
        evaluate: called with the validation pictures at all alphas, and then, where they decide, with simulated shifts
            of them at those that compete.
        pictures: so many of the validation pictures are altered at most; None for all.

    Raises:
        TetherError: as `choose_alpha`.
    """
    sweep = evaluate({"validation": validation}, alphas)
    if rule == "in distribution":
        return choose_alpha(sweep, "validation", rule=rule)
    shifts = simulated_shifts(thinned(validation, pictures))
    if decided := competing(sweep, "validation", rule=rule):
        altered = evaluate(shifts, decided)
        scores = (
            {**at_home, **altered.at(alpha)} if alpha in decided else at_home
            for alpha, at_home in zip(sweep.alphas, sweep.scores, strict=True)
        )
        sweep = Sweep(sweep.alphas, tuple(scores))
    return choose_alpha(sweep, "validation", list(shifts), rule=rule)


def competing(
    sweep: Sweep, in_distribution: str, *, rule: str = "bounded loss", tolerance: float = 0.005
) -> tuple[Alpha, ...]:
    """The alphas between which simulated shifts decide; none where validation pictures alone do.

    Args:
        sweep, in_distribution, tolerance: as `choose_alpha` takes them; simulated shifts are not looked at.
    """
    check_rule(rule)
    return _decided(_on_validation(sweep, in_distribution, rule, tolerance), rule)


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
        simulated: its splits with the same pictures or some of them, altered; an alpha that does not compete may be
            without them.
        tolerance: validation accuracy that may be given up in any case, as a fraction.

    Raises:
        TetherError: a split that was not swept; "simulated" pictures that are no validation pictures; a
            rule that does not exist or needs simulated shifts when there are none.
    """
    check_rule(rule)
    if not simulated and rule != "in distribution":
        raise TetherError(
            f"The rule {rule!r} needs simulated shifts of the validation pictures; there are none. Give "
            "some, or use the rule 'in distribution'."
        )
    for scores in sweep.scores:
        _check_pictures(scores, in_distribution, simulated)
    points = _on_validation(sweep, in_distribution, rule, tolerance)
    decided = _decided(points, rule)
    curve, altered = [], 0
    for point, scores in zip(points, sweep.scores, strict=True):
        if simulated and scores.keys() > {in_distribution}:
            shifted = {name: scores[name].value for name in simulated}
            mean, altered = math.fsum(shifted.values()) / len(shifted), scores[simulated[0]].n
            point = replace(point, simulated=shifted, simulated_mean=mean)
        elif point.alpha in decided:
            raise TetherError(
                f"Alpha {alpha_text(point.alpha)} competes, and simulated shifts were not evaluated there. Evaluate "
                "them at every alpha that `competing` gives."
            )
        curve.append(point)

    def goodness(point: AlphaPoint) -> float:
        if rule == "in distribution":
            return point.in_distribution
        return (
            point.simulated_mean if rule == "bounded loss" else (point.in_distribution + point.simulated_mean)
        )

    allowed = [point for point in curve if point.allowed]
    # Rounded, so that sums of the same numbers in another order tie.
    chosen = (
        min(allowed, key=lambda point: (-round(goodness(point), 12), _size(point.alpha)))
        if len(allowed) > 1
        else allowed[0]
    )
    best = min(curve, key=lambda point: (-point.in_distribution, _size(point.alpha)))
    pictures = sweep.scores[0][in_distribution].n
    untuned = sweep.scores[0][in_distribution].untuned
    reason = _reason(chosen, best, curve, rule, pictures, altered, tolerance, untuned)
    return AlphaChoice(chosen.alpha, rule, reason, pictures, tuple(curve))


def _on_validation(sweep: Sweep, in_distribution: str, rule: str, tolerance: float) -> list[AlphaPoint]:
    """What the validation pictures say of every alpha, without any simulated shift."""
    validation = [scores[in_distribution] for scores in sweep.scores]
    best = min(range(len(validation)), key=lambda i: (-validation[i].value, _size(sweep.alphas[i])))
    points = []
    for alpha, home in zip(sweep.alphas, validation, strict=True):
        sums, loss, error = _paired_difference(validation[best], home)
        allowed = rule != "bounded loss" or loss <= tolerance + 1e-12 or sign_flip_test(sums) > LEVEL
        points.append(AlphaPoint(alpha, home.value, {}, None, loss, error, allowed))
    return points


def _decided(points: Sequence[AlphaPoint], rule: str) -> tuple[Alpha, ...]:
    """See `competing`."""
    allowed = tuple(point.alpha for point in points if point.allowed)
    if rule == "in distribution" or (rule == "bounded loss" and len(allowed) == 1):
        return ()
    return allowed


def sign_flip_test(sums: Float[Tensor, " identities"]) -> float:
    """How likely a total of at least sum(sums) is if each sum had come out with the other sign as easily.

    The one-sided exact paired test (Fisher 1935, section 21); for sums of ±1 it is the sign test, McNemar's (1947).
    It goes through all signs of the 16 largest sums. The total of any others is taken as normal, with a
    continuity correction by the smallest: half the step between totals where all others are equal.

    Args:
        sums: of the differences between two methods on the pictures of one identity; fractions too.
    """
    sums = sums[sums.abs() > 1e-9].double()
    sizes = sums.abs().sort(descending=True).values
    largest, others = sizes[:ALL_SIGNS_OF], sizes[ALL_SIGNS_OF:]
    totals = torch.zeros(1, dtype=torch.float64)
    for size in largest:
        totals = torch.cat([totals + size, totals - size])
    missing = sums.sum() - totals
    if not len(others):
        return (missing <= 1e-9).double().mean().item()
    deviation = others.square().sum().sqrt()
    return torch.special.ndtr((others.min() - missing) / deviation).mean().item()


def _check_pictures(scores: Mapping[str, Scores], in_distribution: str, simulated: Sequence[str]) -> None:
    """See that simulated shifts are of validation pictures; an alpha has all of them, or validation pictures alone."""
    if scores.keys() == {in_distribution}:
        return
    for name in (in_distribution, *simulated):
        if name not in scores:
            raise TetherError(f"The sweep has no split {name!r}{near_misses(name, tuple(scores))}")
    pictures = scores[in_distribution].split.images
    for name in simulated:
        if not scores[name].split.images <= pictures:
            raise TetherError(
                f"Split {name!r} is not made of the pictures of {in_distribution!r}. Alpha may only be "
                f"chosen by validation pictures and simulated shifts of them, never by other test data."
            )
        if scores[name].split.is_corruption:
            raise TetherError(
                f"Split {name!r} is a corruption ({scores[name].split.alteration}), and corruptions are a "
                f"test. Choose alpha by simulated shifts (tether.data.simulated_shifts)."
            )


def _paired_difference(first: Scores, second: Scores) -> tuple[Tensor, float, float]:
    """First minus second: its sum by identity, its mean over the pictures, and the standard error of the mean."""
    difference = (first.primary - second.primary).double()
    mean = difference.mean()
    number = {name: i for i, name in enumerate(dict.fromkeys(first.identities))}
    cluster = torch.tensor([number[name] for name in first.identities])

    def by_identity(values: Tensor) -> Tensor:
        return torch.zeros(len(number), dtype=torch.float64).index_add_(0, cluster, values)

    error = by_identity(difference - mean).square().sum().sqrt() / len(difference)
    return by_identity(difference), mean.item(), error.item()


def _size(alpha: Alpha) -> float:
    """How far from the zero-shot model."""
    return abs(alpha_of(alpha, "image")) + abs(alpha_of(alpha, "text"))


def _reason(
    chosen: AlphaPoint,
    best: AlphaPoint,
    curve: Sequence[AlphaPoint],
    rule: str,
    pictures: int,
    altered: int,
    tolerance: float,
    untuned: str,
) -> str:
    at = f"alpha {alpha_text(chosen.alpha)}"
    some = f"{altered} of " if altered < pictures else ""
    level = f"{100 * chosen.in_distribution:.1f} % of {pictures} validation pictures"
    if rule == "in distribution":
        text = f"Of {len(curve)} alphas, {at} is right on the most validation pictures ({level})."
    elif rule == "mean":
        text = (
            f"Of {len(curve)} alphas, {at} has the highest mean of validation accuracy ({level}) and "
            f"accuracy on {len(chosen.simulated)} simulated shifts of {some}them "
            f"({100 * chosen.simulated_mean:.1f} %)."
        )
    else:
        allowed = sum(point.allowed for point in curve)
        text = (
            f"Of {len(curve)} alphas, {allowed} {'loses' if allowed == 1 else 'lose'} no more validation "
            f"accuracy than chance explains (or {100 * tolerance:.1f} points) against the best one, alpha "
            f"{alpha_text(best.alpha)} with {100 * best.in_distribution:.1f} %. "
        )
        if chosen.simulated_mean is None:
            text += f"That is {at}, so simulated shifts had nothing to decide."
        else:
            shifts = f"{len(chosen.simulated)} simulated shifts of {some}the same pictures"
            mean = f"{100 * chosen.simulated_mean:.1f} % on average"
            if allowed == 1:
                text += f"That is {at}: {mean} on {shifts}, at {level}."
            else:
                text += f"Among these, {at} is best on {shifts}: {mean}, at {level}."
    if _size(chosen.alpha) == 0:
        text += f" That is {untuned}: on validation, fine-tuning did not help."
    elif len(curve) > 1 and _size(chosen.alpha) == max(_size(point.alpha) for point in curve):
        text += " It is the largest alpha tried."
    return f"{text} No test picture was used."
