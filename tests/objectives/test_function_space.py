import copy

import pytest
import torch
from torch import nn

from tether.errors import TetherError
from tether.objectives.divergence import divergence
from tether.objectives.function_space import FunctionSpace, FunctionSpaceConfig
from tether.objectives.simulated_shifts import mix_style

KINDS = ["kl", "reverse_kl", "js", "squared_logits"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 5)).double()


def pixels():
    return torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(batch, _generator):
    return batch


def test_weights_of_0_are_plain_fine_tuning():
    def untouched(_):
        raise AssertionError("a term of weight 0 ran a model")

    config = FunctionSpaceConfig(distance_weight=0.0, consistency_weight=0.0)
    assert FunctionSpace(untouched, config)(untouched, pixels(), torch.zeros(4, 5), generator()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_pretrained_model_itself_pays_no_distance_and_feels_no_pull(kind):
    pretrained = network().eval()
    model = copy.deepcopy(pretrained)
    term = FunctionSpace(pretrained, FunctionSpaceConfig(distance=kind, consistency_weight=0.0))
    loss = term(model, pixels(), model(pixels()), generator())
    loss.backward()
    assert abs(float(loss.detach())) < 1e-15
    assert all(p.grad.abs().max() < 1e-14 for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_perturbation_costs_nothing(kind):
    model = network().eval()
    config = FunctionSpaceConfig(distance_weight=0.0, consistency=kind)
    term = FunctionSpace(network(1), config, perturb=same)
    with torch.no_grad():
        assert abs(float(term(model, pixels(), model(pixels()), generator()))) < 1e-15


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_the_divergences_on_the_simulated_pictures(kind):
    model, pretrained = network().eval(), network(1).eval()
    seen = []

    def shift(batch, random):
        seen.append(mix_style(batch, random))
        return seen[-1]

    config = FunctionSpaceConfig(distance_weight=2.0, consistency_weight=3.0, distance=kind, consistency=kind)
    logits = model(pixels())
    loss = FunctionSpace(pretrained, config, shift=shift, perturb=shift)(model, pixels(), logits, generator())
    shifted, perturbed = seen
    expected = 2 * divergence(pretrained(shifted), model(shifted), kind)
    expected = expected + 3 * divergence(logits, model(perturbed), kind)
    torch.testing.assert_close(loss, expected)
    assert loss > 0 and not torch.equal(shifted, perturbed)


def test_the_pretrained_model_gets_no_gradient_no_statistics_and_its_modes_back():
    model, pretrained = network(), network(1)
    pretrained[0].eval()
    before = copy.deepcopy(pretrained.state_dict())
    term = FunctionSpace(pretrained, FunctionSpaceConfig())
    term(model, pixels(), model(pixels()), generator()).backward()
    assert all(p.grad is None for p in pretrained.parameters())
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state_dict().items())
    assert pretrained.training and pretrained[1].training and not pretrained[0].training


def test_both_models_see_the_same_pictures_whatever_the_global_state():
    seen = []
    spy = lambda batch: seen.append(batch) or batch.flatten(1)[:, :5]  # noqa: E731
    config = FunctionSpaceConfig(consistency_weight=0.0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        FunctionSpace(spy, config)(spy, pixels(), torch.zeros(4, 5), generator())
    assert len(seen) == 4 and all(torch.equal(seen[0], other) for other in seen[1:])


def test_clean_logits_are_a_fixed_target():
    logits = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    config = FunctionSpaceConfig(distance_weight=0.0)
    model = network().eval()
    FunctionSpace(network(1), config)(model, pixels(), logits, generator()).backward()
    assert logits.grad is None


def test_settings_are_checked_when_made():
    with pytest.raises(TetherError, match="0 or more"):
        FunctionSpaceConfig(distance_weight=-1.0)
    for name in ("distance", "consistency", "shift"):
        with pytest.raises(TetherError, match="Unknown"):
            FunctionSpaceConfig(**{name: "mix_stile"})


def test_the_config_names_the_simulator():
    seen = []
    spy = lambda batch: seen.append(batch) or batch.flatten(1)[:, :5]  # noqa: E731
    config = FunctionSpaceConfig(consistency_weight=0.0, shift="mix_style")
    FunctionSpace(spy, config)(spy, pixels(), torch.zeros(4, 5), generator())
    draws = torch.randint(2**62, (2,), generator=generator()).tolist()
    assert torch.equal(seen[0], mix_style(pixels(), generator(draws[0])))
