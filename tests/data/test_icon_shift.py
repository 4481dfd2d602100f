"""The built-in benchmark of icons: split by designer, read as described, refused where it cannot be."""

import json
import zipfile

import pytest
from PIL import Image

from tether.data import IconShiftConfig, load_benchmark, read_image
from tether.data import icon_shift as module
from tether.errors import TetherError

DRAWN = {
    "ann": ("line", "solid", "colour", "pixel"),
    "bob": ("line", "solid", "colour", "hand-drawn"),
    "cy": ("line", "solid", "duotone"),
    "dee": ("line", "solid", "emoji"),
    "eve": ("line", "duotone"),
    "fay": ("line", "emoji"),
}
FOLDS = {"ann": 0, "bob": 1, "cy": 2, "dee": 0, "eve": 1, "fay": 2}
VALIDATION = {
    "line": [["bob"], ["cy"], ["ann"]],
    "solid": [["bob"], ["cy"], ["ann"]],
    "colour": [[], [], []],
}
TRAINED = {"line": ["bell", "bus"], "solid": ["bell", "bus"], "colour": ["bus"]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Two things by six families, as `makers.icon_shift` packs them."""
    things = ("bell", "bus")
    pictures = {
        look: {
            thing: [f"{family}/{thing}-{look}.webp" for family in DRAWN if look in DRAWN[family]]
            for thing in things
        }
        for look in module.LOOKS
    }
    for look, files in pictures.items():
        with zipfile.ZipFile(tmp_path / f"{look}.zip", "w") as archive:
            for name in [name for thing in things for name in files[thing]]:
                with archive.open(name, "w") as file:
                    colour = (200 if "bus" in name else 0, 0, 0)
                    Image.new("RGB", (8, 8), colour).save(file, "webp", lossless=True)
    index = {
        "classes": things,
        "families": {family: {"fold": fold, "sets": [family]} for family, fold in FOLDS.items()},
        "validation": VALIDATION,
        "trained": TRAINED,
        "pictures": pictures,
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    module._index.cache_clear()
    yield tmp_path
    module._index.cache_clear()


def families(split):
    return {example.image.name.split("/")[0] for example in split.examples}


@pytest.mark.parametrize("fold", range(3))
def test_nobodys_drawings_are_in_two_of_training_validation_and_test(fold):
    benchmark = load_benchmark(IconShiftConfig(fold=fold, train_on="line"))
    tested = {family for family in FOLDS if FOLDS[family] == fold}
    assert families(benchmark.validation) == set(VALIDATION["line"][fold])
    assert families(benchmark.train) == set(DRAWN) - tested - families(benchmark.validation)
    assert families(benchmark.tests["line"]) == tested
    for look, split in benchmark.tests.items():
        assert families(split) == {family for family in tested if look in DRAWN[family]}


def test_over_the_folds_every_picture_is_tested_once():
    tested = [
        (look, example.image.name)
        for fold in range(3)
        for look, split in load_benchmark(IconShiftConfig(fold=fold, train_on="line")).tests.items()
        for example in split.examples
    ]
    assert len(tested) == len(set(tested)) == 2 * sum(map(len, DRAWN.values()))


def test_training_is_on_one_look_and_the_others_are_shifted():
    benchmark = load_benchmark(IconShiftConfig(train_on="solid", fold=1))
    assert benchmark.in_distribution == benchmark.train.domain == benchmark.validation.domain == "solid"
    assert set(benchmark.tests) == {"solid", "line", "duotone", "colour", "hand-drawn"}
    assert "pixel, emoji" in benchmark.notes[-1]
    chosen = load_benchmark(IconShiftConfig(train_on="solid", fold=1, shifted=("line", "colour")))
    assert set(chosen.tests) == {"solid", "line", "colour"}


def test_an_example_is_the_picture_of_its_class():
    benchmark = load_benchmark(IconShiftConfig(train_on="line"))
    for example in benchmark.train.examples:
        thing = benchmark.class_names[example.label]
        assert example.captions == (thing,)
        assert read_image(example.image).getpixel((4, 4)) == ({"bell": 0, "bus": 200}[thing], 0, 0)
    assert {example.identity for example in benchmark.tests["emoji"].examples} == {
        "bell by dee",
        "bus by dee",
    }


def test_a_thing_that_is_not_trained_on_is_in_no_split():
    benchmark = module.load(IconShiftConfig(train_on="colour"))
    assert benchmark.class_names == ("bus",) and set(module.class_names()) == {"bell", "bus"}
    for split in (benchmark.train, benchmark.validation, *benchmark.tests.values()):
        assert all("bus" in example.image.name and example.label == 0 for example in split.examples)


def test_captioned_pictures_are_those_of_the_look():
    assert [(name, family) for _, name, family in module.captioned("pixel")] == [
        ("bell", "ann"),
        ("bus", "ann"),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fold": 3}, "folds 0, 1 and 2, not 3"),
        ({"train_on": "pixel"}, "too few designers"),
        ({"shifted": ("coluor",)}, "'colour'"),
        ({"shifted": ("colour",)}, "cannot be a shifted test"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(TetherError, match=told):
        IconShiftConfig(**options)


def test_an_installation_without_the_pictures_is_told(folder):
    (folder / "index.json").unlink()
    with pytest.raises(TetherError, match="install tether again"):
        load_benchmark(IconShiftConfig())
