"""PASCAL VOC's layout: XML files of boxes, palette PNGs of classes."""

import numpy as np
import pytest
from PIL import Image

from tether.config import build
from tether.data import ImageRef, load_benchmark
from tether.data.targets import IGNORE
from tether.data.voc import CLASSES, parse_xml, read_boxes
from tether.errors import TetherError
from tether.families import DataConfig

XML = """<annotation><filename>x</filename>
<object><name>dog</name><difficult>0</difficult>
 <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12</xmax><ymax>6</ymax></bndbox>
 <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
<object><name>cat</name><difficult>1</difficult>
 <bndbox><ymax>4.5</ymax><xmin>3</xmin><ymin>2</ymin><xmax>4</xmax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path, noise):
    def make(name, ids, xml=XML):
        root = tmp_path / name
        for folder in (
            "JPEGImages",
            "Annotations",
            "SegmentationClass",
            "ImageSets/Main",
            "ImageSets/Segmentation",
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for kind in ("Main", "Segmentation"):
            for part, own in ids.items():
                (root / "ImageSets" / kind / f"{part}.txt").write_text("".join(f"{one}\n" for one in own))
        for number, one in enumerate(one for own in ids.values() for one in own):
            noise(number, (12, 6)).save(root / "JPEGImages" / f"{one}.jpg")
            (root / "Annotations" / f"{one}.xml").write_text(xml)
            mask = np.zeros((6, 12), np.uint8)
            mask[0, :3] = [255, 1, 20]
            picture = Image.frombytes("P", (12, 6), mask.tobytes())
            picture.putpalette(list(range(256)) * 3)
            picture.save(root / "SegmentationClass" / f"{one}.png")
        return str(root)

    return make


IDS = {"train": [f"2008_{number:06}" for number in range(8)], "val": ["2009_000001", "2009_000002"]}


def load(root, **options):
    return load_benchmark(build(DataConfig, {"method": "voc", "root": root, **options}, "data"))


def test_boxes_count_from_zero_and_end_after_their_last_pixel(voc):
    benchmark = load(voc("VOC2012", IDS), validation_share=0.25)
    assert benchmark.class_names == CLASSES and benchmark.answers == ("boxes",) and not benchmark.background
    assert [len(split) for split in (benchmark.train, benchmark.validation, benchmark.tests["photo"])] == [
        6,
        2,
        2,
    ]
    objects = benchmark.train.examples[0].target.read(6, 12).objects
    assert objects.boxes.tolist() == [[0, 1, 12, 6], [2, 1, 4, 4.5]]
    assert [CLASSES[label] for label in objects.labels] == ["dog", "cat"]
    assert objects.difficult.tolist() == [False, True] and objects.areas[0] == 60 and objects.masks is None


def test_masks_have_the_background_last_and_255_ignored(voc):
    benchmark = load(voc("VOC2012", IDS), answers="semantic")
    semantic = benchmark.train.examples[0].target.read(6, 12).semantic
    assert semantic[0, :4].tolist() == [IGNORE, 0, 19, 20]
    assert benchmark.semantic_names[0] == "aeroplane" and benchmark.semantic_names[20] == "background"


def test_a_shifted_domain_is_another_root(voc):
    photo, clipart = voc("VOC2012", IDS), voc("clipart", {"val": ["7", "8", "9"]})
    benchmark = load(photo, shifted={"clipart": clipart})
    assert len(benchmark.tests["clipart"]) == 3 and benchmark.tests["clipart"].domain == "clipart"


def test_what_is_missing_is_named(voc, tmp_path):
    root = voc("VOC2012", IDS)
    with pytest.raises(TetherError, match=r"Cannot read the list .*ImageSets/Main/test\.txt"):
        load(root, test="test")
    (tmp_path / "VOC2012" / "SegmentationClass" / "2008_000001.png").unlink()
    with pytest.raises(
        TetherError, match=r"1 of 8 pictures are not in(.|\n)*SegmentationClass/2008_000001\.png"
    ):
        load(root, answers="semantic")
    (tmp_path / "VOC2012" / "JPEGImages" / "2008_000001.jpg").unlink()
    with pytest.raises(TetherError, match=r"JPEGImages/2008_000001\.jpg"):
        load(root)
    with pytest.raises(TetherError, match="did you mean 'boxes'"):
        load(root, answers="boxs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (XML.replace("dog", "dgo"), "'dgo' that is not trained on; did you mean 'dog'"),
        (XML.replace("<xmax>12</xmax>", ""), "the box of 'dog' lacks a side"),
        (XML.replace("12", "twelve"), "twelve"),
        (XML[:50], "not well-formed"),
        ("", "not well-formed"),
        ('<!DOCTYPE a [<!ENTITY e "dog">]>' + XML.replace("dog", "&e;"), "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd">' + XML, "document type"),
        (XML.replace("dog", "&e;"), "not well-formed"),
        (XML + " " * 5 * 2**20, "more than the limit"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(text, message, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(TetherError, match=message) as error:
        read_boxes(ImageRef(str(tmp_path), "a.xml"), CLASSES)
    assert "a.xml" in str(error.value)


def test_a_deep_document_is_read_or_refused():
    depth = 50_000
    tree = parse_xml(b"<a>" * depth + b"</a>" * depth)
    assert tree.tag == "a"
