"""The algebra of the R-Adapter against the paper's formulas, its module and its config."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tether.adapters import RAdapterConfig
from tether.adapters.r_adapter.module import RAdapter, branch, delta, fold, product
from tether.errors import TetherError

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6))
STRENGTH = st.floats(-2, 2)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@given(SHAPES, STRENGTH)
@settings(deadline=None)
def test_fold_equals_adapter_after_linear(shape, k):
    d, i, rank, seed = shape
    x, weight, bias, full, up, down = draw(seed, (3, i), (d, i), (d,), (d, d), (d, rank), (rank, d))
    for factors in ((full,), (up, down)):
        y = F.linear(x, weight, bias)
        by_paper = y + k * y @ product(factors, 1.0).T
        assert torch.allclose(y + k * branch(y, factors), by_paper)
        folded, folded_bias = fold(weight, bias, factors, k)
        assert torch.allclose(F.linear(x, folded, folded_bias), by_paper)
        assert torch.allclose(folded, weight + delta(weight, factors, k))
        assert torch.allclose(folded_bias, bias + delta(bias, factors, k))
        assert fold(weight, None, factors, k)[1] is None


def test_the_wrong_side_or_a_forgotten_bias_is_far_off():
    x, weight, bias, a = draw(0, (5, 6), (6, 6), (6,), (6, 6))
    y = F.linear(x, weight, bias)
    expected = y + y @ a.T
    folded, folded_bias = fold(weight, bias, (a,), 1.0)
    assert torch.allclose(F.linear(x, folded, folded_bias), expected)
    assert (F.linear(x, weight + weight @ a, folded_bias) - expected).abs().max() > 0.1
    assert (F.linear(x, folded, bias) - expected).abs().max() > 0.1


@given(SHAPES, st.floats(0, 1))
@settings(deadline=None)
def test_alpha_is_interpolation_of_merged_weights(shape, alpha):
    d, i, rank, seed = shape
    weight, bias, up, down = draw(seed, (d, i), (d,), (d, rank), (rank, d))
    base, merged = (weight, bias), fold(weight, bias, (up, down), 0.3)
    between = fold(weight, bias, (up, down), alpha * 0.3)
    for w0, w1, w in zip(base, merged, between, strict=True):
        assert torch.allclose(w, (1 - alpha) * w0 + alpha * w1)


def test_fold_is_computed_in_fp32_for_half_weights():
    weight, bias, a = (t.float() for t in draw(1, (8, 8), (8,), (8, 8)))
    folded, folded_bias = fold(weight.half(), bias.half(), (a,), 0.1)
    assert folded.dtype == folded_bias.dtype == torch.float32
    expected = weight.half().double() + 0.1 * a.double() @ weight.half().double()
    assert torch.allclose(folded.double(), expected, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_adapter_is_the_identity_bit_for_bit(rank, scale, dtype):
    adapter = RAdapter(8, rank, scale)
    y = torch.randn(2, 5, 8).to(dtype)
    assert torch.equal(adapter(y), y)
    assert adapter(y).dtype == dtype


def test_first_gradients_reach_f_alone_or_up_alone():
    for rank, moved, still in ((None, "weight", "scale"), (3, "up", "down")):
        adapter = RAdapter(8, rank, 0.1)
        adapter(torch.randn(4, 8)).square().sum().backward()
        assert getattr(adapter, moved).grad.abs().max() > 0
        assert getattr(adapter, still).grad.abs().max() == 0


def test_initialisation_is_xavier_uniform_and_reproducible():
    one, two, other = (RAdapter(96, 32, 0.1, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert torch.equal(one.down, two.down) and not torch.equal(one.down, other.down)
    bound = (6 / (96 + 32)) ** 0.5
    assert one.down.abs().max() <= bound
    assert abs(float(one.down.detach().std()) - bound / 3**0.5) < 0.01
    assert float(one.scale.detach()) == pytest.approx(0.1) and float(one.up.detach().abs().max()) == 0


def test_scale_divides_the_first_step_and_is_the_default():
    """The published code's s against the paper's text: the same gradient step moves A by s² as much."""
    assert RAdapterConfig().scale == 0.1
    y, moved = torch.randn(16, 8), {}
    for scale in (0.1, None):
        adapter = RAdapter(8, None, scale)
        adapter(y).sum().backward()
        with torch.no_grad():
            adapter.weight -= 0.5 * adapter.weight.grad
        moved[scale] = product(adapter.factors, adapter.strength).detach()
    assert torch.allclose(moved[0.1], 0.01 * moved[None], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "rank is None"),
        ({"rank": {"image": 2.5}}, "rank is None"),
        ({"drop": 1.0}, "probability"),
        ({"granularity": "sampel"}, "did you mean 'sample'"),
        ({"fold": "yes"}, "Unknown fold"),
        ({"scale": 0.0}, "positive"),
    ],
)
def test_contradictions_are_refused_at_once(options, message, unchecked):
    with pytest.raises(TetherError, match=message):
        RAdapterConfig(**options)
