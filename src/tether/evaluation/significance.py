"""How sure a number is: intervals of one accuracy and of a mean over domains, and of differences between methods.

Two methods that are compared answer the same pictures, and the same emoji, product or patient may occur in
several domains. Everything here therefore works on pairs and on clusters of identity instead of assuming
independence.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.errors import TetherError


@dataclass(frozen=True)
class Interval:
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval and the two-sided p-value of its being zero."""

    value: float
    low: float
    high: float
    p_value: float


def wilson_interval(proportion: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a proportion measured on `n` examples; (0, 1) when n is 0."""
    if not 0 <= proportion <= 1:
        raise TetherError(f"A proportion lies between 0 and 1; found {proportion}.")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    # At 0 and 1 the ends are exact in theory and off by rounding in practice.
    low = 0.0 if proportion == 0 else max(0.0, centre - half)
    high = 1.0 if proportion == 1 else min(1.0, centre + half)
    return Interval(low, high)


def student_t_quantile(probability: float, degrees: int) -> float:
    """The `probability` quantile of Student's t with a whole number of degrees of freedom.

    Bisection on the closed form of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise TetherError(
            f"Expected 0 < probability < 1 and degrees >= 1; found {probability} and {degrees}."
        )
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)

    def inside(t: float) -> float:  # probability that |T| < t
        angle = math.atan(t / math.sqrt(degrees))
        term = math.cos(angle) if degrees % 2 else 1.0
        total = 0.0
        for i in range(3 if degrees % 2 else 2, degrees + 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (i - 1) / i
        if degrees % 2:
            return 2 / math.pi * (angle + math.sin(angle) * total)
        return math.sin(angle) * total

    low, high = 0.0, 1.0
    while inside(high) < 2 * probability - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if inside(middle) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979): p-values that hold for all comparisons of a family at once."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


class Statistic:
    """A number of one split that is a function of sums over its pictures, so that a bootstrap can compute it again.

    Mean IoU, for example: a picture's row is its intersection and its union for each class, and the value is the mean
    over the classes of the ratios of their sums.

    Args:
        rows: of the pictures, to be added up.
        value: of sums of rows over any pictures; NaN where these say nothing.
    """

    def __init__(
        self, rows: Float[Tensor, "n k"], value: Callable[[Float[Tensor, "*d k"]], Float[Tensor, "*d"]]
    ) -> None:
        self.rows, self.value = rows.double().cpu(), value

    def minus(self, others: Sequence["Statistic"]) -> "Statistic":
        """What it is more than the mean of others on the same pictures: all rows side by side."""
        statistics, widths = [self, *others], [self.rows.shape[1], *(other.rows.shape[1] for other in others)]

        def difference(sums: Float[Tensor, "*d k"]) -> Float[Tensor, "*d"]:
            first, *rest = (
                one.value(part) for one, part in zip(statistics, sums.split(widths, -1), strict=True)
            )
            return first - torch.stack(rest).mean(0)

        return Statistic(torch.cat([one.rows for one in statistics], 1), difference)

    @staticmethod
    def mean_over_seeds(seeds: Sequence[Any]) -> float:
        """The value over all pictures, averaged over runs."""
        return torch.stack([one.value(one.rows.sum(0)) for one in seeds]).mean().item()


class Mean(Statistic):
    """The mean of a number per picture; the difference of two is the mean of differences."""

    def __init__(self, numbers: Float[Tensor, " n"]) -> None:
        rows = torch.stack([numbers.double(), torch.ones_like(numbers, dtype=torch.float64)], 1)
        super().__init__(rows, lambda sums: sums[..., 0] / sums[..., 1])
        self.numbers = numbers

    def minus(self, others: Sequence["Mean"]) -> "Mean":
        return Mean(self.numbers - torch.stack([other.numbers for other in others]).mean(0))

    @staticmethod
    def mean_over_seeds(seeds: Sequence["Mean"]) -> float:
        return torch.stack([one.numbers for one in seeds]).double().mean().item()


def bootstrap_mean(
    values: Mapping[str, Float[Tensor, "seeds n"]],
    identities: Mapping[str, Sequence[Hashable]],
    **options: Any,
) -> Estimate:
    """`bootstrap` of the mean over domains of each domain's mean value.

    `values[domain]` holds one row per seed and one column per picture: 1 and 0 for right and wrong, or the difference
    of two methods, which makes this the paired bootstrap.
    """
    return bootstrap(
        {domain: list(map(Mean, rows)) for domain, rows in values.items()}, identities, **options
    )


def bootstrap(
    statistics: Mapping[str, Sequence[Statistic]],
    identities: Mapping[str, Sequence[Hashable]],
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean over domains and seeds of a statistic, with a bootstrap interval clustered by identity.

    `statistics[domain]` holds one per seed, and `identities[domain]` names what each picture shows. One draw takes as
    many identities as there are, with replacement, the same in all domains, because pictures of one identity are hard
    or easy together; and as many seeds, when there are several. The statistic is computed again from the sums over what
    was drawn. With three seeds the share of the interval that is due to seeds is only rough.

    Raises:
        TetherError: no domain, a domain without pictures, lengths that do not fit, or a statistic without a value.
    """
    if not statistics or any(not len(one.rows) for seeds in statistics.values() for one in seeds):
        raise TetherError("A mean over domains needs at least one domain and at least one picture in each.")
    for domain, seeds in statistics.items():
        count = len(seeds[0].rows)
        if domain not in identities or len(identities[domain]) != count:
            raise TetherError(f"Domain {domain!r} has {count} values but not as many identities.")
    runs = {len(seeds) for seeds in statistics.values()}
    if len(runs) != 1:
        raise TetherError(f"Every domain needs the same seeds; found {sorted(runs)} of them.")
    number = {
        name: i for i, name in enumerate(dict.fromkeys(x for names in identities.values() for x in names))
    }
    columns = {
        domain: _by_identity(seeds, torch.tensor([number[name] for name in identities[domain]]), len(number))
        for domain, seeds in statistics.items()
    }

    generator = torch.Generator().manual_seed(seed)
    (runs,) = runs
    at_once = max(1, 10_000_000 // len(number))  # keeps the weights below 80 MB for any test set
    means = []
    for start in range(0, draws, at_once):
        picks = torch.randint(len(number), (min(at_once, draws - start), len(number)), generator=generator)
        weights = torch.zeros(picks.shape, dtype=torch.float64)
        weights.scatter_add_(1, picks, torch.ones_like(weights))
        chosen = torch.randint(runs, (len(picks), runs), generator=generator)
        per_domain = []
        for domain, seeds in statistics.items():
            sums = torch.stack([weights @ column for column in columns[domain]], -1)
            values = torch.stack([one.value(sums[:, run]) for run, one in enumerate(seeds)], 1)
            per_domain.append(values.gather(1, chosen).mean(1))
        means.append(torch.stack(per_domain).mean(0))
    samples = torch.cat(means)
    samples = samples[samples.isfinite()]  # a draw may miss a tiny domain altogether
    if not len(samples):
        raise TetherError("There is nothing to measure: the metric has no value on these pictures.")
    value = sum(seeds[0].mean_over_seeds(seeds) for seeds in statistics.values()) / len(statistics)
    tail = (1 - confidence) / 2
    low, high = samples.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    # Plus one: the observed sample is one of the possible draws, so p is never exactly zero.
    below, above = int((samples <= 0).sum()), int((samples >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(samples) + 1))
    return Estimate(value, low, high, p_value)


def _by_identity(
    seeds: Sequence[Statistic], index: Int[Tensor, " n"], identities: int
) -> list[Float[Tensor, "identities seeds"]]:
    """Sums of the rows of each identity, column by column."""
    rows = torch.stack([one.rows for one in seeds], 1)
    sums = torch.zeros(identities, *rows.shape[1:], dtype=torch.float64).index_add_(0, index, rows)
    return [column.contiguous() for column in sums.unbind(-1)]
