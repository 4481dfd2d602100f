import math
from dataclasses import replace

import pytest
import torch

from tether.errors import TetherError
from tether.evaluation.alpha import choose_alpha
from tether.evaluation.scores import SplitScores, Sweep

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
    assert "Of 5 alphas, 2 lose at most" in choice.reason and "53.0 % on average" in choice.reason


def test_where_only_one_alpha_loses_little_the_reason_speaks_of_one():
    reason = choose_alpha(sweep_of([0.5, 0.6, 0.5], [0.5, 0.4, 0.3]), "validation", ["shift"]).reason
    assert "Of 3 alphas, 1 loses at most one standard error" in reason
    assert "That is alpha 0.5: 40.0 % on average on 1 simulated shifts" in reason and "Among" not in reason


def test_tolerance_is_what_may_be_given_up_in_any_case():
    sweep = sweep_of([0.50, 0.58, 0.597, 0.60, 0.59], [0.56, 0.55, 0.53, 0.50, 0.40])
    assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.02).alpha == 0.25
    assert choose_alpha(sweep, "validation", ["shift"], tolerance=0.0).alpha in (0.5, 0.75)


def test_a_difference_within_one_standard_error_on_the_same_pictures_is_allowed():
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


def test_pictures_of_one_identity_count_as_one_piece_of_evidence():
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
