from dataclasses import replace

import pytest

from tether.data import Benchmark, Example, ImageRef, Split
from tether.data.records import distinct
from tether.errors import TetherError


def examples(*rows, root="/data"):
    return tuple(Example(ImageRef(root, name), label, (), identity) for name, label, identity in rows)


def benchmark(**changes):
    fields = {
        "name": "toy",
        "class_names": ("cat", "dog"),
        "templates": ("a photo of a {}.",),
        "train": Split("train", "photo", examples(("a", 0, "A"), ("b", 1, "B"))),
        "validation": Split("validation", "photo", examples(("c", 0, "C"))),
        "tests": {"photo": Split("test", "photo", examples(("d", 0, "D"), ("e", 1, "E")))},
        "in_distribution": "photo",
    }
    return Benchmark(**{**fields, **changes})


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "./a", "a\0b"])
def test_a_name_stays_inside_its_root(name):
    with pytest.raises(TetherError, match="path inside"):
        ImageRef("/data", name)


def test_identity_is_the_name_where_none_is_given():
    assert Example(ImageRef("/data", "a/b.png"), 0).identity == "a/b.png"


def test_negative_label():
    with pytest.raises(TetherError, match="count from 0"):
        Example(ImageRef("/data", "a"), -1)


def test_a_picture_twice_in_a_split():
    with pytest.raises(TetherError, match=r"more than once: /data/a"):
        Split("test", "photo", examples(("a", 0, "A"), ("a", 0, "B")))


def test_mask_and_groups_are_checked():
    rows = examples(("a", 0, "A"), ("b", 2, "B"))
    Split("test", "photo", rows, class_mask=(0, 2), groups=((0, 2),))
    with pytest.raises(TetherError, match="ascending"):
        Split("test", "photo", rows, class_mask=(2, 0))
    with pytest.raises(TetherError, match="outside its class mask: 2"):
        Split("test", "photo", rows, class_mask=(0, 1))
    with pytest.raises(TetherError, match="overlap"):
        Split("test", "photo", rows, groups=((0, 2), (2, 3)))


def test_canonical_classes():
    rows = examples(("a", 1, "A"))
    split = Split("test", "photo", rows, class_mask=(1, 2, 4), groups=((1, 4),))
    assert split.canonical_classes(5) == (-1, 1, 2, -1, 1)
    assert Split("test", "photo", rows).canonical_classes(3) == (0, 1, 2)


def test_digest_sees_everything_but_the_place():
    split = Split("test", "photo", examples(("a", 0, "A"), ("b", 1, "B")))
    elsewhere = Split("other", "photo", examples(("a", 0, "A"), ("b", 1, "B"), root="/mnt/x"), convention="c")
    assert split.digest == elsewhere.digest
    changed = [
        replace(split, domain="sketch"),
        replace(split, alteration="crop_border:2"),
        replace(split, class_mask=(0, 1)),
        replace(split, groups=((0, 1),)),
        replace(split, examples=split.examples[::-1]),
        replace(split, examples=examples(("a", 1, "A"), ("b", 1, "B"))),
        replace(split, examples=examples(("a", 0, "A"), ("b", 1, "C"))),
        replace(split, examples=(replace(split.examples[0], captions=("x",)), split.examples[1])),
    ]
    assert len({split.digest, *(other.digest for other in changed)}) == len(changed) + 1


def test_a_sound_benchmark():
    assert benchmark().tests["photo"].labels == {0, 1}


def test_a_benchmark_may_be_for_evaluation_only():
    empty = Split("train", "photo", ())
    assert len(benchmark(train=empty, validation=empty).train) == 0


def test_a_masked_training_split_needs_only_its_classes():
    train = Split("train", "photo", examples(("a", 0, "A")), class_mask=(0,))
    assert benchmark(train=train).train.labels == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("cat", "dog", "emu")}, "no training picture: emu"),
        ({"class_names": ("cat", " ")}, "without a name: 1"),
        ({"class_names": ("cat",)}, "uses class 1"),
        ({"templates": ("a photo",)}, "exactly once"),
        ({"in_distribution": "foto"}, "did you mean 'photo'"),
        ({"tests": {"photo": Split("test", "photo", ())}}, "without a single picture: photo"),
    ],
)
def test_a_benchmark_that_is_not_sound(changes, message):
    with pytest.raises(TetherError, match=message):
        benchmark(**changes)


@pytest.mark.parametrize("row", [("z", 0, "A"), ("z", 0, "C")])
def test_an_identity_of_the_test_is_in_no_other_split(row):
    tests = {"photo": Split("test", "photo", examples(row))}
    with pytest.raises(TetherError, match="1 identities are in the"):
        benchmark(tests=tests)


def test_a_picture_of_the_test_is_in_no_other_split_whatever_its_identity():
    with pytest.raises(TetherError, match="/data/a"):
        benchmark(tests={"photo": Split("test", "photo", examples(("a", 0, "renamed")))})


def test_validation_shares_nothing_with_training():
    with pytest.raises(TetherError, match="in the training split and in the validation split"):
        benchmark(validation=Split("validation", "photo", examples(("z", 0, "B"))))


def test_test_splits_may_share_identities_with_each_other():
    rows = examples(("d", 0, "D"))
    tests = {"photo": Split("test", "photo", rows), "sketch": Split("sketch", "sketch", rows)}
    assert len(benchmark(tests=tests).tests) == 2


def test_distinct_names():
    assert distinct(("cat", "dog")) == ("cat", "dog")
    with pytest.raises(TetherError, match="same name: cat"):
        distinct(("cat", "dog", "cat"))


def test_a_test_may_have_classes_and_templates_of_its_own():
    own = Split(
        "birds", "birds", examples(("f", 2, "F")), class_names=("owl", "wren", "tit"), templates=("{}",)
    )
    home = benchmark().tests["photo"]
    whole = benchmark(tests={"photo": home, "birds": own})
    assert whole.class_names_of(own) == ("owl", "wren", "tit") and whole.templates_of(own) == ("{}",)
    assert whole.class_names_of(home) == ("cat", "dog") and whole.templates_of(home) == ("a photo of a {}.",)
    digests = {own.digest, replace(own, templates=None).digest, replace(own, class_names=None).digest}
    assert len(digests | {replace(own, class_names=None, templates=None).digest}) == 4
    with pytest.raises(TetherError, match="'birds' uses class 2, but there are 2"):
        replace(own, class_names=("owl", "wren"))
    with pytest.raises(TetherError, match="'birds' has classes without a name: 1"):
        replace(own, class_names=("owl", " ", "tit"))
    with pytest.raises(TetherError, match="must hold the two characters"):
        replace(own, templates=("a bird",))


@pytest.mark.parametrize("part", ["train", "validation", "photo"])
@pytest.mark.parametrize("own", [{"class_names": ("cat", "cow")}, {"templates": ("{}",)}])
def test_what_is_trained_and_chosen_on_has_the_classes_of_the_benchmark(part, own):
    whole = benchmark()
    changed = replace(whole.tests["photo"] if part == "photo" else getattr(whole, part), **own)
    with pytest.raises(TetherError, match="of its own; only shifted tests may"):
        benchmark(**({"tests": {"photo": changed}} if part == "photo" else {part: changed}))
