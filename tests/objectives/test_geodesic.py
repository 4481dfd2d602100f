import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tether.objectives.geodesic import geodesic_mix, l_mix, m2_mix, v_mix, vl_mix

GOLDEN = json.loads((Path(__file__).parent / "golden_geodesic.json").read_text())
LOSSES = [m2_mix, v_mix, l_mix, vl_mix]


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def slow_paired(rows, columns, own, reversed_, tau):
    """Both directions of a soft cross-entropy, term by term, with n−1−i as the other partner of i."""
    n, total = len(rows), 0.0
    for side_a, side_b in ((rows, columns), (columns, rows)):
        for i in range(n):
            log_p = torch.log_softmax(torch.stack([side_a[i] @ side_b[j] for j in range(n)]) / tau, 0)
            total -= (own * log_p[i] + reversed_ * log_p[n - 1 - i]) / n
    return total / 2


@pytest.mark.parametrize("name", ["m2", "v", "l", "vl"])
def test_golden_scalars_of_the_printed_formulas(name):
    image, text = (torch.tensor(GOLDEN[side], dtype=torch.float64) for side in ("image", "text"))
    loss = {"m2": m2_mix, "v": v_mix, "l": l_mix, "vl": vl_mix}[name]
    temperature = GOLDEN["m2_temperature" if name == "m2" else "temperature"]
    assert float(loss(image, text, GOLDEN["share"], temperature)) == pytest.approx(GOLDEN[name], abs=1e-9)


def test_midpoint_of_two_axes():
    a, b = torch.eye(2, dtype=torch.float64)
    mixed = geodesic_mix(a[None], b[None], 0.5)
    assert torch.allclose(mixed, torch.full((1, 2), math.sqrt(0.5), dtype=torch.float64), rtol=0, atol=1e-15)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
    bend=npst.arrays("float64", 5, elements=st.floats(-1, 1)),
    near=st.sampled_from([0.0, 1e-9, 1e-5, 3e-3, 0.1, 1.0]),
    sign=st.sampled_from([1, -1]),
)
def test_mix_lies_on_the_sphere_between_its_ends_at_every_distance(seed, share, bend, near, sign):
    a = unit(1, 5, seed=seed)
    b = F.normalize(sign * a + near * torch.from_numpy(bend), dim=-1)
    mixed = geodesic_mix(a, b, share)
    assert float(mixed.norm()) == pytest.approx(1, abs=3e-6)  # the expansion at small angles is good to this
    angle = math.acos(max(-1.0, min(1.0, float(a @ b.T))))
    travelled = math.acos(max(-1.0, min(1.0, float(mixed @ b.T))))
    assert travelled == pytest.approx(share * angle, abs=1e-2)  # opposite ends are 0.0045 wide


def test_share_is_the_weight_on_the_first_argument():
    a, b = unit(3, 4, seed=1), unit(3, 4, seed=2)
    torch.testing.assert_close(geodesic_mix(a, b, 1.0), a, rtol=0, atol=1e-15)
    torch.testing.assert_close(geodesic_mix(a, b, 0.0), b, rtol=0, atol=1e-15)
    torch.testing.assert_close(geodesic_mix(a, b, 0.2), geodesic_mix(b, a, 0.8))


def test_share_per_row():
    a, b = unit(3, 4, seed=1), unit(3, 4, seed=2)
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    rows = [geodesic_mix(a[i : i + 1], b[i : i + 1], float(shares[i])) for i in range(3)]
    torch.testing.assert_close(geodesic_mix(a, b, shares), torch.cat(rows))


def test_expansion_meets_the_closed_formula_at_the_threshold():
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for cosine in (1 - 1.01e-5, 1 - 0.99e-5):
        b = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
        angle = 0.3 * math.acos(cosine)
        exact = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        torch.testing.assert_close(geodesic_mix(a, b, 0.7), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_identical_and_opposite_rows_are_finite_with_their_gradient(dtype, sign):
    a = unit(200, 512, dtype=torch.float32).to(dtype).requires_grad_()
    b = (sign * a.detach()).requires_grad_()
    mixed = geodesic_mix(a, b, 0.5)
    mixed.square().sum().backward()
    assert mixed.dtype == torch.float32
    assert (mixed.norm(dim=-1) - 1).abs().max() < 2e-2  # the rounding of bfloat16 itself
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
    if sign == 1:
        torch.testing.assert_close(mixed, a.detach().float(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    image, text = unit(5, 4, seed=3).requires_grad_(), unit(5, 4, seed=4).requires_grad_()
    # Odd: the middle row is mixed with itself, where the weights follow their expansion.
    assert torch.autograd.gradcheck(lambda i, t: loss(i, t, 0.3, 0.5), (image, text), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing_but_the_rounding_of_the_inputs(loss, dtype):
    image, text = unit(6, 8, seed=5).to(dtype), unit(6, 8, seed=6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(image, text, 0.4)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(image.float(), text.float(), 0.4), rtol=0, atol=0)
    torch.testing.assert_close(half.double(), loss(image.double(), text.double(), 0.4), rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(n=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_slow_twins(n, share, seed):
    image, text = unit(n, 3, seed=seed), unit(n, 3, seed=seed + 1)
    mixed_image, mixed_text = (
        geodesic_mix(image, image.flip(0), share),
        geodesic_mix(text, text.flip(0), share),
    )
    soft = (share, 1 - share, 0.1)
    for fast, slow in (
        (v_mix(image, text, share, 0.1), slow_paired(mixed_image, text, *soft)),
        (l_mix(image, text, share, 0.1), slow_paired(image, mixed_text, *soft)),
        (vl_mix(image, text, share, 0.1), slow_paired(mixed_image, mixed_text, 1, 1, 0.1)),
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)

    between, total = geodesic_mix(image, text, share), 0.0
    for anchors in (image, text):
        for i in range(n):
            row = [anchors[i] @ between[j] / 0.1 for j in range(n)]
            row[i] = image[i] @ text[i] / 0.1
            total -= torch.log_softmax(torch.stack(row), 0)[i] / n
    torch.testing.assert_close(m2_mix(image, text, share, 0.1), total, rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(order=st.permutations(range(5)), share=st.floats(0, 1))
def test_m2_mix_does_not_depend_on_the_order_of_the_pairs(order, share):
    image, text = unit(5, 4, seed=7), unit(5, 4, seed=8)
    torch.testing.assert_close(m2_mix(image[order], text[order], share), m2_mix(image, text, share))


@pytest.mark.parametrize("loss", [v_mix, l_mix, vl_mix])
def test_reversing_the_batch_changes_nothing(loss):
    image, text = unit(6, 4, seed=7), unit(6, 4, seed=8)
    torch.testing.assert_close(loss(image.flip(0), text.flip(0), 0.3), loss(image, text, 0.3))


def test_mixing_with_share_1_is_the_unmixed_contrastive_loss():
    image, text = unit(6, 4, seed=7), unit(6, 4, seed=8)
    logits, target = image @ text.T / 0.1, torch.arange(6)
    contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    for loss in (v_mix, l_mix):
        torch.testing.assert_close(loss(image, text, 1.0, 0.1), contrastive)


def test_published_choices_and_their_options_differ_as_named():
    image, text = unit(4, 3, seed=1), unit(4, 3, seed=2)
    summed = m2_mix(image, text, 0.3)
    torch.testing.assert_close(m2_mix(image, text, 0.3, halve=True), summed / 2)
    counted_twice = vl_mix(image, text, 0.3)
    torch.testing.assert_close(vl_mix(image, text, 0.3, normalise_target=True), counted_twice / 2)
    same = m2_mix(image, text, 0.3, negative_temperature=0.07)
    torch.testing.assert_close(same, summed)
    assert m2_mix(image, text, 0.3, negative_temperature=0.7) != summed


@pytest.mark.parametrize("n", [4, 5])
def test_original_negatives_mixes_the_two_diagonals_only(n):
    image, text = unit(n, 3, seed=1), unit(n, 3, seed=2)
    mixed = geodesic_mix(image, image.flip(0), 0.3)
    similarity = image @ text.T
    for i in range(n):
        for j in {i, n - 1 - i}:
            similarity[i, j] = mixed[i] @ text[j]
    target = 0.3 * torch.eye(n).double() + 0.7 * torch.eye(n).double().flip(0)
    logits = similarity / 0.01
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T)) / 2
    torch.testing.assert_close(v_mix(image, text, 0.3, original_negatives=True), expected)
    assert v_mix(image, text, 0.3) != expected
