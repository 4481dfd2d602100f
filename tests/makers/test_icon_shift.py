"""How `icon-shift` is made: looks, what counts as one drawing, classes, and divisions by designer."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from makers._icon_classes import THINGS
from makers._icon_sources import DERIVED, FAMILIES, fingerprint, ink, look
from makers.builtin_clip.pictures import VENDORS
from makers.icon_shift import (
    FOLDS,
    LEAST_FAMILIES,
    LEAST_PICTURES,
    PER_FAMILY,
    Drawing,
    _plain,
    assign_folds,
    chosen_classes,
    distinct,
    trained_classes,
    validation_families,
)
from makers.icon_shift_overlap import nearest


def drawn(*, fill=None, box=(8, 8, 55, 55), width=4):
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse(box, outline="black", fill=fill, width=width)
    return picture


LINE, SOLID = drawn(), drawn(fill="black")


@pytest.mark.parametrize(
    ("prefix", "icon", "coloured", "picture", "expected"),
    [
        ("twemoji", "bell", True, SOLID, "emoji"),
        ("pixelarticons", "bell", False, LINE, "pixel"),
        ("streamline-freehand-color", "bell", True, LINE, "hand-drawn"),
        ("icon-park", "bell", True, LINE, "colour"),
        ("solar", "bell-bold-duotone", False, LINE, "duotone"),
        ("ri", "bell-fill", False, SOLID, "solid"),
        ("ri", "bell-fill", False, LINE, None),
        ("ri", "bell-line", False, LINE, "line"),
        ("ri", "bell-line", False, SOLID, None),
        ("tdesign", "bell", False, LINE, "line"),
        ("majesticons", "bell", False, SOLID, "solid"),
        ("bxs", "bell", False, LINE, None),
    ],
)
def test_a_look_is_told_by_set_and_name_and_checked_by_ink(prefix, icon, coloured, picture, expected):
    assert look(prefix, icon, coloured, picture) == expected


def test_ink_is_the_share_of_the_bounding_box():
    assert ink(SOLID) == pytest.approx(np.pi / 4, abs=0.02) and ink(LINE) < 0.35


def test_a_fingerprint_knows_a_drawing_at_another_place_and_size_and_on_white():
    moved = Image.new("RGBA", (128, 128))
    moved.paste(LINE.resize((96, 96), Image.Resampling.BILINEAR), (30, 3))
    on_white = Image.new("RGB", (64, 64), "white")
    on_white.paste(LINE, mask=LINE)
    assert differing(fingerprint(LINE), fingerprint(moved)) < 9
    assert fingerprint(LINE) == fingerprint(on_white)
    assert differing(fingerprint(LINE), fingerprint(SOLID)) > 50


def differing(first, second):
    bits = [np.unpackbits(np.frombuffer(shape, np.uint8)) for shape in (first, second)]
    return int((bits[0] != bits[1]).sum())


def noise(seed):
    alpha = np.random.default_rng(seed).integers(0, 2, (16, 16), np.uint8) * 255
    return Image.fromarray(np.dstack([np.zeros((16, 16, 3), np.uint8), alpha]), "RGBA").resize((64, 64), 0)


def test_of_drawings_that_are_alike_one_is_kept_and_few_of_a_family():
    drawings = [
        Drawing("bell", "ann", "line", "ann", str(seed), noise(seed)) for seed in range(PER_FAMILY + 2)
    ]
    again = [
        Drawing("bell", "bob", "line", "bob", "same", noise(0)),
        Drawing("bell", "bob", "solid", "bob", "other look", noise(0)),
        Drawing("bell", "bob", "line", "bob", "new", noise(99)),
    ]
    kept = [drawing.icon for drawing in distinct(iter(drawings + again))]
    assert kept == [*map(str, range(PER_FAMILY)), "other look", "new"]


def test_a_class_needs_families_and_pictures_in_the_looks_to_train_on():
    def drawings(thing, families, looks):
        return [
            Drawing(thing, f"family {number}", look, "set", "icon", SOLID)
            for number in range(families)
            for look in looks
        ]

    many = max(LEAST_FAMILIES, *LEAST_PICTURES.values())
    looks = tuple(LEAST_PICTURES)
    found = [
        *drawings("bell", many, looks),
        *drawings("bus", LEAST_FAMILIES - 1, looks),
        *drawings("cat", many, looks[:-1]),
    ]
    assert chosen_classes(found) == ["bell"]


LOOKS = ("line", "solid", "colour")
COUNTS = Counter(
    {
        (f"family {number}", look): 10 + 7 * number % 40
        for number in range(18)
        for look in LOOKS
        if look == "line" or number % (2 if look == "solid" else 3) == 0
    }
)


def test_folds_divide_every_look_evenly():
    folds = assign_folds(COUNTS)
    assert folds == assign_folds(Counter(dict(reversed(COUNTS.items()))))
    for name in LOOKS:
        sizes = [
            sum(count for (family, own), count in COUNTS.items() if own == name and folds[family] == fold)
            for fold in range(FOLDS)
        ]
        assert min(sizes) > 0.2 * sum(sizes)


def test_validation_is_by_other_families_than_test_and_leaves_some_to_train_on():
    folds = assign_folds(COUNTS)
    for name in LOOKS:
        for tested, families in enumerate(validation_families(COUNTS, folds, name)):
            others = {family for family, own in COUNTS if own == name and folds[family] != tested}
            assert set(families) < others and families
            share = sum(COUNTS[family, name] for family in families) / sum(COUNTS[f, name] for f in others)
            assert 0.05 < share < 0.45


def test_a_class_is_trained_on_if_every_fold_has_training_pictures_of_it():
    folds, validation = {"ann": 0, "bob": 1, "cy": 2, "dee": 0}, [["bob"], ["cy"], ["ann"]]
    everyone = [Drawing("bell", family, "line", "set", "icon", SOLID) for family in folds]
    not_fold_0 = [Drawing("bus", family, "line", "set", "icon", SOLID) for family in ("ann", "bob", "dee")]
    elsewhere = [Drawing("cat", family, "solid", "set", "icon", SOLID) for family in folds]
    assert trained_classes([*elsewhere, *not_fold_0, *everyone], folds, validation, "line") == ["bell"]


def test_names_are_compared_without_style_topic_and_number():
    assert (
        _plain("bell-outline-24") == "bell" and _plain("interface-essential-light-bulb-light") == "light bulb"
    )


def test_nothing_that_is_tested_is_trained_on_and_no_name_means_two_things():
    tested = [prefix for prefixes in FAMILIES.values() for prefix in prefixes]
    assert len(tested) == len(set(tested)) and not set(tested) & {*VENDORS, *DERIVED}
    names = [name for thing in THINGS.values() for name in thing]
    assert len(names) == len(set(names))


def test_the_nearest_shape_is_found():
    random = np.random.default_rng(0)
    known = random.choice([-1.0, 1.0], (300, 64)).astype(np.float32)
    shapes = known[[7, 250]].copy()
    shapes[1, :5] *= -1
    distances, places = nearest(shapes, known)
    assert distances.tolist() == [0, 5] and places.tolist() == [7, 250]
