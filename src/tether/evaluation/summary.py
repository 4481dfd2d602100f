"""From scores of pictures to results: rows of the table, paired differences, answers that changed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tether.errors import TetherError
from tether.evaluation.results import ChangedPicture, Changes, Difference, Domain, Measure, Method
from tether.evaluation.scores import SplitScores
from tether.evaluation.scoring import Scores
from tether.evaluation.significance import Statistic, bootstrap, holm

Runs = Mapping[int, Mapping[str, Scores]]
"""Scores by seed and by domain. A method without chance in it, such as zero-shot, has one seed."""

MEAN_OF_SHIFTED = "mean of shifted domains"


def describe_domains(
    scores: Mapping[str, Scores], in_distribution: str, corruptions: Sequence[str] = ()
) -> tuple[Domain, ...]:
    """The test splits, the in-distribution one first; what is neither that, a corruption nor of other classes is a
    shift."""
    if in_distribution not in scores:
        raise TetherError(f"There are no scores of the in-distribution split {in_distribution!r}.")

    def kind(name: str) -> str:
        if name == in_distribution:
            return "in-distribution"
        if name in corruptions:
            return "corruption"
        return "other classes" if scores[name].split.has_other_classes else "shifted"

    return tuple(
        Domain(
            name=name,
            kind=kind(name),
            n=of_domain.n,
            classes=of_domain.competing,
            convention=of_domain.split.convention,
            digest=of_domain.split.digest,
        )
        for name, of_domain in sorted(scores.items(), key=lambda item: item[0] != in_distribution)
    )


def summarise(name: str, runs: Runs, shifted: Sequence[str], **rest: Any) -> Method:
    """The row of a method: its measures on every domain, and its mean over the shifted ones.

    Args:
        shifted: the domains that make up the mean.
        rest: other fields of `Method`, such as `trained_parameters`.

    Raises:
        TetherError: no seed, or seeds that were evaluated on different splits.
    """
    measures = {}
    for domain in _same_splits(runs):
        by_seed = [scores[domain] for scores in runs.values()]
        values = [scores.values() for scores in by_seed]
        columns = {metric.name: tuple(one[metric.name] for one in values) for metric in by_seed[0].metrics}
        measures[domain] = Measure(
            values={name: () if None in column else column for name, column in columns.items()},
            interval=by_seed[0].interval_of([scores.value for scores in by_seed], by_seed),
        )
    mean = None
    if shifted:
        statistics = {domain: [scores[domain].statistic for scores in runs.values()] for domain in shifted}
        mean = bootstrap(statistics, _identities(runs, shifted))
    return Method(name=name, seeds=tuple(runs), measures=measures, shifted_mean=mean, **rest)


def differences(
    methods: Mapping[str, Runs],
    reference: str,
    domains: Sequence[str],
    shifted: Sequence[str],
    *,
    draws: int = 10_000,
) -> tuple[Difference, ...]:
    """Every method against one of them, by a paired bootstrap on each domain and on the mean of the shifted
    ones.

    Runs are paired by seed where both methods have the same seeds. Otherwise a single run (of a method without chance
    in it) is compared with every one of the reference's, and each of several runs with the reference's average.

    Args:
        draws: of the bootstrap; no p-value is below 2 / (draws + 1).

    Raises:
        TetherError: the reference is not among the methods, or methods were evaluated on different splits.
    """
    if reference not in methods:
        raise TetherError(f"The reference {reference!r} is not among the methods: {', '.join(methods)}.")
    base = methods[reference]
    wheres = {domain: [domain] for domain in domains}
    if shifted:
        wheres[MEAN_OF_SHIFTED] = list(shifted)
    results = []
    for where, members in wheres.items():
        estimates = {}
        for name, runs in methods.items():
            if name == reference:
                continue
            _same_splits({0: next(iter(base.values())), 1: next(iter(runs.values()))})
            statistics = {domain: paired(runs, base, domain) for domain in members}
            estimates[name] = bootstrap(statistics, _identities(base, members), draws=draws)
        adjusted = holm({name: estimate.p_value for name, estimate in estimates.items()})
        results += [
            Difference(
                method=name,
                reference=reference,
                where=where,
                estimate=estimate,
                adjusted_p_value=adjusted[name],
            )
            for name, estimate in estimates.items()
        ]
    return tuple(results)


def changed_answers(
    domain: str, before: SplitScores, after: SplitScores, class_names: Sequence[str], limit: int = 12
) -> Changes:
    """How many pictures of a split turned right or wrong, and which, those of most confident answers first.

    Args:
        class_names: of the benchmark; the split's own are taken where it has some.
        limit: pictures kept per direction; no more than a quarter of them show the same class as long as there are
            others.
    """
    class_names = before.split.class_names or class_names
    _same_splits({0: {"": before}, 1: {"": after}})

    def pictures(index: Tensor) -> tuple[ChangedPicture, ...]:
        order = index[after.confidences[index].argsort(descending=True, stable=True)].tolist()
        taken: list[int] = []
        seen: dict[int, int] = {}
        for i in order:
            label = int(before.labels[i])
            if seen.get(label, 0) < math.ceil(limit / 4):
                seen[label] = seen.get(label, 0) + 1
                taken.append(i)
        taken = (taken + [i for i in order if i not in set(taken)])[:limit]
        return tuple(
            ChangedPicture(
                index=i,
                identity=before.identities[i],
                truth=class_names[int(before.labels[i])],
                before=class_names[int(before.predictions[i])],
                after=class_names[int(after.predictions[i])],
                confidence_before=before.confidences[i].item(),
                confidence_after=after.confidences[i].item(),
            )
            for i in taken
        )

    gained = (~before.correct & after.correct).nonzero().squeeze(1)
    lost = (before.correct & ~after.correct).nonzero().squeeze(1)
    return Changes(
        domain=domain,
        n=before.n,
        wrong_to_right=len(gained),
        right_to_wrong=len(lost),
        gained=pictures(gained),
        lost=pictures(lost),
    )


def paired(runs: Runs, base: Runs, domain: str) -> list[Statistic]:
    """The differences of runs to those that they are paired with, see `differences`."""
    by_seed = {seed: scores[domain].statistic for seed, scores in runs.items()}
    references = {seed: scores[domain].statistic for seed, scores in base.items()}
    if by_seed.keys() == references.keys():
        return [statistic.minus([references[seed]]) for seed, statistic in by_seed.items()]
    if len(by_seed) == 1:
        (statistic,) = by_seed.values()
        return [statistic.minus([reference]) for reference in references.values()]
    return [statistic.minus(list(references.values())) for statistic in by_seed.values()]


def _identities(runs: Runs, domains: Sequence[str]) -> dict[str, tuple[str, ...]]:
    scores = next(iter(runs.values()))
    return {domain: scores[domain].identities for domain in domains}


def _same_splits(runs: Runs) -> list[str]:
    if not runs:
        raise TetherError("A method needs the scores of at least one seed.")
    digests = [{name: scores.split.digest for name, scores in run.items()} for run in runs.values()]
    if any(other != digests[0] for other in digests):
        raise TetherError(
            "Runs that are compared must be evaluated on the same splits; found different ones (by their "
            "hashes). Evaluate them again on the same data."
        )
    return list(digests[0])
