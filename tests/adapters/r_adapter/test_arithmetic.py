"""Adapter arithmetic: averages and sums of what is merged."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.adapters import (
    Adapter,
    RAdapterConfig,
    add,
    attach,
    average,
    combine,
    load_adapter,
    matrices,
    save_adapter,
)
from tether.adapters.files import apply
from tether.errors import TetherError

from ..models import features, open_clip_model


def adapter(seed: int, rank: int | None, d: int = 16, scale: float | None = 0.1, **options) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for path in ("a", "b.c"):
        names = {"weight": (d, d)} if rank is None else {"up": (d, rank), "down": (rank, d)}
        for name, shape in names.items():
            state[f"{path}.r_adapter.{name}"] = torch.randn(shape, generator=generator)
        if scale is not None:
            state[f"{path}.r_adapter.scale"] = torch.tensor(scale + 0.01 * seed)
    values = {
        "config": RAdapterConfig(rank=rank, scale=scale),
        "state": state,
        "fingerprint": "f" * 64,
    } | options
    return Adapter(**values)


KINDS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([None, 1, 3]), st.sampled_from([None, 0.1])),
    min_size=1,
    max_size=4,
)


@given(KINDS, st.lists(st.floats(-2, 2), min_size=4, max_size=4))
@settings(deadline=None)
def test_matrices_add_up_whatever_the_ranks(kinds, weights):
    adapters = [adapter(seed, rank, scale=scale) for seed, rank, scale in kinds]
    weights = weights[: len(adapters)]
    result = matrices(combine(adapters, weights).state)
    for path, matrix in result.items():
        expected = sum(w * matrices(a.state)[path] for w, a in zip(weights, adapters, strict=True))
        assert torch.allclose(matrix, expected, atol=1e-4)


def test_low_ranks_stay_low_while_that_is_smaller():
    pair = [adapter(0, 2), adapter(1, 3)]
    assert average(pair).state["a.r_adapter.down"].shape == (5, 16)
    assert average(pair).config.rank == {"a": 5, "b.c": 5}
    assert "a.r_adapter.weight" in average([*pair, adapter(2, 3)]).state
    averaged_factors = (pair[0].state["a.r_adapter.up"] + adapter(1, 2).state["a.r_adapter.up"]) / 2
    assert averaged_factors.shape == (16, 2)  # what an average of factors would be, and is not


@torch.no_grad()
def test_the_merge_of_the_average_is_the_average_of_the_merges(tmp_path):
    deltas, adapters = [], []
    for seed, rank in ((0, 3), (1, None)):
        attached = attach(open_clip_model(), RAdapterConfig(rank=rank))
        generator = torch.Generator().manual_seed(seed)
        for parameter in attached.named_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        deltas.append(attached.delta())
        save_adapter(tmp_path / str(seed), attached, alpha=0.5)
        adapters.append(load_adapter(tmp_path / str(seed)))
    for combined, factor in ((average(adapters), 0.5), (add(adapters), 1.0)):
        model = open_clip_model()
        attached = apply(model, combined)
        assert combined.alpha == 0.5
        for name, delta in attached.delta().items():
            assert torch.allclose(delta, factor * (deltas[0][name] + deltas[1][name]), atol=1e-5)
        assert attached.merge(1.0, probe=lambda model=model: features(model)).max_error < 1e-4
    opposite = combine([adapters[0], adapters[0]], [1.0, -1.0])
    assert all(matrix.abs().max() < 1e-6 for matrix in matrices(opposite.state).values())


def test_what_does_not_belong_together_is_refused():
    one = adapter(0, 2)
    with pytest.raises(TetherError, match="different bases"):
        average([one, adapter(1, 2, fingerprint="e" * 64)])
    fewer = dataclasses.replace(one, state={k: v for k, v in one.state.items() if k.startswith("a.")})
    with pytest.raises(TetherError, match=r"different sites cannot be combined: b\.c"):
        average([one, fewer])
    with pytest.raises(TetherError, match="different widths, 16 and 8"):
        average([one, adapter(1, 2, d=8)])
    with pytest.raises(TetherError, match="different alphas"):
        average([one, adapter(1, 2, alpha=0.5)])
    assert average([one, adapter(1, 2, alpha=0.5)], alpha=0.7).alpha == 0.7
    with pytest.raises(TetherError, match="as many weights"):
        combine([one], [1.0, 2.0])
    with pytest.raises(TetherError, match="got 0"):
        average([])


def test_what_was_trained_beside_adapters_is_not_combined():
    head = {"head.weight": torch.ones(3, 16)}
    first, second = adapter(0, None, unfrozen=head), adapter(1, None)
    with pytest.raises(
        TetherError, match=r"head\.weight was trained beside an adapter, and only adapters can be combined"
    ):
        average([second, first])
    assert average([first], alpha=1.0).unfrozen is head
