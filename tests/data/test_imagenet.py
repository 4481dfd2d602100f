import pytest

from tether.data import ImageNetConfig, imagenet, imagenet_templates, load_benchmark
from tether.data.imagenet import (
    Layout,
    class_names,
    layouts,
    read_set,
    wnids,
)
from tether.errors import TetherError


def test_classes_and_names_belong_together():
    ids, names = wnids(), class_names()
    assert len(ids) == len(set(ids)) == len(names) == 1000 and list(ids) == sorted(ids)
    for wnid, name in (("n01440764", "tench"), ("n02123045", "tabby cat"), ("n15075141", "toilet paper")):
        assert names[ids.index(wnid)] == name


def test_layouts_are_those_of_the_published_sets():
    found = layouts()
    assert {key: (layout.count, len(layout.folders), layout.masked) for key, layout in found.items()} == {
        "imagenet": (50_000, 1000, False),
        "v2": (10_000, 1000, False),
        "sketch": (50_889, 1000, False),
        "r": (30_000, 200, True),
        "a": (7_500, 200, True),
    }
    names = class_names()
    assert names[found["r"].folders["n01443537"]] == "goldfish"
    assert names[found["a"].folders["n01498041"]] == "stingray"
    assert names[found["v2"].folders["999"]] == "toilet paper"  # folder names sort as text, classes do not


def test_a_masked_set(tmp_path, class_tree):
    layout = Layout("Toy", {"n2": 7, "n1": 3}, 4, masked=True)
    class_tree(tmp_path, dict.fromkeys(["n1", "n2"], 2), suffix=".JPEG")
    split = read_set(tmp_path, layout)
    assert [(example.image.name, example.label) for example in split.examples] == [
        ("n1/000.JPEG", 3),
        ("n1/001.JPEG", 3),
        ("n2/000.JPEG", 7),
        ("n2/001.JPEG", 7),
    ]
    assert split.class_mask == (3, 7) and split.convention == "masked: scored over its 2 classes"


def test_a_part_of_a_set_is_refused_or_named(tmp_path, class_tree):
    layout = Layout("Toy", {"n1": 0, "n2": 1}, 4)
    class_tree(tmp_path, dict.fromkeys(["n1"], 3), suffix=".JPEG")
    with pytest.raises(TetherError, match="Toy has 4 pictures, but 3 are in"):
        read_set(tmp_path, layout)
    with pytest.warns(UserWarning, match="Toy is not whole: 3 of 4 pictures"):
        partial = read_set(tmp_path, layout, allow_partial=True)
    assert partial.convention == "scored over all 1,000 classes; PARTIAL: 3 of 4 pictures"
    assert partial.class_mask is None
    class_tree(tmp_path, dict.fromkeys(["n9"], 1), suffix=".JPEG")
    with pytest.raises(TetherError, match="no classes of Toy, such as 'n9'"):
        read_set(tmp_path, layout, allow_partial=True)


@pytest.mark.filterwarnings("ignore:.* is not whole")
def test_the_whole_family(tmp_path, noise, class_tree, objectnet, monkeypatch):
    some = wnids()[:3]
    class_tree(tmp_path / "in/train", dict.fromkeys(wnids(), 1), suffix=".JPEG")
    for wnid in some:
        for number in range(1, 10):
            noise(number, (8, 8)).save(tmp_path / "in/train" / wnid / f"{number}.JPEG")
    class_tree(tmp_path / "in/val", dict.fromkeys(some, 1), suffix=".JPEG")
    class_tree(tmp_path / "v2", dict.fromkeys(["0", "10", "2"], 1), suffix=".JPEG")
    class_tree(tmp_path / "r", dict.fromkeys(wnids("imagenet_r")[:2], 2), suffix=".JPEG")
    config = {
        "imagenet": str(tmp_path / "in"),
        "v2": str(tmp_path / "v2"),
        "r": str(tmp_path / "r"),
        "objectnet": str(objectnet),
    }
    with pytest.raises(TetherError, match="ImageNet has 50,000 pictures, but 3"):
        load_benchmark(ImageNetConfig(**config))
    benchmark = load_benchmark(ImageNetConfig(**config, allow_partial=True, validation_share=0.2))
    assert benchmark.in_distribution == "ImageNet" and benchmark.templates == imagenet_templates()
    assert list(benchmark.tests) == ["ImageNet", "ImageNet-V2", "ImageNet-R", "ObjectNet"]
    assert [example.label for example in benchmark.tests["ImageNet-V2"].examples] == [0, 10, 2]
    assert len(benchmark.tests["ImageNet-R"].class_mask) == 200
    assert "200 classes; PARTIAL: 4 of 30,000" in benchmark.tests["ImageNet-R"].convention
    assert len(benchmark.validation) == 6 and benchmark.validation.labels == {0, 1, 2}
    assert len(benchmark.train) == 1027 - 6

    monkeypatch.setattr(imagenet, "TRAIN_COUNT", 1027)
    evaluation = load_benchmark(ImageNetConfig(**config, allow_partial=True, train=False))
    assert len(evaluation.train) == len(evaluation.validation) == 0
