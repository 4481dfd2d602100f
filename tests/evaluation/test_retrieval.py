"""Ranks against whole numbers of Python, a case by hand, and what may not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.retrieval import retrieval_hit_rate

from tether.errors import TetherError
from tether.evaluation.retrieval import (
    FeatureSpace,
    best_ranks,
    feature_space,
    hits,
    pairs_of_groups,
    recall,
    recalls,
    top_k,
)
from tether.objectives import alignment, cross_uniformity, uniformity

seeds = st.integers(0, 2**31)
tiles = st.sampled_from([1, 2, 3, 7, 64])


def unit(count, dim, seed, repeated=False):
    """Features of length 1; `repeated` ones come from few different, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
    return features[torch.randint(3, (count,), generator=generator)] if repeated else features


def draw(seed, repeated=False):
    """20 queries and 33 entries in 11 groups of 3, and which belong together."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(11, (20,), generator=generator)
    positives = pairs_of_groups(groups, torch.arange(33) // 3)
    return unit(20, 8, seed, repeated), unit(33, 8, seed + 1, repeated), positives


def whole(features):
    return [[round(value * 2**26) for value in row] for row in features.tolist()]


def slow_similarities(queries, gallery):
    """Exact, in multiples of 2⁻⁵²."""
    return [[sum(map(int.__mul__, q, g)) for g in whole(gallery)] for q in whole(queries)]


def slow_ranks(queries, gallery, positives):
    ranks = []
    for number, row in enumerate(slow_similarities(queries, gallery)):
        right = {entry for query, entry in positives.tolist() if query == number}
        best = max(row[entry] for entry in right)
        ranks.append(1 + sum(value >= best for entry, value in enumerate(row) if entry not in right))
    return ranks


@settings(deadline=None, max_examples=40)
@given(seed=seeds, tile=tiles, repeated=st.booleans())
def test_ranks_are_those_of_whole_numbers_under_any_tile(seed, tile, repeated):
    queries, gallery, positives = draw(seed, repeated)
    assert best_ranks(queries, gallery, positives, tile=tile).tolist() == slow_ranks(
        queries, gallery, positives
    )


@settings(deadline=None, max_examples=40)
@given(seed=seeds, tile=tiles, repeated=st.booleans(), k=st.integers(1, 33))
def test_top_k_is_that_of_whole_numbers_under_any_tile_and_equal_ones_come_in_order(seed, tile, repeated, k):
    queries, gallery, _ = draw(seed, repeated)
    values, entries = top_k(queries, gallery, k, tile=tile)
    similar = slow_similarities(queries, gallery)
    expected = [sorted(range(33), key=lambda entry: -row[entry])[:k] for row in similar]
    assert entries.tolist() == expected
    exact = [[row[entry] / 2**52 for entry in best] for row, best in zip(similar, expected, strict=True)]
    assert torch.equal(values, torch.tensor(exact, dtype=torch.float64).float())


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_recall_is_that_of_torchmetrics(seed):
    queries, gallery, positives = draw(seed)
    found = recall(best_ranks(queries, gallery, positives)).at
    for k, value in found.items():
        expected = []
        for number, query in enumerate(queries):
            right = torch.zeros(33, dtype=torch.bool)
            right[positives[positives[:, 0] == number, 1]] = True
            expected.append(retrieval_hit_rate(gallery @ query, right, top_k=k).item())
        assert value == pytest.approx(sum(expected) / len(expected))


def test_by_hand():
    # Two pictures at 0° and 90°, two captions each; a caption of the first leans to the second.
    def at(*degrees):
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    images, captions, picture = at(0, 90), at(10, 50, 80, 40), torch.tensor([0, 0, 1, 1])
    by_text = pairs_of_groups(picture, torch.arange(2))
    assert by_text.tolist() == [[0, 0], [1, 0], [2, 1], [3, 1]]
    # 10° → picture 0 first; 50° → picture 1 first, so second; 80° → first; 40° → picture 0 first, so second.
    to_image = best_ranks(captions, images, by_text)
    assert to_image.tolist() == [1, 2, 1, 2]
    # Picture at 0°: captions by nearness 10°, 40°, 50°, 80°; its own are 10° and 50°. At 90°: 80°, 50°, 40°, 10°.
    assert best_ranks(images, captions, by_text.flip(1)).tolist() == [1, 1]
    assert hits(to_image).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
    found = recall(to_image)
    assert (found.at, found.median_rank, found.queries) == ({1: 0.5, 5: 1.0, 10: 1.0}, 1.5, 4)
    values, entries = top_k(images, captions, 2)
    assert entries.tolist() == [[0, 3], [2, 1]]
    assert values[0].tolist() == pytest.approx([math.cos(math.radians(10)), math.cos(math.radians(40))])


def test_a_tie_counts_against_the_query_but_not_among_right_entries():
    collapsed = torch.tensor([[1.0, 0.0]]).expand(12, 2)
    positives = pairs_of_groups(torch.arange(4), torch.arange(12) // 3)
    assert best_ranks(collapsed[:4], collapsed, positives).tolist() == [10] * 4  # behind all nine wrong ones
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert best_ranks(gallery[:1], gallery, torch.tensor([[0, 0], [0, 1]])).tolist() == [1]


def test_neither_order_nor_the_share_of_the_queries_changes_a_rank():
    queries, gallery, positives = draw(5)
    ranks = best_ranks(queries, gallery, positives)
    assert torch.equal(best_ranks(queries, gallery, positives.flip(0)), ranks)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    moved = torch.stack([positives[:, 0], order.argsort()[positives[:, 1]]], 1)
    assert torch.equal(best_ranks(queries, gallery[order], moved), ranks)
    odd = positives[positives[:, 0] % 2 == 1]
    odd = torch.stack([odd[:, 0] // 2, odd[:, 1]], 1)
    assert torch.equal(best_ranks(queries[1::2], gallery, odd), ranks[1::2])


def test_rows_add_up_over_any_parts():
    rows = hits(torch.tensor([1, 3, 7, 20]))
    assert recalls(rows[:2].sum(0) + rows[2:].sum(0)).tolist() == [0.25, 0.5, 0.75]
    assert recalls(torch.stack([rows.sum(0), torch.zeros(4)]))[1].isnan().all()


def test_the_pairs_of_groups_that_are_in_no_order():
    pairs = pairs_of_groups(torch.tensor([7, 2, 9, 7]), torch.tensor([2, 7, 2, 5, 7]))
    assert pairs.tolist() == [[0, 1], [0, 4], [1, 0], [1, 2], [3, 1], [3, 4]]


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that is made inside."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def test_no_dense_matrix_is_made():
    images, texts = unit(400, 4, 0), unit(2000, 4, 1)
    positives = pairs_of_groups(torch.arange(2000) // 5, torch.arange(400))
    with _Largest() as largest:
        best_ranks(texts, images, positives, tile=32)
        top_k(texts, images, 10, tile=32)
    assert largest.size <= 2000 * 10  # what is asked for; the matrix has 800,000


def test_feature_space_is_that_of_the_measures_on_all_pairs():
    images, texts = unit(6, 4, 0).double(), unit(18, 4, 1).double()
    positives = pairs_of_groups(torch.arange(6), torch.arange(18) // 3)
    found = feature_space(images, texts, positives, tile=5)
    expected = alignment(images.repeat_interleave(3, 0), texts)
    assert found.alignment == pytest.approx(expected.item(), abs=1e-12)
    assert found == FeatureSpace(
        alignment=found.alignment,
        image_uniformity=uniformity(images).item(),
        text_uniformity=uniformity(texts).item(),
        cross_uniformity=cross_uniformity(images, texts).item(),
    )


def test_what_cannot_be_ranked_is_refused():
    features, pairs = torch.eye(4), torch.arange(4)[:, None].expand(4, 2)
    with pytest.raises(
        TetherError, match="1 of 4 queries have no right entry in the gallery; leave them out"
    ):
        best_ranks(features, features, pairs[:3])
    with pytest.raises(TetherError, match="1 right pairs are given more than once"):
        best_ranks(features, features, torch.cat([pairs, pairs[:1]]))
    with pytest.raises(TetherError, match="the entry numbers 1 to 4, but there are 4"):
        best_ranks(features, features, torch.stack([torch.arange(4), torch.arange(1, 5)], 1))
    with pytest.raises(TetherError, match="no pair is a right one"):
        best_ranks(features, features, pairs[:0])
    with pytest.raises(TetherError, match="gallery is empty"):
        best_ranks(features, features[:0], pairs)
    for bad in (3 * features, torch.full((4, 4), torch.nan)):
        with pytest.raises(TetherError, match=r"lengths in queries are off by up to (2|nan)\. Normalise"):
            best_ranks(bad, features, pairs)
    with pytest.raises(TetherError, match="k=5 does not fit a gallery of 4 entries: choose 1 to 4"):
        top_k(features, features, 5)
    with pytest.raises(TetherError, match="at least 1 row and column, found 0"):
        top_k(features, features, 1, tile=0)
    with pytest.raises(TetherError, match="no query has a rank"):
        recall(torch.zeros(0, dtype=torch.long))
