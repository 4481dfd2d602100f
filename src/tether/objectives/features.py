"""Where two sets of embeddings lie on the sphere: alignment of pairs, uniformity of sets. Metrics,
differentiable.

Alignment and uniformity: Wang and Isola, ICML 2020. The relative alignment and the uniformity across two
sets are those of geodesic multi-modal mixup (arXiv 2203.03897). Use them to see whether fine-tuning pulls
pairs together (alignment) or collapses the space (uniformity). All work in blocks of rows and take test
sets of any size.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError
from tether.objectives._precision import full_precision

_BLOCK = 1024


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
    nearest = []
    for start, squared in _squared_distances(anchor, other):
        own = torch.arange(start, start + len(squared), device=squared.device)[:, None]
        nearest.append(squared.scatter(1, own, torch.inf).amin(1))
    return ((anchor - other).square().sum(-1) - torch.cat(nearest)).mean()


@full_precision
def uniformity(x: Float[Tensor, "rows dim"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean over unordered pairs i<j of exp(−t‖x_i − x_j‖²); lower is more uniform.

    For pictures and texts together give `torch.cat([image, text])`.

    Raises:
        TetherError: fewer than two rows.
    """
    _require_two(x)
    sums = []
    for start, squared in _squared_distances(x[:-1], x):  # the last row has no partner after it
        later = torch.ones_like(squared, dtype=torch.bool).triu(start + 1)
        sums.append(torch.logsumexp((-t * squared).masked_fill(~later, -torch.inf).flatten(), 0))
    return torch.logsumexp(torch.stack(sums), 0) - math.log(len(x) * (len(x) - 1) / 2)


@full_precision
def cross_uniformity(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"], t: float = 2.0
) -> Float[Tensor, ""]:
    """−log of the mean over all i, j of exp(−t‖x_i − y_j‖²); higher is more uniform."""
    sums = [torch.logsumexp((-t * squared).flatten(), 0) for _, squared in _squared_distances(x, y)]
    return math.log(len(x) * len(y)) - torch.logsumexp(torch.stack(sums), 0)


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, ‖x_i − y_j‖² of a block of rows)."""
    y_squared = y.square().sum(-1)
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        yield start, (rows.square().sum(-1)[:, None] + y_squared - 2 * rows @ y.T).clamp(min=0)


def _require_two(x: Tensor) -> None:
    if len(x) < 2:
        raise TetherError(
            f"This metric compares pairs of different rows and needs at least 2; there are {len(x)}."
        )
