import numpy as np
import pytest

from tether.data.captions import CaptionBenchmark, CaptionedImage, CaptionSplit, by_domain
from tether.data.records import ImageRef
from tether.errors import TetherError


def picture(name, *captions, identity="", domain="photo"):
    return CaptionedImage(ImageRef("root", name), captions or (f"a {name}",), identity, domain)


def split(name, *pictures):
    return CaptionSplit(name, tuple(pictures))


def benchmark(train, validation, test):
    return CaptionBenchmark(
        name="some", train=train, validation=validation, tests=by_domain(test), in_distribution="photo"
    )


def test_captions_are_numbered_through_and_know_their_picture():
    some = split("test", picture("b", "one", "two"), picture("a", "three"), picture("c", "four", "one"))
    assert some.captions == ("one", "two", "three", "four", "one")
    assert some.pictures.tolist() == [0, 0, 1, 2, 2] and some.pictures.dtype == np.int64
    assert len(some) == 3 and some.identities == {"a", "b", "c"}


def test_the_digest_depends_on_all_that_is_known_and_not_on_the_root():
    base = split("one", picture("a", "x", "y"))
    elsewhere = CaptionSplit("two", (CaptionedImage(ImageRef("/other", "a"), ("x", "y"), "a", "photo"),))
    assert base.digest == elsewhere.digest
    others = [
        picture("b", "x", "y", identity="a"),
        picture("a", "y", "x"),
        picture("a", "x", "y", identity="b"),
        picture("a", "x", "y", domain="sketch"),
    ]
    assert len({base.digest, *(split("one", other).digest for other in others)}) == 5


def test_tests_are_by_domain():
    tests = by_domain([picture("a", domain="sketch"), picture("b"), picture("c", domain="sketch")])
    assert {domain: [e.image.name for e in one.examples] for domain, one in tests.items()} == {
        "photo": ["b"],
        "sketch": ["a", "c"],
    }


@pytest.mark.parametrize(
    ("captions", "words"), [((), "has no caption"), (("a", " "), "has an empty caption")]
)
def test_a_picture_without_a_text_is_refused(captions, words):
    with pytest.raises(TetherError, match=f"root/x {words}"):
        CaptionedImage(ImageRef("root", "x"), captions)


def test_the_same_picture_twice_is_refused():
    with pytest.raises(TetherError, match="'test' holds pictures more than once: root/a"):
        split("test", picture("a"), picture("a", "another"))


def test_nothing_is_on_two_sides():
    with pytest.raises(
        TetherError, match=r"1 pictures of the split 'test photo' show what the split 'train' shows: x"
    ):
        benchmark(
            split("train", picture("a", identity="x")), split("validation"), [picture("b", identity="x")]
        )
    with pytest.raises(TetherError, match="'validation' show what the split 'train' shows"):
        benchmark(
            split("train", picture("a")), split("validation", picture("a", identity="y")), [picture("b")]
        )
    with pytest.raises(TetherError, match="'test photo' show what the split 'validation' shows"):
        benchmark(split("train"), split("validation", picture("a")), [picture("a")])


def test_there_must_be_something_to_test():
    with pytest.raises(
        TetherError, match="no test pictures of its in-distribution domain 'photo'; known: 'sketch'"
    ):
        benchmark(split("train"), split("validation"), [picture("a", domain="sketch")])
