import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

from tether.data.simulated import SIMULATED_SHIFTS, simulated_shifts
from tether.errors import TetherError
from tether.evaluation.alpha import (
    ALL_SIGNS_OF,
    LEVEL,
    choose_alpha,
    choose_economically,
    competing,
    sign_flip_test,
)
from tether.evaluation.scores import SplitScores, Sweep
from tether.evaluation.scoring import Metric, Scores

from .demo import demo_sweep, split


def scores(of, correct):
    correct = torch.as_tensor(correct)
    labels = torch.tensor([example.label for example in of.examples])
    return SplitScores(
        split=of,
        predictions=torch.where(correct, labels, (labels + 1) % 8),
        ranks=(~correct).long(),
        confidences=torch.full((len(of),), 0.5, dtype=torch.float64),
        classes=8,
    )


def sweep_of(validation, simulated, n=1000, alphas=None):
    """Right answers are the first ones, so that methods differ on as few pictures as they can."""
    own = split("validation", n)
    shift = replace(own, alteration="simulated:greyscale:0")
    first = [torch.arange(n) < round(level * n) for level in validation]
    second = [torch.arange(n) < round(level * n) for level in simulated]
    alphas = alphas or [i / (len(first) - 1) for i in range(len(first))]
    return Sweep(
        tuple(alphas),
        tuple(
            {"validation": scores(own, a), "shift": scores(shift, b)}
            for a, b in zip(first, second, strict=True)
        ),
    )


def test_default_takes_the_best_simulated_shift_among_those_that_lose_little():
    sweep = sweep_of([0.50, 0.58, 0.597, 0.60, 0.59], [0.56, 0.55, 0.53, 0.50, 0.40])
    choice = choose_alpha(sweep, "validation", ["shift"])
    assert [point.allowed for point in choice.curve] == [False, False, True, True, False]
    assert choice.alpha == 0.5
    assert choice.pictures == 1000 and "No test picture was used" in choice.reason
    assert (
        "Of 5 alphas, 2 lose no more validation accuracy" in choice.reason
        and "53.0 % on average" in choice.reason
    )


def test_where_only_one_alpha_loses_little_the_reason_speaks_of_one():
    reason = choose_alpha(sweep_of([0.5, 0.6, 0.5], [0.5, 0.4, 0.3]), "validation", ["shift"]).reason
    assert "Of 3 alphas, 1 loses no more validation accuracy than chance explains (or 0.5 points)" in reason
    assert "That is alpha 0.5: 40.0 % on average on 1 simulated shifts" in reason and "Among" not in reason


def test_tolerance_is_what_may_be_given_up_in_any_case():
    sweep = sweep_of([0.50, 0.58, 0.597, 0.60, 0.59], [0.56, 0.55, 0.53, 0.50, 0.40])
    assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.02).alpha == 0.25
    assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.0).alpha == 0.75  # three pictures to none


def test_a_difference_that_chance_explains_is_allowed():
    """Two alphas that disagree on 40 of 100 pictures, 21 to 19, cannot be told apart."""
    own = split("validation", 100)
    shift = replace(own, alteration="simulated:hue:0")
    better = torch.arange(100) < 61
    worse = better.clone()
    worse[:21], worse[61:80] = False, True
    sweep = Sweep(
        (0.5, 1.0),
        (
            {"validation": scores(own, worse), "shift": scores(shift, torch.arange(100) < 50)},
            {"validation": scores(own, better), "shift": scores(shift, torch.arange(100) < 40)},
        ),
    )
    choice = choose_alpha(sweep, "validation", ["shift"], tolerance=0.0)
    point = choice.curve[0]
    difference = better.double() - worse.double()
    assert point.loss == pytest.approx(0.02)
    assert point.loss_error == pytest.approx(difference.std(correction=0).item() / math.sqrt(100))
    assert choice.alpha == 0.5


@pytest.mark.parametrize("n", [3, 20, 42, 100, 199, 236, 5000])
def test_one_picture_never_overrules_the_simulated_shifts(n):
    """Alpha 0.6 has one picture more and 33 % on the shift, alpha 1 has 70 %."""
    sweep = sweep_of([math.ceil(0.6 * n) / n, math.ceil(0.6 * n) / n - 1 / n], [0.33, 0.7], n, [0.6, 1.0])
    choice = choose_alpha(sweep, "validation", ["shift"], tolerance=0.0)
    assert choice.curve[1].allowed and choice.alpha == 1


def test_of_one_or_two_pictures_validation_forbids_nothing():
    for n in (1, 2):
        choice = choose_alpha(sweep_of([1, 0], [0, 1], n), "validation", ["shift"])
        assert choice.alpha == 1 and f"at 0.0 % of {n} validation pictures" in choice.reason


@pytest.mark.parametrize(("pictures", "allowed"), [(1, True), (2, True), (3, False), (4, False)])
@pytest.mark.parametrize("n", [20, 100, 5000])
def test_three_pictures_to_none_are_a_loss_at_every_n(n, pictures, allowed):
    sweep = sweep_of([10 / n, (10 - pictures) / n], [0.3, 0.7], n)
    assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.0).curve[1].allowed == allowed


def differ(only_best, only_other):
    """Sums of identities with one picture each."""
    return torch.cat([torch.ones(only_best), -torch.ones(only_other)]).double()


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (6, 3), (12, 4), (9, 7), (2, 5)]
)
def test_of_few_right_and_wrong_answers_the_sign_flip_test_is_the_binomial(b, c):
    expected = sum(math.comb(b + c, i) for i in range(b, b + c + 1)) / 2 ** (b + c)
    assert sign_flip_test(differ(b, c)) == pytest.approx(expected, abs=1e-12)


def test_beyond_sixteen_it_is_near_the_binomial_and_decides_alike():
    for m in (17, 18, 25, 60, 150, 400):
        for b in range((m + 1) // 2, (m + 1) // 2 + 20):
            if b > m:
                break
            exact = sum(math.comb(m, i) for i in range(b, m + 1)) / 2**m
            found = sign_flip_test(differ(b, m - b))
            assert found == pytest.approx(exact, abs=0.003)
            assert (found > LEVEL) == (exact > LEVEL)


def test_fractions_are_flipped_as_they_are():
    sums = torch.tensor([0.5, 0.25, -1 / 3, 1.0, 0.0], dtype=torch.float64)
    totals = [
        sum(sign * abs(size) for sign, size in zip(signs, sums.tolist(), strict=True))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(total >= sums.sum().item() - 1e-9 for total in totals) / 32
    assert sign_flip_test(sums) == expected == 3 / 16
    assert sign_flip_test(sums / 840) == expected  # of any unit


def test_one_great_identity_among_many_is_one_sign():
    """Alone it would decide by a normal distribution; it is as often against as for."""
    sums = torch.cat([torch.tensor([1000.0]), differ(10, 10)])
    assert len(sums) > ALL_SIGNS_OF
    below = sum(math.comb(20, i) for i in range(10, 21)) / 2**20
    assert sign_flip_test(sums) == pytest.approx(below / 2, abs=0.01)


class Fractions(Scores):
    """Answers that may be right in part, like those of retrieval."""

    metrics = (Metric(name="recall", title="recall"),)
    primary = interval = values = tensors = picked = pooled = None

    def __init__(self, of, primary):
        self.split, self.primary = of, primary


def test_answers_that_are_right_in_part_are_compared_as_well():
    own = split("validation", 40)
    shift = replace(own, alteration="simulated:hue:0")
    best = torch.full((40,), 0.5, dtype=torch.float64)
    for pictures, chosen in ((2, 1.0), (3, 0.5)):
        worse = best.clone()
        worse[:pictures] -= 0.25
        sweep = Sweep(
            (0.5, 1.0),
            (
                {
                    "validation": Fractions(own, best),
                    "shift": Fractions(shift, worse),
                },
                {
                    "validation": Fractions(own, worse),
                    "shift": Fractions(shift, best),
                },
            ),
        )
        assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.0).alpha == chosen


def test_pictures_of_one_identity_count_as_one_difference():
    """Ten pictures of two things are lost: of two things, chance explains it; of ten it does not."""
    own = split("validation", 100)
    for things, allowed in ((1, True), (2, True), (10, False), (100, False)):
        examples = tuple(
            replace(e, identity=f"thing {i * things // 100}") for i, e in enumerate(own.examples)
        )
        of = replace(own, examples=examples)
        shift = replace(of, alteration="simulated:hue:0")
        lost = torch.arange(100) % (100 // min(things, 10)) == 0
        sweep = Sweep(
            (0.5, 1.0),
            tuple(
                {"validation": scores(of, right), "shift": scores(shift, ~right)}
                for right in (torch.ones(100, dtype=torch.bool), ~lost)
            ),
        )
        assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.0).curve[1].allowed == allowed, things


def test_alphas_that_tie_all_compete():
    """Equally many right, on other pictures: neither is worse, whichever of them is called the best."""
    own = split("validation", 60)
    shift = replace(own, alteration="simulated:hue:0")
    answers = [(torch.arange(60) + 20 * i) % 60 < 30 for i in range(3)]
    sweep = Sweep(
        (0.0, 0.5, 1.0),
        tuple(
            {"validation": scores(own, right), "shift": scores(shift, torch.arange(60) < level)}
            for right, level in zip(answers, (20, 20, 30), strict=True)
        ),
    )
    choice = choose_alpha(sweep, "validation", ["shift"], tolerance=0.0)
    assert all(point.allowed and point.loss == 0 for point in choice.curve) and choice.alpha == 1


@functools.cache
def least_lead_shut_out(differences):
    """Of two alphas that differ on so many pictures: how many more the better one must have right."""
    lead = differences % 2 + 2 * int(math.sqrt(differences) / 4)  # half a standard error is never shut out
    while lead <= differences and sign_flip_test(differ(*counts(differences, lead))) > LEVEL:
        lead += 2
    return lead


def counts(differences, lead):
    return (differences + lead) // 2, (differences - lead) // 2


def former_rule(differences, lead, n, tolerance=0.005):
    """By the estimated standard error: what this rule took the place of."""
    return lead / n <= max(math.sqrt(differences - lead**2 / n) / n, tolerance) + 1e-12


def rule(differences, lead, n, tolerance=0.005):
    return lead <= tolerance * n + 1e-9 or lead < least_lead_shut_out(differences)


def binomial(n, p):
    """Probabilities of 0…n."""
    i = torch.arange(n + 1, dtype=torch.float64)
    log_choose = math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)
    return (log_choose + torch.xlogy(i, torch.tensor(p)) + torch.xlogy(n - i, torch.tensor(1 - p))).exp()


def competes(of, n, loss, discordance=0.1):
    """How often an alpha that truly loses `loss` may compete, over validation sets of n pictures."""
    chance = 0.0
    for m, weight in enumerate(binomial(n, discordance).tolist()):
        if weight > 1e-4:
            leads = binomial(m, (1 + loss / discordance) / 2).tolist()
            chance += weight * sum(p for b, p in enumerate(leads) if p > 1e-7 and of(m, 2 * b - m, n))
    return chance


CURVE = {  # by the pictures, for 0, 1, 2 and 5 points lost: this rule and the former one, as the module says
    42: ((0.93, 0.79), (0.90, 0.72), (0.86, 0.65), (0.69, 0.39)),
    100: ((0.91, 0.82), (0.84, 0.73), (0.75, 0.62), (0.38, 0.24)),
    236: ((0.89, 0.83), (0.76, 0.69), (0.59, 0.50), (0.09, 0.06)),
    1000: ((0.86, 0.84), (0.54, 0.50), (0.18, 0.15), (0.00, 0.00)),
    5000: ((0.87, 0.87), (0.14, 0.14), (0.00, 0.00), (0.00, 0.00)),
}


@pytest.mark.parametrize("n", CURVE)
def test_operating_curve(n):
    for loss, (new, former) in zip((0.0, 0.01, 0.02, 0.05), CURVE[n], strict=True):
        assert competes(rule, n, loss) == pytest.approx(new, abs=0.01)
        assert competes(former_rule, n, loss) == pytest.approx(former, abs=0.01)


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1, 0.2])
def test_an_equally_good_alpha_may_nearly_always_compete(discordance):
    """At least as often as one standard error promises, at every n and however alike two alphas are."""
    for n in (1, 5, 20, 42, 100, 236, 500):
        assert competes(rule, n, 0.0, discordance) > 1 - LEVEL - 0.01
    assert competes(former_rule, 100, 0.0, 0.02) < 0.75


def test_the_best_of_many_is_best_by_luck_and_shuts_out_some_of_its_equals():
    """Eleven equally good alphas, neighbours of which differ on 2 % of 236 pictures."""
    generator, n, grid, sets = torch.Generator().manual_seed(0), 236, 11, 150
    shut_out = {rule: 0, former_rule: 0}
    for _ in range(sets):
        flips = torch.rand(grid, n, generator=generator) < torch.tensor([0.5] + [0.02] * (grid - 1))[:, None]
        right = flips.long().cumsum(0) % 2 == 1
        best = right[right.sum(1).argmax()]
        for other in right:
            differences, lead = int((best ^ other).sum()), int(best.sum() - other.sum())
            for of in shut_out:
                shut_out[of] += not of(differences, lead, n)
    rates = [count / sets / (grid - 1) for count in shut_out.values()]
    assert rates == pytest.approx([0.36, 0.54], abs=0.05)


def test_the_standard_error_is_clustered_by_identity():
    own = split("validation", 100)
    twins = replace(
        own, examples=tuple(replace(e, identity=f"thing {i // 2}") for i, e in enumerate(own.examples))
    )
    found = []
    for of in (own, twins):
        sweep = Sweep(
            (0.0, 1.0),
            tuple({"validation": scores(of, torch.arange(100) < level)} for level in (40, 60)),
        )
        found.append(choose_alpha(sweep, "validation", rule="in distribution").curve[0].loss_error)
    assert found[1] == pytest.approx(found[0] * math.sqrt(2))


def test_other_rules():
    sweep = sweep_of([0.50, 0.58, 0.597, 0.60, 0.59], [0.50, 0.55, 0.53, 0.50, 0.40])
    assert choose_alpha(sweep, "validation", rule="in distribution").alpha == 0.75
    mean = choose_alpha(sweep, "validation", ["shift"], rule="mean")
    assert mean.alpha == 0.25 and "highest mean" in mean.reason
    assert all(point.allowed for point in mean.curve)


def test_ties_go_to_the_zero_shot_side_and_the_ends_are_named():
    flat = sweep_of([0.5] * 5, [0.4] * 5)
    for rule in ("bounded loss", "in distribution", "mean"):
        choice = choose_alpha(flat, "validation", ["shift"], rule=rule)
        assert choice.alpha == 0 and "zero-shot model" in choice.reason
    rising = choose_alpha(sweep_of([0.4, 0.5, 0.6], [0.4, 0.5, 0.6]), "validation", ["shift"])
    assert rising.alpha == 1 and "largest alpha tried" in rising.reason


def test_the_order_of_the_alphas_does_not_matter():
    levels = ([0.50, 0.58, 0.597, 0.60, 0.59], [0.56, 0.55, 0.53, 0.50, 0.40])
    forward = sweep_of(*levels)
    backward = Sweep(forward.alphas[::-1], forward.scores[::-1])
    assert (
        choose_alpha(forward, "validation", ["shift"]).alpha
        == choose_alpha(backward, "validation", ["shift"]).alpha
    )


def test_one_alpha_per_tower_is_chosen_from_a_grid():
    choice = choose_alpha(demo_sweep(grid=True), "validation", ["greyscale", "hue", "posterise"])
    assert set(choice.alpha) == {"image", "text"} and len(choice.curve) == 25
    assert f"image {choice.alpha['image']:g}" in choice.reason
    chosen = next(point for point in choice.curve if point.alpha == choice.alpha)
    assert chosen.allowed
    assert chosen.simulated_mean == max(point.simulated_mean for point in choice.curve if point.allowed)


def test_only_altered_validation_pictures_may_stand_in_for_shifts():
    sweep = sweep_of([0.5, 0.6], [0.5, 0.6])
    test = split("noto", 1000)
    at = tuple({**s, "noto": scores(test, torch.ones(1000, dtype=torch.bool))} for s in sweep.scores)
    with pytest.raises(TetherError, match="'noto' is not made of the pictures of 'validation'"):
        choose_alpha(Sweep(sweep.alphas, at), "validation", ["noto"])
    fog = replace(sweep.scores[0]["validation"].split, alteration="corruption:fog:3:0")
    at = tuple({**s, "fog": scores(fog, torch.ones(1000, dtype=torch.bool))} for s in sweep.scores)
    with pytest.raises(TetherError, match="corruption"):
        choose_alpha(Sweep(sweep.alphas, at), "validation", ["fog"])


def test_what_does_not_fit_is_refused():
    sweep = sweep_of([0.5, 0.6], [0.5, 0.6])
    with pytest.raises(TetherError, match="did you mean 'bounded loss'"):
        choose_alpha(sweep, "validation", ["shift"], rule="bounded los")
    with pytest.raises(TetherError, match="needs simulated shifts"):
        choose_alpha(sweep, "validation")
    with pytest.raises(TetherError, match="no split 'shfit'; did you mean 'shift'"):
        choose_alpha(sweep, "validation", ["shfit"])


class Table:
    """Answers drawn by chance at every alpha, to the validation pictures and to every simulated shift of them."""

    def __init__(self, seed, per_tower=False):
        chance = torch.Generator().manual_seed(seed)
        n = int(torch.randint(20, 150, (1,), generator=chance))
        grid = [i / 4 for i in range(5)]
        self.alphas = [{"image": a, "text": b} for a in grid[:3] for b in grid[:3]] if per_tower else grid
        self.validation = split("validation", n)
        flips = float(torch.rand(1, generator=chance)) * 0.2
        self.right = {}
        for name in ("validation", *SIMULATED_SHIFTS):
            kept = torch.rand(len(self.alphas), 1, generator=chance) / 2 + 0.5
            changed = torch.rand(len(self.alphas), n, generator=chance) < flips
            right = (torch.rand(n, generator=chance) < 0.8) ^ (changed.long().cumsum(0) % 2 == 1)
            self.right[name] = right & (torch.rand(len(self.alphas), n, generator=chance) < kept)
        self.asked = []

    def __call__(self, splits, alphas):
        self.asked.append((list(splits), list(alphas)))
        place = {example.image: i for i, example in enumerate(self.validation.examples)}
        found = []
        for alpha in alphas:
            right = {
                name: self.right[own.alteration.split(":")[1] if own.alteration else "validation"][
                    self.alphas.index(alpha)
                ]
                for name, own in splits.items()
            }
            found.append(
                {
                    name: scores(own, right[name][[place[example.image] for example in own.examples]])
                    for name, own in splits.items()
                }
            )
        return Sweep(tuple(alphas), tuple(found))

    def everything(self):
        shifts = simulated_shifts(self.validation)
        return self({"validation": self.validation, **shifts}, self.alphas), list(shifts)


@pytest.mark.parametrize("per_tower", [False, True])
@pytest.mark.parametrize("rule", ["bounded loss", "mean", "in distribution"])
def test_the_choice_is_the_same_without_what_does_not_decide(rule, per_tower):
    """Random tables of scores: all evaluated, and only what is needed."""
    evaluated = set()
    for seed in range(12):
        table = Table(seed, per_tower)
        sweep, shifts = table.everything()
        expected = choose_alpha(sweep, "validation", shifts if rule != "in distribution" else [], rule=rule)
        table.asked.clear()
        found = choose_economically(table, table.validation, table.alphas, rule=rule, pictures=None)
        assert found.alpha == expected.alpha and found.pictures == expected.pictures
        assert competing(sweep, "validation", rule=rule) == competing(
            table({"validation": table.validation}, table.alphas), "validation", rule=rule
        )
        decided = [point.alpha for point in expected.curve if point.allowed]
        if rule == "in distribution" or (rule == "bounded loss" and len(decided) == 1):
            decided = []
        wanted = [(["validation"], table.alphas)] + [(shifts, decided)] * bool(decided)
        assert table.asked[:-1] == wanted
        for point, full in zip(found.curve, expected.curve, strict=True):
            if point.alpha in decided:
                assert point == full
            else:
                assert point == replace(full, simulated={}, simulated_mean=None)
        evaluated.add(len(decided))
    assert {"mean": {len(table.alphas)}, "in distribution": {0}}.get(rule, evaluated) == evaluated
    assert rule != "bounded loss" or (0 in evaluated and len(evaluated) > 2)


def test_where_one_alpha_competes_nothing_is_left_to_decide():
    sweep = sweep_of([0.5, 0.6, 0.5], [0.5, 0.4, 0.3])
    bare = Sweep(sweep.alphas, tuple({"validation": own["validation"]} for own in sweep.scores))
    assert competing(bare, "validation") == ()
    choice = choose_alpha(bare, "validation", ["shift"])
    assert choice.alpha == choose_alpha(sweep, "validation", ["shift"]).alpha == 0.5
    assert "That is alpha 0.5, so simulated shifts had nothing to decide. No test" in choice.reason


def test_an_alpha_that_competes_must_have_been_evaluated():
    sweep = sweep_of([0.5, 0.6, 0.6], [0.5, 0.4, 0.3])
    assert competing(sweep, "validation") == (0.5, 1.0)
    first, second, third = sweep.scores
    bare = {"validation": third["validation"]}
    with pytest.raises(TetherError, match=r"Alpha 1 competes, and .* not evaluated there"):
        choose_alpha(Sweep(sweep.alphas, (first, second, bare)), "validation", ["shift"])
    fewer = Sweep(sweep.alphas, ({"validation": first["validation"]}, second, third))
    assert choose_alpha(fewer, "validation", ["shift"]).alpha == 0.5


def test_some_of_the_validation_pictures_stand_for_all_in_the_simulated_shifts():
    table = next(
        table
        for seed in range(40)
        if len(competing((table := Table(seed)).everything()[0], "validation")) > 1
    )
    seen = []

    def evaluate(splits, alphas):
        seen.append({name: len(own) for name, own in splits.items()})
        return table(splits, alphas)

    choice = choose_economically(evaluate, table.validation, table.alphas, pictures=16)
    assert seen == [{"validation": len(table.validation)}, dict.fromkeys(SIMULATED_SHIFTS, 16)]
    assert choice.pictures == len(table.validation)
    assert "on 9 simulated shifts of 16 of the same pictures" in choice.reason
    mean = choose_economically(table, table.validation, table.alphas, rule="mean", pictures=16)
    assert "on 9 simulated shifts of 16 of them" in mean.reason
    everything = choose_economically(table, table.validation, table.alphas, pictures=10_000)
    assert "on 9 simulated shifts of the same pictures" in everything.reason
