"""Post-hoc rank: best approximation, sizes, and the smallest rank within a tolerance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.adapters import (
    Factored,
    RAdapterConfig,
    apply,
    at_rank,
    attach,
    load_adapter,
    matrices,
    save_adapter,
    size_in_bytes,
    smallest_within,
)
from tether.errors import TetherError

from ..models import features, open_clip_model
from .test_method import disturb


def state_of(*singular_values: list[float], scale: float = 0.1) -> dict[str, torch.Tensor]:
    """Full-rank adapters with given singular values of s · F."""
    state = {}
    for index, values in enumerate(singular_values):
        d = len(values)
        left, right = (torch.linalg.qr(torch.randn(d, d))[0] for _ in range(2))
        state[f"{index}.r_adapter.weight"] = left @ torch.diag(torch.tensor(values)) @ right / scale
        state[f"{index}.r_adapter.scale"] = torch.tensor(scale)
    return state


@given(st.lists(st.floats(0.01, 5), min_size=3, max_size=10), st.integers(1, 12), st.integers(0, 1000))
@settings(deadline=None)
def test_the_error_is_the_next_singular_value(values, rank, seed):
    torch.manual_seed(seed)
    state = state_of(values)
    cut = Factored(state).at_rank(rank)
    error = torch.linalg.matrix_norm(matrices(state)["0"] - matrices(cut)["0"], 2)
    kept_whole = 2 * rank >= len(values)
    expected = 0.0 if kept_whole else sorted(values, reverse=True)[rank]
    assert abs(float(error) - expected) < 1e-4 * max(values)
    assert ("0.r_adapter.weight" in cut) == kept_whole
    assert "0.r_adapter.scale" not in cut


def low_rank(d, rank):
    return {"0.r_adapter.up": torch.randn(d, rank), "0.r_adapter.down": torch.randn(rank, d)}


def test_no_rank_above_its_own_makes_an_adapter_larger():
    state = low_rank(20, 3)
    factored = Factored(state)
    assert factored.rank == 3
    assert (
        size_in_bytes(factored.at_rank(9)) == size_in_bytes(factored.at_energy(1.0)) == size_in_bytes(state)
    )
    tried = []
    chosen, results = smallest_within(
        factored, [1, 2, 3, 4, 9], lambda own: tried.append(own) or len(tried), 0.5
    )
    assert [(result.rank, result.bytes) for result in results] == [(1, 160), (2, 320), (3, 480)]
    assert size_in_bytes(chosen) == size_in_bytes(state)
    assert torch.allclose(matrices(chosen)["0"], matrices(state)["0"], atol=1e-5)
    with pytest.raises(TetherError, match="has rank 3, and none of the ranks to try is smaller"):
        smallest_within(Factored(state), [3, 8], lambda own: 0.0, 0.0)


def test_factors_share_the_singular_values():
    cut = Factored(state_of([4.0, 1.0, 0.5, 0.2, 0.1, 0.1])).at_rank(2)
    up, down = cut["0.r_adapter.up"], cut["0.r_adapter.down"]
    assert torch.allclose(up.norm(dim=0), torch.tensor([2.0, 1.0]), atol=1e-5)
    assert torch.allclose(down.norm(dim=1), torch.tensor([2.0, 1.0]), atol=1e-5)


def test_energy_picks_a_rank_per_adapter():
    state = state_of([3.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [1.0] * 8)
    factored = Factored(state)
    cut = factored.at_energy(0.85)
    assert cut["0.r_adapter.down"].shape == (1, 8)
    assert "1.r_adapter.weight" in cut  # seven of eight directions
    assert factored.at_energy(0.95)["0.r_adapter.down"].shape == (2, 8)
    for path, matrix in matrices(factored.at_energy(1.0)).items():
        assert torch.allclose(matrix, matrices(state)[path], atol=1e-5)
    with pytest.raises(TetherError, match="share"):
        factored.at_energy(0.0)


def test_smallest_rank_within_the_tolerance():
    state = state_of([2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01])
    target = matrices(state)["0"]
    asked = []

    def score(candidate):
        asked.append(candidate)
        return -float(torch.linalg.matrix_norm(matrices(candidate)["0"] - target, 2))

    chosen, results = smallest_within(Factored(state), [4, 1, 2, 3, 50], score, tolerance=0.3)
    assert chosen["0.r_adapter.down"].shape == (3, 10)
    assert [result.rank for result in results] == [1, 2, 3, 4, 10]
    assert [result.bytes for result in results] == [80, 160, 240, 320, 400]
    assert [round(-result.score, 3) for result in results] == [1.0, 0.5, 0.25, 0.1, 0.0]
    assert len(asked) == 5
    chosen, _ = smallest_within(Factored(state), [1, 2], score, tolerance=0.0)
    assert torch.allclose(chosen["0.r_adapter.weight"], target, atol=1e-6)
    for ranks, tolerance, message in (
        ([], 0.1, r"has rank 10, and none of the ranks to try is smaller: \[\]"),
        ([1], -1.0, r"tolerance is a finite number from 0, not -1\.0"),
        ([0], 0.1, "rank is at least 1, not 0"),
        ([1], float("nan"), "tolerance is a finite number from 0, not nan"),
    ):
        with pytest.raises(TetherError, match=message):
            smallest_within(Factored(state), ranks, score, tolerance)


@torch.no_grad()
def test_a_cut_adapter_is_a_file_like_any_other(tmp_path):
    attached = attach(open_clip_model(), RAdapterConfig())
    disturb(attached, 0.02)
    save_adapter(tmp_path / "full", attached, alpha=0.5)
    full = load_adapter(tmp_path / "full")
    small = at_rank(full, 3)
    assert size_in_bytes(small.state) < 0.5 * size_in_bytes(full.state)
    save_adapter(tmp_path / "small", small)
    model = open_clip_model()
    again = apply(model, tmp_path / "small")
    assert {len(tensor) for name, tensor in again.state_dict().items() if name.endswith("down")} == {3}
    report = again.merge(0.5, probe=lambda: features(model))
    assert report.max_error < 1e-5
    delta, cut = attached.delta(), again.delta()
    assert any((delta[name] - cut[name]).abs().max() > 1e-4 for name in delta)
    whole = Factored(full.state).at_rank(24)
    for name, tensor in attached.delta(whole).items():
        assert torch.allclose(tensor, delta[name], atol=1e-6)


def test_only_r_adapters_have_a_rank():
    with pytest.raises(TetherError, match="not a tensor of an R-Adapter"):
        Factored({"visual.proj": torch.zeros(3, 3)})
    with pytest.raises(TetherError, match="at least 1"):
        Factored(state_of([1.0, 2.0])).at_rank(0)
