"""Cross-modal retrieval: which place the right picture or text takes, and which entries come first.

Similarities are made tile by tile, so memory is bounded by the tile's size however many queries and entries there
are, and they are *exact*: features are rounded to multiples of 2⁻²⁶ (which leaves an fp32 coordinate of 1/8 or more as
it is, and changes others by at most 2⁻²⁷), and sums of their products have no rounding error in float64. So no tile,
device, number of threads or share of the queries can change a rank, and equal features have equal similarities to the
last bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tether.errors import TetherError
from tether.objectives.features import cross_uniformity, uniformity

KS = (1, 5, 10)
"""The k of recall at k, as the field reports it."""

_TILE = 2048
_GRID = 2.0**26
_NORM_TOLERANCE = 0.01  # features of half precision are off by some thousandths


@dataclass(frozen=True, kw_only=True)
class Recall:
    """How well queries of one kind find their entries.

    Args:
        at: share of the queries that have a right entry among their first k, by k.
        median_rank: of the best right entry, 1 for the first place; between two middle ones their mean.
        queries: how many there are.
    """

    at: dict[int, float]
    median_rank: float
    queries: int


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """Where pictures and texts lie on the sphere (Wang and Isola, ICML 2020).

    Args:
        alignment: mean squared distance of right pairs; 0 is perfect.
        image_uniformity, text_uniformity: log of the mean of exp(−2 · squared distance) within each set; lower is
            more uniform, 0 is collapsed.
        cross_uniformity: −log of the same mean between pictures and texts; higher is more uniform (Oh et al., NeurIPS
            2023, whose m²-Mix is meant to raise it).
    """

    alignment: float
    image_uniformity: float
    text_uniformity: float
    cross_uniformity: float


def pairs_of_groups(
    query_groups: Int[Tensor, " q"], gallery_groups: Int[Tensor, " g"]
) -> Int[Tensor, "pairs 2"]:
    """All (query, entry) whose groups are equal, ordered by query and then by entry.

    For captions and pictures a group is the number of the picture. Both ways: the columns change places with
    `.flip(1)`.
    """
    order = torch.argsort(gallery_groups, stable=True)
    ordered = gallery_groups[order]
    first = torch.searchsorted(ordered, query_groups)
    counts = torch.searchsorted(ordered, query_groups, right=True) - first
    queries = torch.repeat_interleave(torch.arange(len(query_groups), device=counts.device), counts)
    within = torch.arange(len(queries), device=counts.device) - (counts.cumsum(0) - counts)[queries]
    return torch.stack([queries, order[first[queries] + within]], 1)


@torch.no_grad()
def best_ranks(
    queries: Float[Tensor, "q dim"],
    gallery: Float[Tensor, "g dim"],
    positives: Int[Tensor, "pairs 2"],
    *,
    tile: int = _TILE,
) -> Int[Tensor, " q"]:
    """Place of each query's best right entry among all entries, by cosine similarity; 1 is the first.

    The place is 1 + the number of wrong entries that are as similar or more similar. So a tie counts against the
    query: a model whose features collapse into a point has the worst ranks and not the luck of a sort, and ranks stay
    whole numbers that depend on no order. Several right entries that tie do not count against each other.

    Args:
        queries, gallery: features of length 1.
        positives: (query, entry) of every right pair, in any order; each pair once, and at least one for each query.
        tile: rows and columns of similarities that are held at a time.

    Raises:
        TetherError: there is nothing, features that are not of length 1, a query without a right entry, a pair that
            is given twice or of numbers that do not exist.
    """
    _check_features(queries, "queries")
    _check_features(gallery, "gallery")
    _check_positives(positives, len(queries), len(gallery))
    similarity = _of_pairs(queries, gallery, positives, tile)
    best = similarity.new_full((len(queries),), -torch.inf)
    best.scatter_reduce_(0, positives[:, 0], similarity, "amax")
    ranks = torch.ones(len(queries), dtype=torch.long, device=queries.device)
    # The best right entries themselves are counted below as well.
    ranks.scatter_add_(0, positives[:, 0], -(similarity == best[positives[:, 0]]).long())
    for rows, _, scores in _tiles(queries, gallery, tile):
        ranks[rows] += (scores >= best[rows, None]).sum(1)
    return ranks


@torch.no_grad()
def top_k(
    queries: Float[Tensor, "q dim"],
    gallery: Float[Tensor, "g dim"],
    k: int,
    *,
    tile: int = _TILE,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Cosine similarity and number of the k most similar entries of each query, best first.

    Entries that are equally similar come in the order of their numbers.

    Args:
        queries, gallery: features of length 1.
        tile: rows and columns of similarities that are held at a time.

    Raises:
        TetherError: there is nothing, features that are not of length 1, or k is not between 1 and the number of
            entries.
    """
    _check_features(queries, "queries")
    _check_features(gallery, "gallery")
    if not 1 <= k <= len(gallery):
        raise TetherError(
            f"k={k} does not fit a gallery of {len(gallery)} entries: choose 1 to {len(gallery)}."
        )
    values = torch.full((len(queries), k), -torch.inf, dtype=torch.float64, device=queries.device)
    entries = torch.full((len(queries), k), -1, device=queries.device)
    for rows, columns, scores in _tiles(queries, gallery, tile):
        # What is best so far stands in front: of equal ones the first stays.
        joined = torch.cat([values[rows], scores], 1)
        numbers = torch.arange(columns.start, columns.stop, device=queries.device).expand(len(scores), -1)
        chosen = _first_k(joined, k)
        values[rows] = joined.gather(1, chosen)
        entries[rows] = torch.cat([entries[rows], numbers], 1).gather(1, chosen)
    return values.float(), entries


def hits(ranks: Int[Tensor, " q"]) -> Float[Tensor, "q 4"]:
    """A row per query that may be summed over any queries: hit at 1, at 5, at 10 (1 or 0), and 1."""
    columns = [ranks <= k for k in KS] + [torch.ones_like(ranks, dtype=torch.bool)]
    return torch.stack(columns, 1).double()


def recalls(sums: Float[Tensor, "*d 4"]) -> Float[Tensor, "*d 3"]:
    """Recall at 1, 5 and 10 from sums of rows of `hits`; NaN where nothing was summed."""
    return sums[..., :-1] / sums[..., -1:]


def recall(ranks: Int[Tensor, " q"]) -> Recall:
    """Recall at 1, 5 and 10 and the median of ranks from `best_ranks`.

    Raises:
        TetherError: there are none.
    """
    if not len(ranks):
        raise TetherError("There is nothing to measure: no query has a rank.")
    ordered = ranks.double().sort().values
    middle = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    shares = recalls(hits(ranks).sum(0)).tolist()
    return Recall(at=dict(zip(KS, shares, strict=True)), median_rank=middle.item(), queries=len(ranks))


@torch.no_grad()
def feature_space(
    images: Float[Tensor, "pictures dim"],
    texts: Float[Tensor, "captions dim"],
    positives: Int[Tensor, "pairs 2"],
    *,
    tile: int = _TILE,
) -> FeatureSpace:
    """Alignment of the right pairs, and uniformity of pictures, of texts, and across the two.

    Args:
        images, texts: features of length 1, at least two of each.
        positives: (picture, caption) of every right pair.
        tile: pairs whose features are held at a time.

    Raises:
        TetherError: as `best_ranks`, or fewer than two rows.
    """
    _check_features(images, "images")
    _check_features(texts, "texts")
    _check_numbers(positives, len(images), len(texts))
    distances = [
        (images[pairs[:, 0]].double() - texts[pairs[:, 1]].double()).square().sum(1)
        for pairs in positives.split(tile)
    ]
    return FeatureSpace(
        alignment=torch.cat(distances).mean().item(),
        image_uniformity=uniformity(images).item(),
        text_uniformity=uniformity(texts).item(),
        cross_uniformity=cross_uniformity(images, texts).item(),
    )


def _tiles(queries: Tensor, gallery: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, their exact similarities) for every tile, row by row and columns ascending."""
    if tile < 1:
        raise TetherError(f"A tile has at least 1 row and column, found {tile}.")
    for row in range(0, len(queries), tile):
        rows = slice(row, min(row + tile, len(queries)))
        exact = _exact(queries[rows])
        for column in range(0, len(gallery), tile):
            columns = slice(column, min(column + tile, len(gallery)))
            yield rows, columns, exact @ _exact(gallery[columns]).T


def _of_pairs(queries: Tensor, gallery: Tensor, positives: Tensor, tile: int) -> Tensor:
    """The exact similarity of each pair."""
    return torch.cat(
        [
            (_exact(queries[pairs[:, 0]]) * _exact(gallery[pairs[:, 1]])).sum(1)
            for pairs in positives.split(max(1, tile))
        ]
    )


def _exact(features: Tensor) -> Tensor:
    """Multiples of 2⁻²⁶. Products are multiples of 2⁻⁵², and every partial sum is below 2: 53 bits hold it."""
    return (features.double() * _GRID).round() / _GRID


def _first_k(scores: Float[Tensor, "n m"], k: int) -> Int[Tensor, "n k"]:
    """Columns of the k highest scores of each row, best first, of equal ones the first columns first."""
    values, columns = scores.topk(k)
    tied = (scores >= values[:, -1:]).sum(1) > k  # rare: which of the equal ones `topk` takes is left open
    if tied.any():
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(1).values
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def _check_features(features: Tensor, name: str) -> None:
    if not len(features):
        raise TetherError(f"There is nothing to search: {name} is empty.")
    worst = (torch.linalg.vector_norm(features.float(), dim=1) - 1).abs().max().item()
    if not worst <= _NORM_TOLERANCE:  # also where it is NaN
        raise TetherError(
            f"Expected features of length 1, but the lengths in {name} are off by up to {worst:.3g}. Normalise "
            f"them; those of model.encode_image and encode_text are."
        )


def _check_numbers(positives: Tensor, queries: int, gallery: int) -> None:
    for column, (name, count) in enumerate((("query", queries), ("entry", gallery))):
        numbers = positives[:, column]
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            raise TetherError(
                f"The right pairs name the {name} numbers {int(numbers.min())} to {int(numbers.max())}, but there "
                f"are {count}, counted from 0."
            )
    if not len(positives):
        raise TetherError("There is nothing to measure: no pair is a right one.")


def _check_positives(positives: Shaped[Tensor, "pairs 2"], queries: int, gallery: int) -> None:
    _check_numbers(positives, queries, gallery)
    missing = queries - len(positives[:, 0].unique())
    if missing:
        raise TetherError(
            f"{missing} of {queries} queries have no right entry in the gallery; leave them out of the queries."
        )
    keys = positives[:, 0] * gallery + positives[:, 1]
    if len(keys.unique()) < len(keys):
        raise TetherError(f"{len(keys) - len(keys.unique())} right pairs are given more than once.")
