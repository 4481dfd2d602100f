import copy

import pytest
import torch
from torch import nn

from tether.errors import TetherError
from tether.objectives.carot import (
    CaRot,
    CaRotConfig,
    cross_orthogonality,
    projection_orthogonality,
    self_distillation,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_orthogonality_terms_are_plain_norms():
    v, t = randn(5, 3), randn(4, 3, seed=1)
    gram = [[float(v[:, i] @ v[:, j]) - (i == j) for j in range(3)] for i in range(3)]
    assert float(projection_orthogonality(v)) == pytest.approx(sum(x**2 for row in gram for x in row) ** 0.5)
    cross = sum(float(v[i] @ t[j]) ** 2 for i in range(5) for j in range(4)) ** 0.5
    assert float(cross_orthogonality(v, t)) == pytest.approx(cross)


def test_an_orthogonal_projection_costs_nothing_and_has_a_finite_gradient():
    v = torch.eye(4, 3, dtype=torch.float64).requires_grad_()
    value = projection_orthogonality(v)
    value.backward()
    assert value == 0 and torch.equal(v.grad, torch.zeros_like(v))


def test_gradients():
    v, t = randn(5, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    logits, teacher = randn(4, 4).requires_grad_(), randn(4, 4, seed=1)
    assert torch.autograd.gradcheck(projection_orthogonality, (v,))
    assert torch.autograd.gradcheck(cross_orthogonality, (v, t))
    assert torch.autograd.gradcheck(lambda z: self_distillation(z, teacher), (logits,))


def test_distillation_goes_both_ways_and_not_into_the_teacher():
    logits, teacher = randn(4, 4), randn(4, 4, seed=1).requires_grad_()
    expected = 0.0
    for ours, theirs in ((logits, teacher), (logits.T, teacher.T)):
        for i in range(4):
            expected -= float((theirs[i].softmax(0) * ours[i].log_softmax(0)).sum().detach()) / 4
    value = self_distillation(logits.requires_grad_(), teacher)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected)
    assert teacher.grad is None and logits.grad is not None


def test_momentum_rises_over_the_first_fifth():
    config = CaRotConfig()
    assert [config.momentum_at(step, 1000) for step in (0, 100, 200, 999)] == pytest.approx(
        [0.05, 0.475, 0.9, 0.9]
    )
    assert CaRotConfig(warm_up=0.0).momentum_at(0, 10) == 0.9
    with pytest.raises(TetherError, match="momenta"):
        CaRotConfig(momentum=(0.5, 1.5))


def test_the_sum_and_its_start():
    v, t, logits, teacher = randn(5, 3), randn(4, 3, seed=1), randn(4, 4), randn(4, 4, seed=1)
    carot = CaRot(nn.Linear(2, 2), CaRotConfig(), steps=10)
    constraints = 0.2 * projection_orthogonality(v) + 0.05 * cross_orthogonality(v, t)
    torch.testing.assert_close(carot(logits, teacher, v, t, 0), constraints)
    distilled = 1.5 * self_distillation(logits, teacher)
    torch.testing.assert_close(carot(logits, teacher, v, t, 1), constraints + distilled)
    torch.testing.assert_close(carot(logits, teacher, None, None, 1), distilled)
    assert carot(None, None, None, None, 0) == 0


def network():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    return model


def test_the_teacher_follows_slowly_and_stays_frozen_in_evaluation_mode():
    model = network()
    carot = CaRot(model, CaRotConfig(every=5), steps=50)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].running_mean.add_(1)
    for step in range(5):
        carot.update(step)
    assert torch.equal(carot.teacher[0].weight, start["0.weight"])
    carot.update(5)
    carot.update(5)  # once more, for another batch of the step
    torch.testing.assert_close(carot.teacher[0].weight.detach(), start["0.weight"] + 1 - 0.475)
    assert torch.equal(carot.teacher[1].running_mean, model[1].running_mean)
    assert not any(part.training for part in carot.teacher.modules())
    assert not any(parameter.requires_grad for parameter in carot.teacher.parameters())


def test_what_is_frozen_is_shared_and_neither_written_nor_saved():
    model = network()
    carot = CaRot(model, CaRotConfig(every=1), steps=10)
    loss = model(torch.randn(3, 2)).sum()
    carot.update(1)
    loss.backward()  # an update that wrote into the frozen weights would have spoilt this
    assert carot.teacher[2].weight is model[2].weight and carot.teacher[0].weight is not model[0].weight
    assert {name.split(".")[0] for name in carot.state_dict()} == {"0", "1"}


def test_the_teacher_survives_saving():
    model = network()
    carot = CaRot(model, CaRotConfig(), steps=10)
    state = {name: tensor.clone() for name, tensor in carot.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1)
    other = CaRot(model, CaRotConfig(), steps=10)
    assert not torch.equal(other.teacher[0].weight, carot.teacher[0].weight)
    other.load_state_dict(state)
    assert torch.equal(other.teacher[0].weight, carot.teacher[0].weight)
    with pytest.raises(TetherError, match="missing"):
        other.load_state_dict({"0.weight": state["0.weight"]})


def test_config_is_checked():
    with pytest.raises(TetherError, match="distillation"):
        CaRotConfig(distillation=-1.0)
