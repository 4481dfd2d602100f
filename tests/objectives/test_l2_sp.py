import pytest
import torch
from torch import nn

from tether.errors import TetherError
from tether.objectives.l2_sp import L2SPPenalty, L2SPPenaltyConfig, l2_sp


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def test_value_by_hand():
    # displacements .3, .3, .3 → .27; head .4, .2 → .2; .005·.27 + .05·.2
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    head = torch.tensor([0.4, -0.2], dtype=torch.float64)
    assert float(l2_sp([(start + 0.3, start)], [head], 0.01, 0.1)) == pytest.approx(0.01135, abs=1e-12)


def test_gradient_is_alpha_times_the_displacement():
    model = network()
    penalty = L2SPPenalty(dict(model.named_parameters()), alpha=0.3, beta=0.2, new=["1.bias"])
    starts = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert float(penalty().detach()) == pytest.approx(0.1 * float(starts["1.bias"].square().sum()))
    moved(model)
    penalty().backward()
    for name, parameter in model.named_parameters():
        now = parameter.detach()
        expected = 0.2 * now if name == "1.bias" else 0.3 * (now - starts[name])
        torch.testing.assert_close(parameter.grad, expected)


def test_anchor_none_is_zero():
    model = network()
    weights = dict(model.named_parameters())
    penalty = L2SPPenalty(weights, alpha=1.0, anchors=dict.fromkeys(weights))
    expected = sum(float(w.detach().square().sum()) for w in weights.values()) / 2
    assert float(penalty().detach()) == pytest.approx(expected)
    assert penalty.state_dict() == {}


def test_anchors_survive_saving_and_do_not_move_to_the_present_weights():
    model = network()
    penalty = L2SPPenalty(dict(model.named_parameters()))
    state = {name: anchor.clone() for name, anchor in penalty.state_dict().items()}
    moved(model)
    resumed = L2SPPenalty(dict(model.named_parameters()))
    assert resumed() == 0
    resumed.load_state_dict(state)
    assert resumed() == penalty() > 0


def test_half_precision_weights_do_not_overflow():
    weight = torch.full((300,), 100.0, dtype=torch.float16, requires_grad=True)
    assert float(L2SPPenalty({"w": weight}, alpha=2.0, anchors={"w": None})().detach()) == 3e6


def test_nothing_to_penalise_is_0():
    assert float(l2_sp([], [], 1.0, 1.0)) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": -1.0}, r"alpha must be 0 or more; it is -1\.0"),
        ({"new": ["head"]}, r"new tensors do not fit the parameters: missing \[\], unexpected \['head'\]"),
        (
            {"anchors": {"w": None, "x": None}},
            r"anchors do not fit the parameters: missing \[\], unexpected \['x'\]",
        ),
        ({"anchors": {}}, r"anchors do not fit the parameters: missing \['w'\]"),
        ({"anchors": {"w": torch.ones(3)}}, r"anchor of w has shape \(3,\); the parameter has \(2,\)"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(TetherError, match=message):
        L2SPPenalty({"w": torch.zeros(2, requires_grad=True)}, **wrong)


def test_saved_anchors_that_do_not_fit_are_refused():
    penalty = L2SPPenalty({"w": torch.zeros(2)})
    for state, message in (
        ({}, r"saved anchors do not fit the parameters: missing \['w'\], unexpected \[\]"),
        (
            {"v": torch.zeros(2)},
            r"saved anchors do not fit the parameters: missing \['w'\], unexpected \['v'\]",
        ),
        ({"w": torch.zeros(3)}, r"anchor of w has shape \(3,\)"),
    ):
        with pytest.raises(TetherError, match=message):
            penalty.load_state_dict(state)
    with pytest.raises(TetherError, match="0 or more"):
        L2SPPenaltyConfig(weight=-1.0)


@pytest.mark.parametrize(
    ("dtype", "now", "start"), [(torch.bfloat16, 1.0078, 300.0), (torch.float16, 300.0, -65504.0)]
)
def test_the_difference_is_taken_in_float32(dtype, now, start):
    pair = (torch.tensor([now]).to(dtype), torch.tensor([start]).to(dtype))
    wide = (pair[0].double() - pair[1].double()).square().sum() / 2
    assert float(l2_sp([pair], [], 1.0, 0.0)) == pytest.approx(float(wide), rel=1e-6)
