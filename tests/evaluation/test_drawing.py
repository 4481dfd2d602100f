"""Answers drawn over pictures: colours that tell classes apart, small addresses that hold their data."""

import base64
import io

import numpy as np
from PIL import Image

from tether.evaluation.drawing import Drawn, address_of, colour_of, legend_of, with_classes, with_objects
from tether.evaluation.report import report_page

from .demo import demo_results


def test_colours_are_pascal_vocs_and_all_different():
    assert [colour_of(label) for label in range(4)] == [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert len({colour_of(label) for label in range(150)}) == 150


def test_classes_are_coloured_and_the_rest_is_grey():
    picture = Image.new("RGB", (4, 2), (200, 0, 0))
    labels = np.array([[0, 0, 1, 1], [2, 2, -1, -1]])
    drawn = np.asarray(with_classes(picture, labels, clear={2})).astype(int)
    assert drawn[0, 0, 0] > drawn[0, 0, 1] == drawn[0, 0, 2]
    assert drawn[0, 2, 1] > drawn[0, 2, 0] == drawn[0, 2, 2]
    assert (np.ptp(drawn[1], axis=-1) == 0).all()
    assert legend_of({1, 0}, ["cat", "dog"]) == (("cat", "#800000"), ("dog", "#008000"))


def test_objects_have_an_outline_and_a_tint_in_the_colour_of_their_class():
    picture = Image.new("RGB", (12, 8), (200, 200, 200))
    boxes, labels = np.array([[1.0, 1.0, 6.0, 6.0], [8.0, 2.0, 11.0, 7.0]], np.float32), np.array([0, 1])
    masks = np.zeros((2, 8, 12), bool)
    masks[0, 2:4, 2:4] = True
    alone, tinted = (np.asarray(with_objects(picture, boxes, labels, some)) for some in (None, masks))
    for drawn in (alone, tinted):
        assert tuple(drawn[1, 1]) == tuple(drawn[5, 5]) == (128, 0, 0)
        assert tuple(drawn[2, 8]) == tuple(drawn[6, 10]) == (0, 128, 0)
        assert tuple(drawn[0, 0]) == tuple(drawn[7, 11]) == tuple(drawn[6, 6]) == (200, 200, 200)
    assert tuple(alone[3, 3]) == (200, 200, 200)
    assert tinted[3, 3, 0] > tinted[3, 3, 1] == tinted[3, 3, 2]
    none = with_objects(picture, boxes[:0], labels[:0], masks[:0])
    assert (np.asarray(none) == 200).all()


def test_an_address_holds_a_small_picture():
    address = address_of(Image.new("RGB", (400, 100), "red"))
    kind, data = address.split(",")
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/webp;base64" and small.size == (176, 44)


def test_the_report_shows_drawings_and_escapes_names():
    drawn = Drawn(
        domain="<night>",
        identity="a & b",
        picture="data:a",
        truth="data:b",
        answer="data:c",
        legend=(("<cat>", "#800000"),),
    )
    results = demo_results(seeds=1, n=60)
    page = report_page(results, None, [drawn])
    assert "Answers beside the truth" in page and page.index("data:a") < page.index("data:b") < page.index(
        "data:c"
    )
    assert "<h3>&lt;night&gt;</h3>" in page and "&lt;cat&gt;" in page and "a &amp; b" in page
    assert "Answers beside the truth" not in report_page(results)
