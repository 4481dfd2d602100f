import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.ensembles.model_average import average, greedy_soup
from tether.errors import TetherError


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 2, generator=generator).to(dtype),
        "count": torch.tensor(seed),
    }


def closeness(target):
    return lambda found: -float((found["weight"] - target).abs().sum())


@settings(deadline=None)
@given(weights=st.lists(st.floats(0, 5), min_size=1, max_size=4).filter(lambda w: sum(w) > 1e-3))
def test_slow_twin(weights):
    states = [state(seed) for seed in range(len(weights))]
    found = average(states, weights)
    for index in itertools.product(range(3), range(2)):
        terms = [w * float(s["weight"][index]) for w, s in zip(weights, states, strict=True)]
        assert float(found["weight"][index]) == pytest.approx(sum(terms) / sum(weights), rel=1e-6, abs=1e-7)
    assert found["count"] == 0


@settings(deadline=None)
@given(order=st.permutations(range(4)))
def test_order_does_not_matter(order):
    states, weights = [state(seed) for seed in range(4)], [0.1, 0.2, 0.3, 0.4]
    shuffled = average([states[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(shuffled["weight"], average(states, weights)["weight"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_models_and_ends_come_out_bit_for_bit(dtype):
    one, other = state(1, dtype), state(2, dtype)
    assert torch.equal(average([one] * 3)["weight"], one["weight"])
    end = average([other, one], [0.0, 1.0])["weight"]
    assert torch.equal(end, one["weight"]) and end.dtype == dtype
    other["weight"].fill_(torch.inf)
    assert torch.equal(average([one, other], [2.0, 0.0])["weight"], one["weight"])


def test_nothing_is_shared_with_the_inputs():
    one = state(1)
    found = average([one])
    assert all(found[key].data_ptr() != one[key].data_ptr() for key in one)


def test_models_that_differ_are_refused_by_name():
    other = state(2)
    with pytest.raises(TetherError, match="missing \\['count'\\], unexpected \\['extra'\\]"):
        average([state(1), {"weight": other["weight"], "extra": other["count"]}])
    with pytest.raises(TetherError, match="weight has shape"):
        average([state(1), other | {"weight": torch.zeros(2, 3)}])
    with pytest.raises(TetherError, match="nothing to average"):
        average([], [])


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(TetherError, match="2 weights"):
        average([state(1), state(2)], weights)


def slow_greedy(states, scores, evaluate):
    kept, best = [], -float("inf")
    for name in sorted(states, key=lambda n: -scores[n]):
        score = evaluate(average([states[n] for n in [*kept, name]])) if kept else scores[name]
        if score >= best:
            kept, best = [*kept, name], score
    return tuple(kept), best


@settings(deadline=None)
@given(seeds=st.lists(st.integers(0, 50), min_size=1, max_size=5, unique=True), target=st.floats(-1, 1))
def test_greedy_soup_is_the_slow_one_whatever_the_order(seeds, target):
    states = {str(seed): state(seed) for seed in seeds}
    evaluate = closeness(target)
    scores = {name: evaluate(s) for name, s in states.items()}
    soup = greedy_soup(states, scores, evaluate)
    kept, best = slow_greedy(states, scores, evaluate)
    assert soup.ingredients == kept and soup.score == pytest.approx(best, abs=1e-5)
    torch.testing.assert_close(soup.state["weight"], average([states[n] for n in kept])["weight"])
    assert soup.score >= max(scores.values()) and soup.state["count"] == states[kept[0]]["count"]
    backwards = dict(reversed(states.items()))
    assert greedy_soup(backwards, scores, evaluate).ingredients == kept


def test_every_run_but_the_best_is_evaluated_once():
    calls = []
    states = {name: state(int(name)) for name in "123"}
    soup = greedy_soup(states, {"1": 1.0, "2": 3.0, "3": 2.0}, lambda found: calls.append(found) or 0.0)
    assert soup.ingredients == ("2",) and len(calls) == 2
    torch.testing.assert_close(calls[0]["weight"], average([states["2"], states["3"]])["weight"])
    torch.testing.assert_close(calls[1]["weight"], average([states["2"], states["1"]])["weight"])


def test_a_run_that_changes_nothing_is_taken_in():
    states = {"a": state(1), "b": state(2)}
    assert greedy_soup(states, {"a": 0.5, "b": 0.4}, lambda _: 0.5).ingredients == ("a", "b")


def test_equal_scores_go_by_name():
    states = {"b": state(1), "a": state(2)}
    assert greedy_soup(states, {"a": 1.0, "b": 1.0}, lambda _: 0.0).ingredients == ("a",)


@pytest.mark.parametrize("scores", [{}, {"a": 1.0, "b": 2.0}, {"a": float("nan")}])
def test_scores_that_do_not_fit_are_refused(scores):
    with pytest.raises(TetherError, match="one score"):
        greedy_soup({"a": state(1)}, scores, lambda _: 0.0)
