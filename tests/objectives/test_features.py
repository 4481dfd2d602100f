import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.objectives import features
from tether.objectives.features import alignment, cross_uniformity, relative_alignment, uniformity


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def squared(a, b):
    return float((a - b).square().sum())


@settings(deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 1000), tile=st.integers(1, 4))
def test_slow_twins_in_tiles_of_any_size(n, seed, tile):
    x, y = unit(n, 3, seed=seed), unit(n, 3, seed=seed + 1)
    pairs = list(itertools.combinations(range(n), 2))
    uniform = math.log(sum(math.exp(-2 * squared(x[i], x[j])) for i, j in pairs) / len(pairs))
    across = -math.log(sum(math.exp(-2 * squared(a, b)) for a in x for b in y) / n**2)
    relative = sum(
        squared(x[i], y[i]) - min(squared(x[i], y[k]) for k in range(n) if k != i) for i in range(n)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_TILE", tile)
        assert float(uniformity(x)) == pytest.approx(uniform, abs=1e-12)
        assert float(cross_uniformity(x, y)) == pytest.approx(across, abs=1e-12)
        assert float(relative_alignment(x, y)) == pytest.approx(relative / n, abs=1e-12)
    assert float(alignment(x, y, 3.0)) == pytest.approx(
        sum(squared(a, b) ** 1.5 for a, b in zip(x, y, strict=True)) / n
    )


def test_known_values():
    axes = torch.eye(3, dtype=torch.float64)
    assert float(uniformity(axes)) == pytest.approx(-4)  # every squared distance is 2
    assert float(alignment(axes, axes)) == 0
    assert float(relative_alignment(axes, axes)) == pytest.approx(-2)
    assert float(uniformity(axes[:1].expand(4, 3))) == pytest.approx(0)  # collapsed


def test_stacking_a_set_on_itself_would_bias_uniformity():
    image, text = unit(20, 8, seed=1), unit(20, 8, seed=2)
    both, twice = uniformity(torch.cat([image, text])), uniformity(torch.cat([image, image]))
    assert twice > both + 0.1


def test_gradients():
    x, y = unit(5, 3, seed=1).requires_grad_(), unit(5, 3, seed=2).requires_grad_()
    for metric in (uniformity, lambda a: alignment(a, y), lambda a: cross_uniformity(a, y)):
        assert torch.autograd.gradcheck(metric, (x,))
    assert torch.autograd.gradcheck(relative_alignment, (x, y))


@settings(deadline=None)
@given(order=st.permutations(range(6)))
def test_order_does_not_matter(order):
    x, y = unit(6, 3, seed=1), unit(6, 3, seed=2)
    torch.testing.assert_close(uniformity(x[order]), uniformity(x))
    torch.testing.assert_close(relative_alignment(x[order], y[order]), relative_alignment(x, y))
    torch.testing.assert_close(cross_uniformity(x, y[order]), cross_uniformity(x, y))


@pytest.mark.parametrize("metric", [uniformity, lambda x: relative_alignment(x, x)])
def test_one_row_is_refused(metric):
    with pytest.raises(TetherError, match="at least 2"):
        metric(torch.ones(1, 3))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_identical_pairs_have_a_finite_gradient(power):
    x = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    other = x.detach().roll(1, 0)
    alignment(x, torch.cat([x.detach()[:2], other[2:]]), power).backward()
    assert x.grad.isfinite().all() and x.grad[2:].abs().sum() > 0 and x.grad[:2].abs().sum() == 0
