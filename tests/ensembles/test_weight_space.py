"""Interpolation in weight space: end points, linearity, restoring, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tether.ensembles import WeightPath, interpolate, wise_ft
from tether.errors import TetherError

ALPHA = st.floats(-0.5, 1.5)
SEEDS = st.integers(0, 10**6)


def states(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = {
        "visual.w": torch.randn(3, 4, generator=generator),
        "text.w": torch.randn(5, generator=generator).half(),
        "text.positions": torch.arange(4),
    }
    tuned = {
        name: t + torch.randn(t.shape, generator=generator).to(t.dtype) if t.is_floating_point() else t + 7
        for name, t in base.items()
    }
    return base, tuned


@given(SEEDS, ALPHA)
def test_wise_ft_is_linear_and_leaves_integers_alone(seed, alpha):
    base, tuned = states(seed)
    result = wise_ft(base, tuned, alpha)
    assert torch.allclose(
        result["visual.w"], (1 - alpha) * base["visual.w"] + alpha * tuned["visual.w"], atol=1e-5
    )
    half = (1 - alpha) * base["text.w"].float() + alpha * tuned["text.w"].float()
    assert result["text.w"].dtype == torch.half
    assert torch.allclose(result["text.w"].float(), half, atol=4e-3)
    assert torch.equal(result["text.positions"], base["text.positions"])


@given(SEEDS)
def test_wise_ft_is_exact_at_both_ends(seed):
    base, tuned = states(seed)
    for end, expected in ((0.0, base), (1.0, tuned)):
        result = wise_ft(base, tuned, end)
        for name in ("visual.w", "text.w"):
            assert torch.equal(result[name], expected[name])


@given(SEEDS, ALPHA)
def test_interpolate_agrees_with_wise_ft(seed, alpha):
    base, tuned = states(seed)
    delta = {name: tuned[name].float() - base[name].float() for name in ("visual.w", "text.w")}
    result = interpolate(base, delta, alpha)
    expected = wise_ft(base, tuned, alpha)
    for name, tensor in result.items():
        assert tensor.dtype == base[name].dtype
        assert torch.allclose(tensor.float(), expected[name].float(), atol=4e-3)
    assert interpolate(base, delta, 0.0)["visual.w"] is base["visual.w"]


def test_alpha_per_tower():
    base, tuned = states(0)
    result = wise_ft(base, tuned, {"image": 1.0, "text": 0.0})
    assert torch.equal(result["visual.w"], tuned["visual.w"]) and torch.equal(
        result["text.w"], base["text.w"]
    )
    delta = {"visual.w": torch.ones(3, 4), "text.w": torch.ones(5)}
    swapped = interpolate(
        base, delta, {"image": 1.0, "text": 0.0}, towers={"visual.w": "text", "text.w": "image"}
    )
    assert torch.equal(swapped["visual.w"], base["visual.w"])
    assert torch.allclose(swapped["text.w"].float(), base["text.w"].float() + 1, atol=2e-3)


@given(SEEDS, st.lists(ALPHA, min_size=1, max_size=4))
def test_a_path_is_walked_in_any_order_and_restored(seed, alphas):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    delta = {"0.weight": torch.randn(4, 3), "1.running_mean": torch.randn(4)}
    expected = {alpha: interpolate(before, delta, alpha) for alpha in alphas}
    with WeightPath(module, delta) as path:
        for alpha in alphas:
            path.set(alpha)
            for name, tensor in module.state_dict().items():
                assert torch.equal(tensor, expected[alpha][name])
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_path_is_restored_after_an_error():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    with (
        pytest.raises(RuntimeError, match="mine"),
        WeightPath(module, {"weight": torch.ones(2, 2)}) as path,
    ):
        path.set(1.0)
        raise RuntimeError("mine")
    assert torch.equal(module.weight, before)


def test_half_weights_move_in_fp32():
    module = nn.Linear(2, 2).bfloat16()
    base = module.weight.detach().clone()
    path = WeightPath(module, {"weight": torch.full((2, 2), 1e-3)})
    path.set(0.5)
    assert torch.equal(module.weight, (base.float() + 5e-4).bfloat16())


def test_states_that_do_not_belong_together_are_refused_with_names():
    base, tuned = states(0)
    with pytest.raises(TetherError, match=r"no tensor visual\.v; did you mean 'visual\.w'"):
        wise_ft(base, tuned | {"visual.v": torch.zeros(1)}, 0.5)
    with pytest.raises(TetherError, match=r"lacks text\.w"):
        wise_ft(base, {name: tensor for name, tensor in tuned.items() if name != "text.w"}, 0.5)
    with pytest.raises(TetherError, match=r"visual\.w \(\[2\] instead of \[3, 4\]\)"):
        wise_ft(base, tuned | {"visual.w": torch.zeros(2)}, 0.5)
    with pytest.raises(TetherError, match="no tensor other"):
        interpolate(base, {"other": torch.zeros(1)}, 0.5)
    with pytest.raises(TetherError, match="no tensor wieght; did you mean 'weight'"):
        WeightPath(nn.Linear(2, 2), {"wieght": torch.zeros(2, 2)})
