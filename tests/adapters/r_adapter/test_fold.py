"""Folding during training: values, and gradients of inputs, factors and scale, against the naive form."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tether.adapters.r_adapter.drop import KeepAll
from tether.adapters.r_adapter.fold import (
    NORM_LIMIT,
    FoldedRAdapter,
    SkippedRAdapter,
    break_even,
    fold_in,
    safe_to_fold,
    self_attention,
    skip,
)
from tether.adapters.r_adapter.module import AdaptedAttention, RAdapter

from .test_drop import KEEP, drop_rows


def naive(y, adapter, keep=None):
    """The formula, spelled out: y + (γ / (1 − p)) s A y for each row."""
    a = adapter.weight if adapter.weight is not None else adapter.up @ adapter.down
    s = 1.0 if adapter.scale is None else adapter.scale
    gamma = torch.ones(y.shape[0]) if keep is None else torch.tensor(keep)
    return y + adapter.gain * s * gamma.to(y).view(-1, *[1] * (y.dim() - 1)) * (y @ a.T)


def trained(width: int, rank: int | None, scale: float | None, size: float = 0.3) -> RAdapter:
    """An adapter away from its initial values, with ‖k A‖ = size."""
    adapter = RAdapter(width, rank, scale).double()
    with torch.no_grad():
        for factor in adapter.factors:
            factor.normal_()
        a = adapter.factors[0] if rank is None else adapter.factors[0] @ adapter.factors[1]
        adapter.factors[0].mul_(size / (torch.linalg.matrix_norm(a, 2) * (scale or 1.0)))
    return adapter


def gradients(function, x, adapter):
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    (y.tanh() * weights).sum().backward()
    result = [y.detach(), x.grad, *(p.grad.clone() for p in adapter.parameters())]
    adapter.zero_grad()
    return result


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_the_naive_form(rank, scale, keep, bias):
    adapter, linear = trained(6, rank, scale), nn.Linear(9, 6, bias=bias).double().requires_grad_(False)
    adapter.gain = 1.25
    x = torch.randn(5, 4, 9, dtype=torch.float64)
    expected = gradients(lambda x: naive(linear(x), adapter, keep), x, adapter)
    adapter.drop = KeepAll() if keep is None else drop_rows(keep)
    plain = gradients(lambda x: adapter.linear(x, linear.weight, linear.bias), x, adapter)
    fold_in(adapter, step=0, fold_from=1)
    folded = gradients(lambda x: adapter.linear(x, linear.weight, linear.bias), x, adapter)
    assert len(folded) == len(expected) == 2 + len(list(adapter.parameters()))
    for value, other, wanted in zip(plain, folded, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-10, atol=1e-12)
        assert torch.allclose(other, wanted, rtol=1e-9, atol=1e-10)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6), st.floats(0, 0.75))
@settings(deadline=None, max_examples=40)
def test_equal_for_all_shapes_and_strengths(width, inputs, rank, seed, size):
    torch.manual_seed(seed)
    adapter = trained(width, None if rank >= width else rank, 0.1, size)
    linear = nn.Linear(inputs, width).double().requires_grad_(False)
    x = torch.randn(3, inputs, dtype=torch.float64)
    expected = gradients(lambda x: naive(linear(x), adapter), x, adapter)
    fold_in(adapter, step=0, fold_from=1)
    found = gradients(lambda x: adapter.linear(x, linear.weight, linear.bias), x, adapter)
    for value, wanted in zip(found, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-8, atol=1e-8)


def test_fp32_stays_within_rounding():
    adapter, linear = trained(48, None, 0.1).float(), nn.Linear(96, 48).requires_grad_(False)
    x = torch.randn(8, 20, 96)
    expected = gradients(lambda x: naive(linear(x), adapter), x, adapter)
    fold_in(adapter, step=0, fold_from=1)
    found = gradients(lambda x: adapter.linear(x, linear.weight, linear.bias), x, adapter)
    for value, wanted in zip(found, expected, strict=True):
        assert (value - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("rank", [None, 4])
def test_bf16_autocast_is_as_close_as_the_naive_form(rank):
    adapter, linear = trained(32, rank, 0.1).float(), nn.Linear(64, 32).requires_grad_(False)
    x = torch.randn(16, 10, 64)
    exact = gradients(lambda x: naive(linear(x), adapter), x, adapter)

    def autocast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return adapter.linear(x, linear.weight, linear.bias).float()

    plain = gradients(autocast, x, adapter)
    fold_in(adapter, step=0, fold_from=1)
    folded = gradients(autocast, x, adapter)
    assert adapter.cache[1][0].dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    for naive_bf16, value, wanted in zip(plain, folded, exact, strict=True):
        error = (naive_bf16 - wanted).norm() / wanted.norm()
        assert (value - wanted).norm() / wanted.norm() < max(3 * error, 0.02)
        assert (value - wanted).norm() / wanted.norm() < 0.05


def test_only_the_output_is_kept_for_the_backward_pass():
    adapter, linear = trained(4, None, 0.1).float(), nn.Linear(16, 4).requires_grad_(False)
    x = torch.randn(50, 7, 16, requires_grad=True)

    def saved() -> list[int]:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            adapter.linear(x, linear.weight, linear.bias)
        return [size for size in sizes if size >= 50 * 7]

    assert saved() == 2 * [50 * 7 * 4]  # what A and what s is multiplied with
    fold_in(adapter, step=0, fold_from=1)
    assert saved() == [50 * 7 * 4]


def test_few_tokens_take_the_plain_path():
    adapter, linear = trained(6, None, 0.1).float(), nn.Linear(9, 6).requires_grad_(False)
    fold_in(adapter, step=0, fold_from=20)
    x = torch.randn(19, 9)
    assert torch.equal(adapter.linear(x, linear.weight, linear.bias), adapter(linear(x)))
    assert adapter.cache is None
    adapter.linear(torch.randn(20, 9), linear.weight, linear.bias)
    assert adapter.cache is not None


def test_folded_weight_is_made_once_per_step_and_never_stale():
    adapter, linear = trained(6, None, 0.1).float(), nn.Linear(9, 6).requires_grad_(False)
    x = torch.randn(5, 9)
    fold_in(adapter, step=0, fold_from=1)
    adapter.linear(x, linear.weight, linear.bias)
    first = adapter.cache[1][0]
    fold_in(adapter, step=0, fold_from=1)  # another part of the same step's batch
    adapter.linear(x, linear.weight, linear.bias)
    assert adapter.cache[1][0] is first
    with torch.no_grad():
        adapter.weight.add_(1e-2)  # an optimizer's step
    assert torch.allclose(adapter.linear(x, linear.weight, linear.bias), naive(linear(x), adapter), atol=1e-5)
    adapter.weight.data.mul_(2)  # one that hides from autograd
    fold_in(adapter, step=1, fold_from=1)
    assert torch.allclose(adapter.linear(x, linear.weight, linear.bias), naive(linear(x), adapter), atol=1e-5)


def test_skipped_adapter_does_no_work_but_has_gradients_of_zero():
    adapter, linear = trained(6, 2, 0.1).float(), nn.Linear(9, 6).requires_grad_(False)
    skip(adapter)
    assert type(adapter) is SkippedRAdapter
    x = torch.randn(5, 9, requires_grad=True)
    y = adapter.linear(x, linear.weight, linear.bias)
    assert torch.equal(y, linear(x))
    y.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in adapter.parameters())
    assert torch.allclose(x.grad, linear.weight.sum(0).expand(5, 9))
    adapter.eval()
    assert type(adapter) is RAdapter


@pytest.mark.parametrize("rank", [None, 3])
def test_guard_lets_through_only_what_is_provably_well_conditioned(rank):
    sizes = [0.0, 0.05, 0.3, 0.79, 0.81, 1.0, 50.0]
    adapters = [trained(40, rank, 0.1, size) for size in sizes]
    safe = safe_to_fold(adapters)
    assert safe[:3] == [True] * 3 and safe[4:] == [False] * 3
    for adapter, is_safe in zip(adapters, safe, strict=True):
        a = adapter.factors[0] if rank is None else adapter.factors[0] @ adapter.factors[1]
        m = torch.eye(40) + (adapter.strength * a).detach()
        if is_safe:
            assert torch.linalg.cond(m) < (1 + NORM_LIMIT) / (1 - NORM_LIMIT) + 1e-9
    broken = trained(40, rank, 0.1)
    broken.factors[0].data.fill_(float("nan"))
    assert safe_to_fold([broken]) == [False]
    assert safe_to_fold([]) == []


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_noise_like_adapters_pass_far_beyond_the_frobenius_bound(seed):
    torch.manual_seed(seed)
    adapter = trained(64, None, None, size=0.3)
    assert torch.linalg.matrix_norm(adapter.weight) > NORM_LIMIT
    assert safe_to_fold([adapter]) == [True]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "float", "bool", "per head"])
def test_fused_attention_is_folded_too(batch_first, mask):
    owner = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().requires_grad_(False)
    nn.init.normal_(owner.in_proj_bias)
    nn.init.normal_(owner.out_proj.bias)
    adapter = trained(8, None, 0.1)
    owner.r_adapter, owner.__class__ = adapter, AdaptedAttention
    x = torch.randn((5, 4, 8) if batch_first else (4, 5, 8), dtype=torch.float64)
    causal = torch.ones(4, 4).triu(1).bool()
    masks = {
        None: None,
        "float": torch.zeros(4, 4, dtype=torch.float64).masked_fill(causal, float("-inf")),
        "bool": causal,
        "per head": causal.expand(10, 4, 4),
    }
    adapter.drop = drop_rows(KEEP, dim=0 if batch_first else 1)

    def attend(x):
        return owner(x, x, x, need_weights=False, attn_mask=masks[mask])[0]

    expected = gradients(attend, x, adapter)
    fold_in(adapter, step=0, fold_from=1)
    found = gradients(attend, x, adapter)
    assert adapter.cache is not None
    for value, wanted in zip(found, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-10)


def test_attention_that_is_not_plain_self_attention_is_left_to_torch():
    owner = nn.MultiheadAttention(8, 2, batch_first=True).requires_grad_(False)
    x, other = torch.randn(5, 4, 8), torch.randn(5, 3, 8)
    expected, weights = owner(x, other, other)
    adapter = RAdapter(8, None, 0.1)
    owner.r_adapter, owner.__class__ = adapter, AdaptedAttention
    fold_in(adapter, step=0, fold_from=1)
    found, found_weights = owner(x, other, other)
    assert torch.equal(found, expected) and torch.equal(found_weights, weights)
    assert adapter.cache is None
    padding = torch.zeros(5, 4, dtype=torch.bool)
    padding[:, -1] = True
    owner(x, x, x, key_padding_mask=padding, need_weights=False)
    assert adapter.cache is None


def test_own_attention_equals_torch():
    owner = nn.MultiheadAttention(16, 2, batch_first=True).train()
    x = torch.randn(3, 10, 16)
    context = self_attention(owner, x, None)
    assert torch.allclose(owner.out_proj(context), owner(x, x, x, need_weights=False)[0], atol=1e-6)


def test_break_even_counts_operations():
    """Twice the number of tokens at which saved and added multiply-adds are equal."""
    d, i, r = 768, 3072, 16
    tokens = break_even(d, i, None) / 2
    assert 2 * d**2 * tokens == pytest.approx(d**2 * i + 4 / 3 * d**3, rel=1e-3)
    assert 2 * d * r * break_even(d, i, r) / 2 == 2 * d * r * i
    assert break_even(d, i, None) < 25 * 197  # 25 pictures of ViT-B/16


def test_a_copy_folds_its_own_weights():
    adapter, linear = trained(6, None, 0.1).float(), nn.Linear(9, 6).requires_grad_(False)
    x = torch.randn(5, 9)
    fold_in(adapter, step=0, fold_from=1)
    adapter.linear(x, linear.weight, linear.bias)
    twin = copy.deepcopy(adapter)
    with torch.no_grad():
        twin.weight.mul_(0)
    assert isinstance(twin, FoldedRAdapter)
    assert torch.allclose(twin.linear(x, linear.weight, linear.bias), linear(x), atol=1e-6)
