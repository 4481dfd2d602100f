"""What is found, and what is embedded again."""

import json
import os

import pytest
import torch
from PIL import Image

import tether
from tether.data.reading import read_image
from tether.data.records import ImageRef
from tether.data.transforms import test_transform as as_the_model_wants
from tether.errors import TetherError
from tether.evaluation import picture_index
from tether.evaluation.picture_index import index_pictures, search

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture
def model(tiny_model):
    return tether.load(tiny_model)


@pytest.fixture
def folder(tmp_path):
    """Five pictures, two of them in a folder within."""
    (tmp_path / "pictures" / "inner").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        where = tmp_path / "pictures" / ("inner" if number > 2 else ".")
        Image.new("RGB", (20, 24 + number), colour).save(where / f"{colour}.png")
    return tmp_path / "pictures"


@pytest.fixture
def embedded(model, monkeypatch):
    """The number of pictures of each batch that the model was given."""
    counts = []

    def counting(module, pixels, real=model.image_features):
        counts.append(len(pixels))
        return real(module, pixels)

    model.image_features = counting
    return counts


def directly(model, path, text):
    """Cosine similarity of one picture and a text without any index."""
    ref = ImageRef(str(path.parent), path.name)
    with torch.no_grad():
        image = model.encode_image(as_the_model_wants(model.image)(read_image(ref))[None])
        return float(image @ model.encode_text(model.tokenize([text])).T)


def test_the_best_pictures_come_first_with_their_similarity(model, folder, tmp_path):
    found = search(model, folder, "a red apple", 3, cache=tmp_path / "cache")
    expected = {path.name: directly(model, path, "a red apple") for path in folder.rglob("*.png")}
    best = sorted(expected, key=expected.get, reverse=True)[:3]
    assert [match.image.name.split("/")[-1] for match in found] == best
    assert [match.score for match in found] == pytest.approx([expected[name] for name in best], abs=1e-5)
    assert all(os.path.isfile(match.image.path) for match in found)
    assert len(search(model, folder, "a", 99, cache=tmp_path / "cache")) == 5


def test_only_new_and_changed_pictures_are_embedded(model, folder, tmp_path, embedded):
    cache = tmp_path / "cache"
    first = index_pictures(model, folder, cache, batch_size=2)
    assert embedded == [2, 2, 1]
    again = index_pictures(model, folder, cache)
    assert (
        embedded == [2, 2, 1] and torch.equal(first.features, again.features) and again.names == first.names
    )
    before = os.stat(folder / "red.png")
    Image.new("RGB", (20, 24), "pink").save(folder / "red.png")
    os.utime(folder / "red.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # changed, though it looks old
    (folder / "green.png").unlink()
    Image.new("RGB", (8, 8), "grey").save(folder / "new.png")
    third = index_pictures(model, folder, cache)
    assert embedded[3:] == [2] and third.names == (
        "blue.png",
        "inner/black.png",
        "inner/white.png",
        "new.png",
        "red.png",
    )
    assert torch.equal(third.features[0], first.features[first.names.index("blue.png")])
    assert not torch.equal(third.features[4], first.features[first.names.index("red.png")])
    fresh = index_pictures(model, folder, tmp_path / "other")
    torch.testing.assert_close(third.features, fresh.features)


def test_every_model_and_folder_has_an_index_of_its_own(model, make_tiny_model, folder, tmp_path, embedded):
    cache = tmp_path / "cache"
    index_pictures(model, folder, cache)
    index_pictures(tether.load(make_tiny_model(1)), folder, cache)
    index_pictures(model, folder / "inner", cache)
    assert len(list(cache.iterdir())) == 3 and embedded == [5, 2]
    attached = tether.attach(model, tether.RAdapterConfig(drop=0.0), seed=0)
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.05)
    changed = index_pictures(model, folder, cache)
    assert embedded == [5, 2, 5]  # what is attached counts
    attached.merge(1.0)
    merged = index_pictures(model, folder, cache)
    torch.testing.assert_close(merged.features, changed.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "other", "no tensors", "no list", "not JSON", "older"])
def test_an_index_that_is_not_whole_is_made_again(model, folder, tmp_path, embedded, damage):
    cache = tmp_path / "cache"
    first = index_pictures(model, folder, cache)
    (home,) = cache.iterdir()
    tensors, description = home / "features.safetensors", home / "index.json"
    match damage:
        case "cut":
            tensors.write_bytes(tensors.read_bytes()[:-7])
        case "other":
            data = bytearray(tensors.read_bytes())
            data[-1] ^= 1
            tensors.write_bytes(data)
        case "no tensors":
            tensors.unlink()
        case "no list":
            description.unlink()
        case "not JSON":
            description.write_text(description.read_text()[:-9])
        case "older":
            description.write_text(json.dumps({**json.loads(description.read_text()), "format": "0"}))
    assert torch.equal(index_pictures(model, folder, cache).features, first.features)
    assert embedded == [5, 5]
    index_pictures(model, folder, cache)
    assert embedded == [5, 5]


def test_a_process_that_dies_while_it_writes_leaves_the_index_as_it_was_or_none(
    model, folder, tmp_path, embedded, monkeypatch
):
    cache = tmp_path / "cache"
    index_pictures(model, folder, cache)
    Image.new("RGB", (8, 8)).save(folder / "new.png")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(picture_index, "write_json", die)  # the tensors are new, the list is old
        with pytest.raises(KeyboardInterrupt):
            index_pictures(model, folder, cache)
    assert len(index_pictures(model, folder, cache).names) == 6


def test_what_was_embedded_is_kept_when_it_is_stopped(model, folder, tmp_path, embedded):
    def stop(what, done, total):
        assert (what, total) == ("pictures", 5)
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_pictures(model, folder, tmp_path / "cache", batch_size=2, progress=stop)
    assert len(index_pictures(model, folder, tmp_path / "cache").names) == 5 and embedded == [2, 2, 1]


def test_pictures_that_cannot_be_read_are_told_and_tried_again(model, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 of 6 pictures in .* not searched\. Cannot read .*broken.png"):
        index = index_pictures(model, folder, tmp_path / "cache")
    assert len(index.names) == 5
    Image.new("RGB", (8, 8)).save(folder / "broken.png")
    assert len(index_pictures(model, folder, tmp_path / "cache").names) == 6


def test_a_name_that_is_no_utf8_is_told(model, folder, tmp_path):
    try:
        Image.new("RGB", (8, 8)).save(os.fsencode(folder) + b"/b\xff.png", "png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.warns(UserWarning, match=r"1 of 6 pictures .*b\\udcff.png' is no UTF-8; rename"):
        assert len(index_pictures(model, folder, tmp_path / "cache").names) == 5


def test_the_cache_is_in_the_users_folder_for_caches(model, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    search(model, folder, "a", 1)
    assert len(list((tmp_path / "mine" / "tether" / "pictures").iterdir())) == 1


def test_the_model_keeps_its_mode(model, folder, tmp_path):
    model.train()
    search(model, folder, "a", 1, cache=tmp_path / "cache")
    assert model.module.training


def test_what_cannot_be_searched_is_refused(model, folder, tmp_path, embedded):
    cache = tmp_path / "cache"
    for text, k, words in (("  ", 5, "the text is empty"), ("a", 0, "at least 1; found 0")):
        with pytest.raises(TetherError, match=words):
            search(model, folder, text, k, cache=cache)
    with pytest.raises(TetherError, match="There is no folder"):
        search(model, tmp_path / "none", "a", cache=cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TetherError, match=r"There is no picture in .*empty that can be read"):
        search(model, tmp_path / "empty", "a", cache=cache)
    (tmp_path / "file").touch()
    with pytest.raises(TetherError, match=r"cannot be kept in .*: Not a directory\. Name another folder"):
        search(model, folder, "a", cache=tmp_path / "file")
    assert not embedded  # said before any work is done
