import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tether.errors import TetherError
from tether.objectives.divergence import divergence

KINDS = ["kl", "reverse_kl", "js", "squared_logits"]
matrices = npst.arrays("float64", (3, 4), elements=st.floats(-30, 30)).map(torch.from_numpy)


def slow(reference, logits, kind):
    total = 0.0
    for row, other in zip(reference.tolist(), logits.tolist(), strict=True):
        p = [math.exp(z) / sum(map(math.exp, row)) for z in row]
        q = [math.exp(z) / sum(map(math.exp, other)) for z in other]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

        def kl(a, b):
            return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

        total += {
            "kl": kl(p, q),
            "reverse_kl": kl(q, p),
            "js": (kl(p, m) + kl(q, m)) / 2,
            "squared_logits": sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) / len(row),
        }[kind]
    return total / len(reference)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(reference=matrices, logits=matrices)
def test_slow_twin_and_never_negative(kind, reference, logits):
    value = float(divergence(reference, logits, kind))
    assert value == pytest.approx(slow(reference, logits, kind), rel=1e-9, abs=1e-9)
    assert value >= -1e-12
    if kind == "js":
        assert value <= math.log(2) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(logits=matrices)
def test_equal_models_have_distance_0_without_gradient(kind, logits):
    student = logits.clone().requires_grad_()
    value = divergence(logits, student, kind)
    value.backward()
    assert abs(float(value.detach())) <= 1e-15
    torch.testing.assert_close(student.grad, torch.zeros_like(logits), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_only_squared_logits_feels_a_shift_of_all_logits(kind):
    reference, logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifted = divergence(reference + 3, logits - 2, kind)
    same = torch.isclose(shifted, divergence(reference, logits, kind))
    assert bool(same) == (kind != "squared_logits")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_model_only(kind):
    reference, logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference.requires_grad_()
    logits = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(reference.detach(), z, kind), (logits,))
    divergence(reference, logits, kind).backward()
    assert reference.grad is None and logits.grad.abs().sum() > 0


def test_a_misspelt_kind_is_named():
    with pytest.raises(TetherError, match="reverse_kl"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), "reverse-kl")
