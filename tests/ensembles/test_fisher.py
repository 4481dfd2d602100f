import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tether.ensembles import FisherConfig, FisherPath, diagonal_fisher, fisher_average
from tether.ensembles.model_average import average
from tether.errors import TetherError


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(sizes, seed=0):
    x, y = randn(sum(sizes), 3, seed=seed), torch.arange(sum(sizes)) % 2
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [4, 2]])
def test_it_is_the_mean_of_squared_gradients_of_single_examples(sizes):
    model = classifier()
    parameters = dict(model.named_parameters())
    found = diagonal_fisher(
        parameters, lambda b: F.cross_entropy(model(b[0]), b[1], reduction="none"), batches(sizes)
    )
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, y in batches([1] * 6):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, parameter in parameters.items():
            expected[name] += parameter.grad**2 / 6
    model.zero_grad()
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-15)
        assert not found[name].requires_grad and parameters[name].grad is None


def test_gaussian_mean_has_the_fisher_of_the_textbook():
    mean, variance = torch.zeros(1, dtype=torch.float64, requires_grad=True), 0.25
    x = randn(20000, 1) * variance**0.5
    fisher = diagonal_fisher(
        {"mean": mean}, lambda b: ((b - mean) ** 2 / (2 * variance)).sum(1), x[:2000].split(50)
    )
    assert float(fisher["mean"]) == pytest.approx(float((x[:2000] ** 2).mean()) / variance**2)
    assert float(fisher["mean"]) == pytest.approx(1 / variance, rel=0.1)


def test_a_parameter_out_of_reach_has_fisher_0_and_half_precision_does_not_underflow():
    used = torch.ones(2, dtype=torch.float16, requires_grad=True)
    spare = torch.ones(2, requires_grad=True)
    small = torch.full((1, 2), 1e-4, dtype=torch.float16)
    fisher = diagonal_fisher({"used": used, "spare": spare}, lambda x: (x @ used).float(), [small])
    assert fisher["used"].dtype == torch.float32 and fisher["used"].min() > 0.9e-8
    assert torch.equal(fisher["spare"], torch.zeros(2))


def test_misuse_is_explained():
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(TetherError, match="reduction"):
        diagonal_fisher({"w": weight}, lambda x: (x @ weight).mean(), [torch.ones(3, 2)])
    with pytest.raises(TetherError, match="at least one example"):
        diagonal_fisher({"w": weight}, lambda x: x @ weight, [])
    with pytest.raises(TetherError, match="requires_grad"):
        diagonal_fisher({"w": weight.detach()}, lambda x: x @ weight, [torch.ones(3, 2)])


def models(count=3):
    states = [
        {"w": randn(3, 2, seed=i), "b": randn(2, seed=9 + i), "n": torch.tensor(i)} for i in range(count)
    ]
    fishers = [{"w": randn(3, 2, seed=20 + i) ** 2} for i in range(count)]
    return states, fishers


@settings(deadline=None)
@given(weights=st.lists(st.floats(0.01, 5), min_size=3, max_size=3))
def test_slow_twin_with_keys_without_information(weights):
    states, fishers = models()
    fishers[1]["w"][0] = 0.0
    found = fisher_average(states, fishers, weights)
    for i, j in itertools.product(range(3), range(2)):
        coefficients = [w * max(float(f["w"][i, j]), 1e-8) for w, f in zip(weights, fishers, strict=True)]
        terms = [c * float(s["w"][i, j]) for c, s in zip(coefficients, states, strict=True)]
        assert float(found["w"][i, j]) == pytest.approx(sum(terms) / sum(coefficients), rel=1e-9)
    torch.testing.assert_close(found["b"], average(states, weights)["b"])
    assert found["n"] == 0


@settings(deadline=None)
@given(order=st.permutations(range(3)))
def test_order_and_scale_of_the_information_do_not_matter(order):
    states, fishers = models()
    found = fisher_average(states, fishers)["w"]
    moved = fisher_average([states[i] for i in order], [{"w": 7 * fishers[i]["w"]} for i in order])["w"]
    torch.testing.assert_close(moved, found, rtol=1e-6, atol=1e-8)


def test_equal_information_is_the_plain_average():
    states, _ = models()
    same = [{"w": torch.full((3, 2), 0.3, dtype=torch.float64)}] * 3
    torch.testing.assert_close(
        fisher_average(states, same, [0.2, 0.3, 0.5]), average(states, [0.2, 0.3, 0.5])
    )


def test_ends_of_the_merge_are_the_models():
    states, fishers = models(2)
    assert torch.equal(fisher_average(states, fishers, [1.0, 0.0])["w"], states[0]["w"])
    assert torch.equal(fisher_average(states, fishers, [0.0, 1.0])["w"], states[1]["w"])


def test_no_information_anywhere_does_not_divide_by_zero():
    states, _ = models(2)
    nothing = [{"w": torch.zeros(3, 2)}] * 2
    torch.testing.assert_close(fisher_average(states, nothing)["w"], average(states)["w"])
    with pytest.raises(TetherError, match="floor"):
        fisher_average(states, nothing, floor=0.0)


def test_information_that_does_not_fit_is_refused():
    states, fishers = models(2)
    with pytest.raises(TetherError, match="2 models"):
        fisher_average(states, fishers[:1])
    with pytest.raises(TetherError, match="unknown keys \\['v'\\]"):
        fisher_average(states, [{"v": torch.ones(1)}] * 2)
    with pytest.raises(TetherError, match="unexpected"):
        fisher_average(states, [fishers[0], fishers[1] | {"b": torch.ones(2)}])
    with pytest.raises(TetherError, match="w has shape"):
        fisher_average(states, [{"w": torch.ones(2)}] * 2)


def test_the_path_is_the_fisher_average_at_every_alpha_and_exact_at_its_ends():
    torch.manual_seed(1)
    module = nn.Linear(3, 2)
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    delta = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    fishers = [{"weight": torch.rand(2, 3) ** 8}, {"weight": torch.rand(2, 3) ** 8}]
    fishers[0]["weight"][0, 0] = fishers[1]["weight"][0, 0] = fishers[1]["weight"][0, 1] = 0.0
    tuned = {name: base[name] + delta[name] for name in base}
    straight = {name: torch.lerp(base[name], tuned[name], 0.3) for name in base}
    with FisherPath(module, delta, (fishers[0], fishers[1]), floor=1e-6) as path:
        for alpha in (0.3, 0.9):
            path.set(alpha)
            expected = fisher_average([base, tuned], fishers, (1 - alpha, alpha), floor=1e-6)
            for name, tensor in module.state_dict().items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        path.set(0.3)
        torch.testing.assert_close(module.weight[0, 0], straight["weight"][0, 0])
        torch.testing.assert_close(module.bias, straight["bias"])
        assert (module.weight - straight["weight"]).abs().max() > 0.01
        for alpha, end in ((0.0, base), (1.0, tuned)):
            path.set(alpha)
            assert all(torch.equal(tensor, end[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, base[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 1.5}, r"alpha is a number from 0 to 1, or 'auto', not 1\.5"),
        ({"alpha": "best"}, "alpha is a number from 0 to 1, or 'auto', not 'best'"),
        ({"grid": ()}, r"grid needs numbers from 0 to 1, at least one, none of them twice; found \[\]"),
        (
            {"grid": (0.5, 2.0)},
            r"grid needs numbers from 0 to 1, at least one, none of them twice; found \[0.5, 2.0\]",
        ),
        ({"rule": "best"}, "There is no rule 'best' to choose by"),
        ({"examples": 0}, r"needs examples and a floor above 0; found 0 and 1e-08"),
        ({"floor": 0.0}, r"needs examples and a floor above 0; found \d+ and 0\.0"),
        ({"labels": "guess"}, "labels is 'model' or 'data', not 'guess'"),
    ],
)
def test_impossible_settings_are_refused_when_made(wrong, message):
    with pytest.raises(TetherError, match=message):
        FisherConfig(**wrong)
