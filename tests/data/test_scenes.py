"""The built-in scenes: exact, the same every time, and by different designers on every side."""

import pickle

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tether.config import build
from tether.data import scenes_composing
from tether.data.checking import require_readable
from tether.data.icon_shift import LOOKS, captioned
from tether.data.reading import file_digests, files_digest, read_image
from tether.data.scenes import CLASSES, ScenesConfig, drawings
from tether.data.scenes_composing import SMALLEST, VISIBLE, compose
from tether.data.scenes_drawing import cut_out, silhouette
from tether.data.targets import IGNORE, bounds
from tether.errors import TetherError
from tether.families import DataConfig

SMALL = dict(size=96, train_pictures=8, validation_pictures=2, test_pictures=5)


@pytest.fixture(scope="module")
def benchmark():
    return ScenesConfig(**SMALL).load()


def scenes_of(split):
    return [compose(example.image.studio, example.image.number) for example in split.examples]


def test_boxes_are_the_bounds_of_masks_and_masks_share_no_pixel(benchmark):
    for split in (benchmark.train, benchmark.tests["line"], benchmark.tests["emoji"]):
        for scene in scenes_of(split):
            semantic, objects = scene.target.semantic, scene.target.objects
            assert scene.pixels.shape == (96, 96, 3) and semantic.shape == (96, 96)
            assert objects.masks.sum(0).max() <= 1
            for mask, box, label, area in zip(
                objects.masks, objects.boxes, objects.labels, objects.areas, strict=True
            ):
                assert tuple(box) == bounds(mask) and area == mask.sum() >= SMALLEST
                assert (semantic[mask] == label).all()
            background = ~objects.masks.any(0)
            assert set(np.unique(semantic[background])) <= {IGNORE, len(CLASSES)}


def test_what_is_hidden_too_far_is_in_no_box_and_ignored():
    owner = np.full((40, 40), -1, np.int16)
    owner[:10, :10] = 0  # 100 of 400 pixels are seen
    owner[20:40, 20:40] = 1
    target = scenes_composing._target(owner, [3, 5], [400, 400], 20)
    assert VISIBLE * 400 > 100
    assert target.objects.labels.tolist() == [5] and target.objects.boxes.tolist() == [[20, 20, 40, 40]]
    assert (target.semantic[:10, :10] == IGNORE).all() and target.semantic[0, 39] == 20


def test_scenes_depend_on_seed_split_and_number_alone(benchmark):
    again = pickle.loads(pickle.dumps(ScenesConfig(**SMALL).load()))
    scenes_composing.compose.cache_clear()
    backward = [read_image(example.image) for example in reversed(again.train.examples)][::-1]
    forward = [read_image(example.image) for example in benchmark.train.examples]
    assert all(map(np.array_equal, map(np.asarray, forward), map(np.asarray, backward)))
    assert len({picture.tobytes() for picture in forward}) == 8
    assert benchmark.train.digest == again.train.digest
    for change in (dict(seed=1), dict(size=100), dict(fold=1), dict(classes=CLASSES[:5])):
        other = ScenesConfig(**SMALL | change).load()
        assert other.train.digest != benchmark.train.digest, change
        assert not np.array_equal(
            np.asarray(read_image(other.train.examples[0].image)), np.asarray(forward[0])
        )


@pytest.mark.parametrize(
    ("fold", "look"), [(0, "colour"), (1, "colour"), (2, "colour"), (0, "line"), (1, "solid")]
)
def test_nobody_draws_on_two_sides(fold, look):
    benchmark = ScenesConfig(fold=fold, train_on=look, **SMALL).load()
    family = {image: designer for name in LOOKS for image, _, designer in captioned(name)}

    def by(split):
        images = (image for own in split.examples[0].image.studio.drawings for image in own)
        return {family.get(image, "noto") for image in images}

    tested = set().union(*map(by, benchmark.tests.values()))
    assert not by(benchmark.train) & by(benchmark.validation)
    assert not tested & (by(benchmark.train) | by(benchmark.validation))
    drawn = benchmark.train.examples[0].image.studio.drawings
    assert all(drawn) and benchmark.in_distribution == look and benchmark.tests[look].domain == look


def test_drawings_of_scenes_are_those_of_their_studio_and_show_the_labels(benchmark):
    split = benchmark.tests["line"]
    thing = {image: name for image, name, _ in captioned("line")}
    for scene in scenes_of(split):
        names = [thing[image] for image in scene.drawn]
        seen = [CLASSES[label] for label in scene.target.objects.labels]
        assert 2 <= len(names) <= scenes_composing.MOST_OBJECTS and set(seen) <= set(names)


def test_tests_are_the_same_scenes_in_other_looks(benchmark):
    assert list(benchmark.tests) == ["colour", *(look for look in LOOKS if look != "colour")]
    labels = {
        look: [
            [CLASSES[label] for label in scene.target.objects.labels]
            for scene in scenes_of(benchmark.tests[look])
        ]
        for look in ("colour", "line")
    }
    same = sum(one == other for one, other in zip(*labels.values(), strict=True))
    assert same >= 3  # what is hidden differs a little


def test_the_look_emoji_has_a_vendor_of_emoji_shift_too():
    found = drawings("emoji", frozenset(), CLASSES)
    assert {image.root.rpartition("/")[2] for images in found.values() for image in images} == {"noto.zip"}
    assert sum(map(bool, found.values())) >= 15


def test_a_silhouette_holds_the_inside_of_an_outline_even_with_a_gap():
    picture = Image.new("RGB", (60, 60), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 10, 50, 50), outline="black", width=3)
    whole = silhouette(np.asarray(picture))
    assert whole[30, 30] and not whole[2, 2] and abs(whole.sum() - np.pi * 20.5**2) < 60
    draw.rectangle((46, 29, 55, 31), fill="white")  # a gap of three pixels
    assert abs(int(silhouette(np.asarray(picture)).sum()) - int(whole.sum())) < 30
    draw.rectangle((40, 20, 55, 40), fill="white")  # wide open
    assert not silhouette(np.asarray(picture))[30, 30]


def test_a_drawing_to_the_border_and_an_empty_one_are_cut_out(tmp_path):
    from tether.data import ImageRef

    Image.new("RGB", (30, 20), "red").save(tmp_path / "full.png")
    Image.new("RGB", (30, 20), "white").save(tmp_path / "empty.png")
    full = cut_out(ImageRef(str(tmp_path), "full.png"))
    assert full.size == (30, 20) and np.asarray(full)[..., 3].min() == 255
    assert cut_out(ImageRef(str(tmp_path), "empty.png")).size == (1, 1)


def test_a_made_picture_is_read_checked_and_hashed_like_one_in_a_file(benchmark):
    require_readable(benchmark)
    assert len(np.unique(file_digests(benchmark.train), axis=0)) == len(benchmark.train)
    assert files_digest(benchmark.train) != files_digest(benchmark.validation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fold=3), "folds"),
        (dict(train_on="emoji"), "can be trained on"),
        (dict(classes=["house", "hous"]), "no thing 'hous'; did you mean 'house'"),
        (dict(classes=["house"]), "two things"),
        (dict(classes=["house", "book", "house"]), "each once"),
        (dict(size=32), "64 pixels"),
        (dict(test_pictures=0), "expected 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(TetherError, match=message):
        build(DataConfig, {"method": "scenes", **options}, "data")
