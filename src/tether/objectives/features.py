"""Where two sets of embeddings lie on the sphere: alignment of pairs, uniformity of sets. Metrics,
differentiable.

Alignment and uniformity: Wang and Isola, ICML 2020. The relative alignment and the uniformity across two
sets are those of geodesic multi-modal mixup (arXiv 2203.03897). Use them to see whether fine-tuning pulls
pairs together (alignment) or collapses the space (uniformity). All work tile by tile and take test sets of
any size.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError
from tether.objectives._precision import full_precision

_TILE = 1024


@full_precision
def alignment(
    x: Float[Tensor, "pairs dim"], y: Float[Tensor, "pairs dim"], power: float = 2.0
) -> Float[Tensor, ""]:
    """Mean over pairs of ‖x_i − y_i‖^power; 0 is perfect. Identical pairs have gradient 0, whatever the power."""
    squared = (x - y).square().sum(-1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).pow(power / 2), 0.0).mean()


@full_precision
def relative_alignment(
    anchor: Float[Tensor, "pairs dim"], other: Float[Tensor, "pairs dim"]
) -> Float[Tensor, ""]:
    """Mean over pairs of ‖a_i − o_i‖² − min over k≠i of ‖a_i − o_k‖²; lower is better, below 0 is retrieved.

    The published code takes the texts as anchors; the paper takes the pictures and the opposite sign.

    Raises:
        TetherError: fewer than two pairs.
    """
    _require_two(anchor)
    nearest: dict[int, Tensor] = {}
    for row, column, squared in _squared_distances(anchor, other):
        lowest = squared.masked_fill(_offset(row, column, squared) == 0, torch.inf).amin(1)
        nearest[row] = torch.minimum(nearest[row], lowest) if row in nearest else lowest
    return ((anchor - other).square().sum(-1) - torch.cat(list(nearest.values()))).mean()


@full_precision
def uniformity(x: Float[Tensor, "rows dim"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean over unordered pairs i<j of exp(−t‖x_i − x_j‖²); lower is more uniform.

    For pictures and texts together give `torch.cat([image, text])`.

    Raises:
        TetherError: fewer than two rows.
    """
    _require_two(x)
    sums = []
    for row, column, squared in _squared_distances(x[:-1], x):  # the last row has no partner after it
        earlier = _offset(row, column, squared) <= 0
        if not earlier.all():
            sums.append(torch.logsumexp((-t * squared).masked_fill(earlier, -torch.inf).flatten(), 0))
    return torch.logsumexp(torch.stack(sums), 0) - math.log(len(x) * (len(x) - 1) / 2)


@full_precision
def cross_uniformity(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"], t: float = 2.0
) -> Float[Tensor, ""]:
    """−log of the mean over all i, j of exp(−t‖x_i − y_j‖²); higher is more uniform."""
    sums = [torch.logsumexp((-t * squared).flatten(), 0) for *_, squared in _squared_distances(x, y)]
    return math.log(len(x) * len(y)) - torch.logsumexp(torch.stack(sums), 0)


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, first column, ‖x_i − y_j‖²) of every tile."""
    for row in range(0, len(x), _TILE):
        rows = x[row : row + _TILE]
        for column in range(0, len(y), _TILE):
            columns = y[column : column + _TILE]
            lengths = rows.square().sum(-1)[:, None] + columns.square().sum(-1)
            yield row, column, (lengths - 2 * rows @ columns.T).clamp(min=0)


def _offset(row: int, column: int, squared: Tensor) -> Tensor:
    """Column minus row of every entry of a tile."""
    rows, columns = (torch.arange(size, device=squared.device) for size in squared.shape)
    return (column + columns) - (row + rows)[:, None]


def _require_two(x: Tensor) -> None:
    if len(x) < 2:
        raise TetherError(
            f"This metric compares pairs of different rows and needs at least 2; there are {len(x)}."
        )
