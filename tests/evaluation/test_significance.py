import math
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.evaluation.significance import (
    bootstrap_mean,
    holm,
    standard_deviation,
    student_t_quantile,
    wilson_interval,
)


@given(right=st.integers(0, 500), wrong=st.integers(0, 500))
@settings(deadline=None, max_examples=50)
def test_wilson_ends_are_where_the_score_test_rejects(right, wrong):
    """Both ends p solve |observed - p| = z sqrt(p (1 - p) / n)."""
    n = right + wrong
    if n == 0:
        return
    observed = right / n
    interval = wilson_interval(observed, n)
    assert 0 <= interval.low <= observed <= interval.high <= 1
    for end in (interval.low, interval.high):
        assert abs(observed - end) == pytest.approx(1.959963985 * math.sqrt(end * (1 - end) / n), abs=1e-6)


def test_wilson_at_the_edges():
    assert wilson_interval(0.0, 0).high == 1
    assert wilson_interval(0.0, 10).low == 0 and wilson_interval(1.0, 10).high == 1
    assert wilson_interval(0.5, 459).high - 0.5 == pytest.approx(0.0456, abs=1e-3)
    with pytest.raises(TetherError, match="between 0 and 1"):
        wilson_interval(math.nan, 10)


@pytest.mark.parametrize(
    "probability, degrees, expected",
    [  # from the tables of Abramowitz and Stegun, 26.10
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.95, 4, 2.132),
        (0.995, 5, 4.032),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.025, 2, -4.303),
        (0.5, 7, 0.0),
    ],
)
def test_student_t_is_that_of_the_tables(probability, degrees, expected):
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, abs=6e-4)


def test_the_standard_deviation_is_that_of_a_sample():
    assert standard_deviation([0.5, 0.6, 0.7]) == pytest.approx(0.1)
    assert standard_deviation([0.5]) == 0


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}


def test_bootstrap_of_one_domain_is_near_the_interval_of_a_proportion():
    right = (torch.arange(400) % 4 == 0).float()[None]
    estimate = bootstrap_mean({"a": right}, {"a": range(400)})
    interval = wilson_interval(0.25, 400)
    assert estimate.value == 0.25
    assert estimate.low == pytest.approx(interval.low, abs=0.006)
    assert estimate.high == pytest.approx(interval.high, abs=0.006)
    assert estimate == bootstrap_mean({"a": right}, {"a": range(400)})  # the same seed, the same answer


def test_the_same_identities_in_several_domains_are_not_independent_evidence():
    right = (torch.arange(300) % 2 == 0).float()[None]
    domains = {"a": right, "b": right, "c": right}
    together = bootstrap_mean(domains, dict.fromkeys(domains, range(300)))
    apart = bootstrap_mean(domains, {name: [(name, i) for i in range(300)] for name in domains})
    one = bootstrap_mean({"a": right}, {"a": range(300)})
    assert together.high - together.low == pytest.approx(one.high - one.low, rel=0.1)
    assert apart.high - apart.low == pytest.approx((one.high - one.low) / math.sqrt(3), rel=0.1)


def test_domains_weigh_the_same_whatever_their_size():
    values = {"large": torch.ones(1, 90), "small": torch.zeros(1, 10)}
    estimate = bootstrap_mean(values, {"large": range(90), "small": range(10)})
    assert estimate.value == 0.5 and estimate.low == estimate.high == 0.5


def test_bootstrap_equals_a_loop_that_draws_the_same_identities():
    """Large draws chunk by chunk: the interval agrees with resampling rows one at a time."""
    torch.manual_seed(0)
    values = {"a": torch.rand(3, 40), "b": torch.rand(3, 25)}
    names = {"a": [i // 2 for i in range(40)], "b": [i % 20 for i in range(25)]}
    generator = torch.Generator().manual_seed(5)
    slow = []
    for _ in range(1500):
        picked = torch.randint(20, (20,), generator=generator).tolist()
        runs = torch.randint(3, (3,), generator=generator).tolist()
        per_domain = []
        for domain, rows in values.items():
            drawn = [
                mean(
                    rows[run, i].item()
                    for name in picked
                    for i, own in enumerate(names[domain])
                    if own == name
                )
                for run in set(runs)
            ]
            share = [runs.count(run) / 3 for run in set(runs)]
            per_domain.append(sum(a * b for a, b in zip(drawn, share, strict=True)))
        slow.append(mean(per_domain))
    estimate = bootstrap_mean(values, names, draws=4000)
    low, high = torch.tensor(slow).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert estimate.low == pytest.approx(low, abs=0.012) and estimate.high == pytest.approx(high, abs=0.012)


def test_a_paired_difference_is_found_where_single_intervals_overlap():
    torch.manual_seed(0)
    hard = torch.rand(500)
    first, second = (hard < 0.60).float(), (hard < 0.64).float()
    difference = bootstrap_mean({"a": (second - first)[None]}, {"a": range(500)})
    assert difference.low > 0 and difference.p_value < 0.01
    nothing = bootstrap_mean({"a": torch.zeros(1, 500)}, {"a": range(500)})
    assert nothing.p_value == 1


def test_seeds_widen_the_interval():
    torch.manual_seed(0)
    steady = (torch.rand(200) < 0.5).float().expand(3, -1)
    moody = torch.stack([torch.zeros(200), steady[0], torch.ones(200)])
    names = {"a": range(200)}
    narrow, wide = bootstrap_mean({"a": steady}, names), bootstrap_mean({"a": moody}, names)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TetherError, match="at least one domain"):
        bootstrap_mean({}, {})
    with pytest.raises(TetherError, match="not as many identities"):
        bootstrap_mean({"a": torch.zeros(1, 3)}, {"a": [1, 2]})
    with pytest.raises(TetherError, match="same seeds"):
        bootstrap_mean({"a": torch.zeros(1, 3), "b": torch.zeros(2, 3)}, {"a": range(3), "b": range(3)})
    with pytest.raises(TetherError, match="degrees"):
        student_t_quantile(0.9, 0)
