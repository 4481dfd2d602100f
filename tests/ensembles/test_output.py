import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.ensembles.output import (
    SPACES,
    OutputConfig,
    OutputEnsemble,
    calibrate,
    output_ensemble,
    restrict,
)
from tether.ensembles.views import Views
from tether.errors import TetherError


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row, temperature):
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


@settings(deadline=None)
@given(weights=st.lists(st.floats(0, 1), min_size=3, max_size=3), t=st.floats(0.2, 5))
def test_slow_twin(weights, t):
    zero_shot, tuned = randn(3, 4), randn(3, 4, seed=1)
    found = output_ensemble(zero_shot, tuned, torch.tensor(weights), temperatures=(t, 0.7))
    for i, w in enumerate(weights):
        p, q = softmax(zero_shot[i].tolist(), t), softmax(tuned[i].tolist(), 0.7)
        expected = [w * b + (1 - w) * a for a, b in zip(p, q, strict=True)]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(3).double())


def test_ends_and_one_weight_for_all():
    zero_shot, tuned = randn(3, 4), randn(3, 4, seed=1)
    torch.testing.assert_close(output_ensemble(zero_shot, tuned, 0.0), zero_shot.softmax(1))
    torch.testing.assert_close(output_ensemble(zero_shot, tuned, 1.0), tuned.softmax(1))
    same = torch.full((3,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        output_ensemble(zero_shot, tuned, 0.3), output_ensemble(zero_shot, tuned, same)
    )


def test_the_space_of_logits_is_a_choice():
    zero_shot, tuned = randn(3, 4), randn(3, 4, seed=1)
    mixed = output_ensemble(zero_shot, tuned, 0.3, temperatures=(2.0, 0.5), space="logits")
    torch.testing.assert_close(mixed, (0.7 * zero_shot / 2 + 0.3 * tuned / 0.5).softmax(1))
    with pytest.raises(TetherError, match="did you mean 'logits'"):
        output_ensemble(zero_shot, tuned, space="logit")


def test_half_precision_is_widened():
    logits = randn(2, 3).half()
    assert output_ensemble(logits, logits).dtype == torch.float32


@settings(deadline=None)
@given(seed=st.integers(0, 100), scale=st.floats(0.5, 100))
def test_confidence_meets_accuracy(seed, scale):
    logits = scale * randn(40, 5, seed=seed)
    labels = logits.argmax(1).roll(5).where(torch.arange(40) % 3 == 0, logits.argmax(1))
    found = calibrate(logits, labels)
    probabilities = (logits / found.temperature).softmax(1)
    assert float(probabilities.amax(1).mean()) == pytest.approx(found.accuracy, abs=1e-9)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_a_known_temperature_is_found():
    # Two classes, 3 of 4 right: sigmoid(z/T) = ¾ at z/T = log 3.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert calibrate(logits, torch.tensor([0, 0, 0, 1])).temperature == pytest.approx(
        2 / math.log(3), rel=1e-9
    )


@pytest.mark.parametrize(("label", "bound"), [(1, 100.0), (0, 0.01)])
def test_an_accuracy_out_of_reach_ends_the_search_at_a_bound(label, bound):
    found = calibrate(torch.tensor([[1.0, 0.0]] * 4), torch.full((4,), label))
    assert found.temperature == pytest.approx(bound)
    assert (found.confidence > found.accuracy) == (label == 1)


def test_no_data_is_refused():
    with pytest.raises(TetherError, match="validation"):
        calibrate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_restriction_to_a_data_sets_classes():
    logits = randn(2, 5)
    assert torch.equal(restrict(logits, [3, 0]), logits[:, [3, 0]])
    assert restrict(logits, None) is logits
    for classes in ([], [5], [-1]):
        with pytest.raises(TetherError, match="0 to 4"):
            restrict(logits, classes)


def test_the_ensemble_is_either_model_as_it_is_at_the_ends_and_the_mixture_between():
    random = torch.Generator().manual_seed(4)
    views = Views(*(torch.randn(5, n, generator=random) for n in (4, 4, 3)))
    for space in SPACES:
        mix = OutputEnsemble(0.25, (2.0, 0.5), space)
        expected = output_ensemble(views.zero_shot, views.tuned, 0.25, temperatures=(2.0, 0.5), space=space)
        assert torch.equal(mix(views), expected)
        assert not torch.equal(mix(views), OutputEnsemble(0.25, space=space)(views))
        kept = [3, 1]
        part = output_ensemble(
            views.zero_shot[:, kept], views.tuned[:, kept], 0.25, temperatures=(2.0, 0.5), space=space
        )
        assert torch.equal(mix(views, kept), part)
        for weight, alone in ((0.0, views.zero_shot), (1.0, views.tuned)):
            torch.testing.assert_close(OutputEnsemble(weight, (2.0, 0.5), space)(views), alone.softmax(-1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": -0.1}, r"weight is a number from 0 to 1, or 'auto', not -0\.1"),
        ({"weight": "best"}, "weight is a number from 0 to 1, or 'auto', not 'best'"),
        (
            {"grid": (0.5, 0.5)},
            r"grid needs numbers from 0 to 1, at least one, none of them twice; found \[0.5, 0.5\]",
        ),
        ({"rule": "best"}, "There is no rule 'best' to choose by"),
        ({"space": "odds"}, "Unknown space 'odds'"),
    ],
)
def test_impossible_settings_are_refused_when_made(wrong, message):
    with pytest.raises(TetherError, match=message):
        OutputConfig(**wrong)


def test_a_temperature_is_not_fitted_on_what_is_no_number():
    logits = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    with pytest.raises(TetherError, match="NaN"):
        calibrate(logits, torch.tensor([0, 1]))
    absent = torch.tensor([[1.0, 0.5, -math.inf], [0.0, 1.0, -math.inf]])
    assert math.isfinite(calibrate(absent, torch.tensor([0, 0])).temperature)
