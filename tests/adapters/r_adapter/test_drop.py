"""Adapter drop: shapes of the masks per granularity, expectation, and splitting rows."""

import pytest
import torch

from tether.adapters.r_adapter.drop import DropRows, DropTokens, KeepAll
from tether.adapters.r_adapter.masks import keep_rows, signed, stream
from tether.errors import TetherError


def drop_rows(keep: list[bool], dim: int = 0, windows: bool = False) -> DropRows:
    mask = torch.tensor(keep)
    order = torch.argsort(mask.int(), descending=True, stable=True)
    return DropRows(mask, order, torch.argsort(order), sum(keep), dim=dim, windows=windows)


KEEP = [True, False, True, True, False]


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 3), (5, 2, 4, 3)])
def test_rows_of_any_layout(shape):
    branch = torch.randn(shape)
    result = drop_rows(KEEP)(branch)
    for row, kept in enumerate(KEEP):
        assert torch.equal(result[row], branch[row] * kept)


def test_tokens_first():
    branch = torch.randn(7, 5, 3)
    result = drop_rows(KEEP, dim=1)(branch)
    for row, kept in enumerate(KEEP):
        assert torch.equal(result[:, row], branch[:, row] * kept)


def test_windows_of_a_row_share_its_mask():
    branch = torch.randn(10, 4, 3)
    result = drop_rows(KEEP, windows=True)(branch)
    for row, kept in enumerate(KEEP):
        assert torch.equal(result[2 * row : 2 * row + 2], branch[2 * row : 2 * row + 2] * kept)


@pytest.mark.parametrize(("dim", "shape"), [(0, (5, 7, 3)), (0, (5, 3)), (1, (7, 5, 3)), (0, (5, 2, 2, 3))])
def test_split_calls_each_function_with_its_rows_only(dim, shape):
    x = torch.randn(shape)
    seen = []

    def kept(rows):
        seen.append(rows.shape[dim])
        return torch.cat([rows, rows], -1)

    result = drop_rows(KEEP, dim=dim).split(x, kept, lambda rows: -torch.cat([rows, rows], -1))
    sign = torch.tensor([1.0 if keep else -1.0 for keep in KEEP]).view(
        [-1 if d == dim else 1 for d in range(x.dim())]
    )
    assert seen == [3]
    assert torch.equal(result, torch.cat([x, x], -1) * sign)


def test_wrong_number_of_rows_says_what_to_do():
    with pytest.raises(TetherError, match="keys for 5 rows, but the tower now got 6"):
        drop_rows(KEEP)(torch.randn(6, 2, 3))


def test_token_positions_share_one_mask_over_the_batch():
    drop = DropTokens(signed(stream(0, 1, 2)), 0.5, dim=0)
    mask = keep_rows(torch.tensor(drop.stream), torch.arange(64), 0.5).float()
    assert 0 < mask.sum() < 64
    assert torch.equal(drop(torch.ones(4, 64, 3)), mask[None, :, None].expand(4, 64, 3))
    assert torch.equal(drop(torch.ones(4, 8, 8, 3)), mask.view(1, 8, 8, 1).expand(4, 8, 8, 3))
    first = DropTokens(drop.stream, 0.5, dim=1)
    assert torch.equal(first(torch.ones(64, 4, 3)), mask[:, None, None].expand(64, 4, 3))
    assert torch.equal(drop(torch.ones(4, 20, 3)), drop(torch.ones(4, 64, 3))[:, :20])  # whatever comes after


def test_nothing_dropped():
    x = torch.randn(2, 3)
    assert KeepAll()(x) is x
    assert torch.equal(KeepAll().split(x, torch.neg, torch.abs), -x)
