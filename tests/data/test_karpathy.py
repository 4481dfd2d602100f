import json
import zipfile

import pytest

from tether.config import build, plain
from tether.data import KarpathyConfig, KarpathySource
from tether.errors import TetherError


def sentences(number, count=5):
    """As published: the text as written, its tokens, and numbers."""
    return [
        {
            "raw": f"Picture {number},\n as told the {i}. time. ",
            "tokens": ["picture"],
            "imgid": number,
            "sentid": 10 * number + i,
        }
        for i in range(count)
    ]


def coco(root, splits=("train", "train", "restval", "val", "test", "test")):
    """A cut of dataset_coco.json and its pictures, the last of which has seven captions."""
    images = []
    for number, split in enumerate(splits):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012}.jpg"
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
        (root / "coco" / folder / name).touch()  # nothing is opened
        own = sentences(number, 7 if number == len(splits) - 1 else 5)
        images.append(
            {
                "filepath": folder,
                "sentids": [sentence["sentid"] for sentence in own],
                "filename": name,
                "imgid": number,
                "split": split,
                "sentences": own,
                "cocoid": 1000 + number,
            }
        )
    path = root / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return {"annotations": str(path), "images": str(root / "coco")}


def flickr(root):
    images = []
    with zipfile.ZipFile(root / "flickr30k-images.zip", "w") as archive:
        for number, split in enumerate(("train", "val", "test", "test")):
            archive.writestr(f"{number}.jpg", b"")
            images.append(
                {
                    "sentids": [],
                    "imgid": number,
                    "sentences": sentences(number),
                    "split": split,
                    "filename": f"{number}.jpg",
                }
            )
    path = root / "dataset_flickr30k.json"
    path.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return KarpathySource(annotations=str(path), images=str(root / "flickr30k-images.zip"))


def change(options, edit):
    """The list after `edit` of its images."""
    with open(options["annotations"]) as file:
        content = json.load(file)
    edit(content["images"])
    with open(options["annotations"], "w") as file:
        json.dump(content, file)
    return KarpathyConfig(**options)


def test_coco_with_flickr_as_a_shift(tmp_path):
    config = KarpathyConfig(**coco(tmp_path), shifted={"flickr30k": flickr(tmp_path)})
    benchmark = config.load()
    assert [len(benchmark.train), len(benchmark.validation)] == [3, 1]
    assert {domain: len(split) for domain, split in benchmark.tests.items()} == {"coco": 2, "flickr30k": 2}
    first = benchmark.train.examples[0]
    assert first.image.name == "train2014/COCO_train2014_000000000000.jpg" and first.domain == "coco"
    assert first.captions[:2] == ("Picture 0, as told the 0. time.", "Picture 0, as told the 1. time.")
    assert benchmark.tests["flickr30k"].examples[0].image.name == "2.jpg"
    assert benchmark.in_distribution == "coco" and benchmark.notes == (
        "Karpathy splits; the first 5 captions of a picture.",
    )
    assert build(KarpathyConfig, {k: v for k, v in plain(config).items() if k != "method"}) == config


def test_five_captions_of_a_picture_or_all(tmp_path):
    options = coco(tmp_path)
    counts = [
        len(KarpathyConfig(**options, captions_per_picture=count).load().tests["coco"].captions)
        for count in (5, None, 1)
    ]
    assert counts == [10, 12, 2]
    with pytest.raises(TetherError, match="at least 1 or null, found 0"):
        KarpathyConfig(**options, captions_per_picture=0)


def test_restval_can_be_left_out_and_its_pictures_may_be_missing_then(tmp_path):
    options = coco(tmp_path)
    next((tmp_path / "coco" / "val2014").glob("*2.jpg")).unlink()
    assert len(KarpathyConfig(**options, restval=False).load().train) == 2
    with pytest.raises(
        TetherError, match=r"1 of 6 pictures are not in .*coco:\n  val2014/COCO_val2014_0*2.jpg"
    ):
        KarpathyConfig(**options).load()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda images: images[1].update(split="tset"),
            r"images\[1\]: the split is 'tset'; did you mean 'test'",
        ),
        (lambda images: images[1].pop("filename"), r"images\[1\]: expected a text as `filename`, found None"),
        (
            lambda images: images[1].update(filename="../../x.jpg"),
            r"images\[1\]: 'train2014/../../x.jpg' lies outside",
        ),
        (
            lambda images: images[1].update(sentences="one"),
            r"images\[1\]: expected a list of `sentences`, found 'one'",
        ),
        (
            lambda images: images[1]["sentences"][2].pop("raw"),
            r"images\[1\]: expected a text as `raw`, found None",
        ),
        (lambda images: images[1].update(sentences=[]), "000001.jpg has no caption"),
        (lambda images: images.insert(0, "x"), r"images\[0\]: expected a text as `split`"),
        (lambda images: images.append(images[0]), "holds pictures more than once"),
        (lambda images: images.clear(), "has no list of `images`; expected dataset_coco.json"),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path, edit, words):
    config = change(coco(tmp_path), edit)
    with pytest.raises(TetherError, match=words):
        config.load()


def test_two_domains_of_one_name_are_refused(tmp_path):
    config = KarpathyConfig(**coco(tmp_path), shifted={"coco": flickr(tmp_path)})
    with pytest.raises(TetherError, match="'coco' is the one that is trained on; give this one another name"):
        config.load()
