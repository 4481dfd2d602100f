"""Stateless masks against a plain-integer splitmix64, and their statistics."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.adapters.r_adapter.masks import keep, keep_rows, mix, signed, stream

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)


def splitmix64(seed: int) -> int:
    """The reference generator's first output for a seed."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_known_answer_of_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert stream(0) == 0xE220A8397B1DCDAF


@given(KEYS, st.integers(0, 2**64 - 1), st.floats(0, 0.99))
def test_rows_follow_the_integer_hash(keys, word, drop):
    kept = keep_rows(torch.tensor(signed(word)), torch.tensor(keys), drop)
    expected = [splitmix64((word + key) % 2**64) >> 11 >= int(drop * 2**53) for key in keys]
    assert kept.tolist() == expected


@given(KEYS, st.randoms(use_true_random=False))
def test_order_and_split_of_rows_do_not_matter(keys, random):
    streams = torch.tensor([signed(stream(0, 3, site)) for site in range(4)])
    whole = keep_rows(streams, torch.tensor(keys), 0.4)
    order = list(range(len(keys)))
    random.shuffle(order)
    assert torch.equal(keep_rows(streams, torch.tensor(keys)[order], 0.4), whole[:, order])
    parts = [keep_rows(streams, torch.tensor(keys[rank::2], dtype=torch.long), 0.4) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[:, rank::2])


def test_share_kept_and_independence_of_sites_steps_and_seeds():
    keys = torch.arange(40_000)
    words = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    masks = keep_rows(torch.tensor([signed(stream(*w)) for w in words]), keys, 0.2).double()
    assert torch.allclose(masks.mean(1), torch.full((4,), 0.8).double(), atol=0.01)  # 5 standard errors
    correlation = torch.corrcoef(masks) - torch.eye(4)
    assert correlation.abs().max() < 0.025
    assert not torch.equal(masks[:, 1:], masks[:, :-1])


def test_no_drop_keeps_everything_and_a_batch_is_one_draw():
    assert bool(keep_rows(torch.tensor(signed(stream(5))), torch.arange(1000), 0.0).all())
    draws = [keep(0.2, 0, step, 3) for step in range(20_000)]
    assert abs(sum(draws) / len(draws) - 0.8) < 0.015
    assert all(keep(0.0, step) for step in range(100))
