import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.data import Example, ImageRef, split_by_identity
from tether.data.captions import CaptionedImage, CaptionSplit
from tether.data.records import Split
from tether.data.splitting import parts_of, thinned
from tether.errors import TetherError


def make(rows):
    return [
        Example(ImageRef("/d", f"{i}.png"), label, (), f"{label}-{who}")
        for i, (label, who) in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60), st.integers(0, 5))
def test_parts_are_disjoint_whole_and_leave_a_rest(rows, seed):
    examples = make(rows)
    parts = split_by_identity(examples, (0.2, 0.3), seed=seed)
    assert sorted(e.image.name for part in parts for e in part) == sorted(e.image.name for e in examples)
    identities = [{e.identity for e in part} for part in parts]
    assert not (
        identities[0] & identities[1] or identities[0] & identities[2] or identities[1] & identities[2]
    )
    assert {e.label for e in parts[2]} == {e.label for e in examples}
    for part in parts:
        assert [examples.index(e) for e in part] == sorted(examples.index(e) for e in part)


def test_shares_hold_per_class():
    examples = make([(label, who) for label in range(3) for who in range(10 * (label + 1)) for _ in range(2)])
    test, validation, train = split_by_identity(examples, (0.2, 0.1))
    for label in range(3):
        counts = [sum(e.label == label for e in part) for part in (test, validation, train)]
        assert counts == [4 * (label + 1), 2 * (label + 1), 14 * (label + 1)]


def test_another_class_changes_nothing():
    small = split_by_identity(make([(0, who) for who in range(20)]), (0.3,))
    rows = [(0, who) for who in range(20)] + [(1, who) for who in range(7)]
    large = split_by_identity(make(rows), (0.3,))
    assert {e.identity for e in small[0]} == {e.identity for e in large[0] if e.label == 0}


def test_the_seed_decides():
    examples = make([(0, who) for who in range(20)])
    assert split_by_identity(examples, (0.5,), seed=0) == split_by_identity(examples, (0.5,), seed=0)
    assert split_by_identity(examples, (0.5,), seed=0) != split_by_identity(examples, (0.5,), seed=1)


def test_contradictions():
    twice = [Example(ImageRef("/d", "a"), 0, (), "A"), Example(ImageRef("/d", "b"), 1, (), "A")]
    with pytest.raises(TetherError, match="has the labels 0 and 1"):
        split_by_identity(twice, (0.5,))
    for shares in ((0.5, 0.5), (-0.1,)):
        with pytest.raises(TetherError, match="shares"):
            split_by_identity([], shares)


def test_parts_of_identities_leave_a_rest_and_depend_on_no_order():
    names = [f"id{number}" for number in range(20)]
    parts = parts_of(names, (0.2, 0.1), seed=3)
    assert [list(parts.values()).count(part) for part in (0, 1, 2)] == [4, 2, 14]
    assert parts_of(reversed(names), (0.2, 0.1), seed=3) == parts
    assert parts_of(["one"], (0.9,)) == {"one": 1} and parts_of([], (0.5,)) == {}
    with pytest.raises(TetherError, match=r"The shares \[0.6, 0.4\] must not be negative and must leave"):
        parts_of(names, (0.6, 0.4))


@pytest.mark.parametrize("most", [1, 3, 8, 10, 29])
def test_a_thinned_split_keeps_its_order_and_the_shares_of_its_classes(most):
    """Whatever the order of the list: by class, or the classes in turn, which equal distances could miss."""
    by_class = tuple(Example(ImageRef("x", f"{i}.png"), 0 if i < 20 else 1) for i in range(30))
    mixed = tuple(by_class[i] for i in sorted(range(30), key=lambda i: (i % 10, i)))
    for examples in (by_class, mixed):
        found = thinned(Split(name="v", domain="d", examples=examples), most)
        assert len(found) == most and found.domain == "d"
        places = [examples.index(example) for example in found.examples]
        assert places == sorted(set(places))
        assert abs(sum(example.label == 0 for example in found.examples) - most * 2 / 3) < 1
    whole = Split(name="v", domain="d", examples=by_class)
    assert thinned(whole, None) is thinned(whole, 30) is thinned(whole, 1000) is whole


def test_a_split_without_classes_is_thinned_as_the_list_is():
    pictures = tuple(CaptionedImage(ImageRef("x", f"{i}.png"), (f"picture {i}", "one")) for i in range(10))
    found = thinned(CaptionSplit(name="v", examples=pictures), 5)
    assert found.examples == pictures[::2] and len(found.captions) == 10
