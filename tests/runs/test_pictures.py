"""What a run says of its pictures: others are refused, whole ones in the place of broken ones are taken."""

import json
from shutil import copytree

import pytest

import tether.tasks.classification
from tether import recipe as recipes
from tether._files import read_json, read_tensors, write_json, write_tensors
from tether.data import load_benchmark
from tether.data.reading import files_digest
from tether.errors import TetherError
from tether.runs.pictures import Pictures

from .test_train import quiet


@pytest.fixture
def options(tiny_recipe, tmp_path):
    """A short run on a copy of the data that a test may change, with a shifted domain that is called train."""
    copytree(tiny_recipe["data"]["train"], tmp_path / "colour")
    copytree(tiny_recipe["data"]["shifted"]["outline"], tmp_path / "outline")
    data = {**tiny_recipe["data"], "train": str(tmp_path / "colour")}
    data["shifted"] = {"train": str(tmp_path / "outline")}
    return {**tiny_recipe, "data": data, "training": {"epochs": 1, "batch_size": 6, "seed": 3}}


def pictures_of(options):
    return Pictures(load_benchmark(recipes.from_plain(options).data))


def break_inside(file):
    """Damage between a whole header and a whole end, which shows only when it is decoded."""
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 255
    file.write_bytes(data)


def kill(*arguments):
    raise KeyboardInterrupt


@pytest.fixture
def stopped(options, tmp_path):
    """A run that stopped at a broken picture of its test, with the whole picture's file."""
    file = tmp_path / "outline" / "cross" / "1.png"
    whole = file.read_bytes()
    break_inside(file)
    with pytest.raises(TetherError, match=r"cross/1\.png(?s:.)*--resume"):
        quiet(options, tmp_path / "runs")
    return tmp_path / "runs" / "tiny-001", file, whole


def test_a_test_domain_of_the_name_of_another_split_hides_no_change_of_it(options, tmp_path):
    outcome = quiet(options, tmp_path / "runs")
    assert set(read_json(outcome.run / "splits.json")) == {
        "train",
        "validation",
        "test colour",
        "test train",
    }
    assert not pictures_of(options).changes(outcome.run)
    left = next(e.image.name for e in outcome.benchmark.train.examples if "cross" in e.image.name)
    (tmp_path / "colour" / left).rename(tmp_path / "colour" / "circle" / "moved.png")
    assert "train" in pictures_of(options).changes(outcome.run)
    with pytest.raises(TetherError, match="train has other pictures, labels or rules"):
        quiet(options, tmp_path / "runs", resume=outcome.run)


def test_splits_of_runs_that_were_made_before_are_understood(options, tmp_path):
    pictures = pictures_of(
        {**options, "data": {**options["data"], "shifted": {"line": f"{tmp_path}/outline"}}}
    )
    flat = {
        name.removeprefix("test "): {
            "pictures": len(split),
            "sha256": split.digest,
            "files": files_digest(split),
        }
        for name, split in pictures.splits.items()
    }
    write_json(tmp_path / "splits.json", flat)
    assert not pictures.changes(tmp_path)
    assert set(pictures.accept(tmp_path)) >= {"test line", "line"}  # written in today's form when it goes on
    write_json(tmp_path / "splits.json", {**flat, "line": {**flat["line"], "files": "others"}})
    assert set(pictures.changes(tmp_path)) == {"test line"}
    with pytest.raises(TetherError, match="test line has other files"):
        pictures.accept(tmp_path)


def test_a_flat_record_in_which_a_test_stands_for_the_training_pictures_is_not_believed(options, tmp_path):
    pictures = pictures_of(options)
    named = {name.removeprefix("test "): own for name, own in pictures.digests.items()}  # the test overwrites
    write_json(tmp_path / "splits.json", named)
    assert list(pictures.changes(tmp_path).values()) == ["train was not there then"]


def test_a_picture_that_breaks_in_evaluation_loses_no_training(options, tmp_path, stopped, monkeypatch):
    path, file, whole = stopped
    file.write_bytes(whole + b"by another program")  # a mended file has another size
    monkeypatch.setattr(tether.tasks.classification.Classification, "loss", None)  # nothing is trained again
    outcome = quiet(options, tmp_path / "runs", resume=path)
    assert len(outcome.test.at(1.0)["train"].predictions) == 12


def test_only_a_picture_that_was_named_as_broken_may_be_another(options, tmp_path, stopped, monkeypatch):
    path, file, whole = stopped
    assert read_json(path / "broken.json") == {"test train": ["cross/1.png"]}
    file.write_bytes(whole + b"by another program")
    other = file.with_name("2.png")
    kept = other.read_bytes()
    other.write_bytes(kept + b"!")
    before = (path / "splits.json").read_bytes()
    with pytest.raises(TetherError, match=r"test train has other files .*\(cross/1\.png, cross/2\.png\)"):
        quiet(options, tmp_path / "runs", resume=path)
    assert (path / "splits.json").read_bytes() == before
    other.write_bytes(kept)
    monkeypatch.setattr(tether.tasks.classification.Classification, "loss", None)  # nothing is trained again
    assert quiet(options, tmp_path / "runs", resume=path).test.at(1.0)["train"].n == 12
    assert not pictures_of(options).changes(path)


@pytest.mark.parametrize("finished", [False, True])
def test_a_mended_picture_may_not_be_another_again(options, tmp_path, stopped, monkeypatch, finished):
    path, file, whole = stopped
    file.write_bytes(whole)
    if finished:
        quiet(options, tmp_path / "runs", resume=path)
    else:  # killed after the mended picture was taken
        monkeypatch.setattr("tether.runs.train._run", kill)
        with pytest.raises(KeyboardInterrupt):
            quiet(options, tmp_path / "runs", resume=path)
        monkeypatch.undo()
    file.write_bytes(whole + b"by another program")
    with pytest.raises(TetherError, match=r"test train has other files .*\(cross/1\.png\)"):
        quiet(options, tmp_path / "runs", resume=path)


def test_a_broken_picture_that_is_not_mended_yet_still_may_be(options, tmp_path, stopped):
    path, file, whole = stopped
    with pytest.raises(TetherError, match=r"cross/1\.png(?s:.)*--resume"):
        quiet(options, tmp_path / "runs", resume=path)
    file.write_bytes(whole)
    assert quiet(options, tmp_path / "runs", resume=path).test.at(1.0)["train"].n == 12


def test_a_picture_that_is_whole_is_not_noted_as_broken(options, tmp_path):
    pictures = pictures_of(options)
    image = pictures.splits["train"].examples[0].image
    assert not pictures.note_broken(tmp_path, f"Cannot read the picture {image}: the disk slept.")
    assert not (tmp_path / "broken.json").exists()


def test_a_picture_that_breaks_training_is_named_with_how_to_go_on(options, tmp_path):
    image = pictures_of(options).splits["train"].examples[4].image
    break_inside(tmp_path / "colour" / image.name)
    with pytest.raises(TetherError, match=r"once the cause is mended.*`tether train --resume .*tiny-001`"):
        quiet(options, tmp_path / "runs")
    assert read_json(tmp_path / "runs" / "tiny-001" / "broken.json") == {"train": [image.name]}


def test_a_replaced_picture_of_equal_size_is_noticed(options, tmp_path, stopped):
    path, file, whole = stopped
    file.write_bytes(whole)
    other = tmp_path / "outline" / "square" / "0.png"
    other.write_bytes(other.read_bytes()[:-20] + bytes(8) + other.read_bytes()[-12:])
    with pytest.raises(TetherError, match=r"square/0\.png"):
        quiet(options, tmp_path / "runs", resume=path)


def test_without_the_hashes_of_files_nothing_is_taken_for_mended(options, tmp_path, stopped):
    path, file, whole = stopped
    file.write_bytes(whole)
    tensors = read_tensors(path / "splits.safetensors")
    tensors["test train"] = pictures_of(options).files["test train"]  # of today, not of then
    write_tensors(path / "splits.safetensors", tensors)
    with pytest.raises(TetherError, match=r"other files under the names of then \(some\)"):
        quiet(options, tmp_path / "runs", resume=path)


def test_a_run_that_does_not_say_what_it_was_made_from_is_not_continued(options, tmp_path):
    outcome = quiet(options, tmp_path / "runs", test=False)
    for name in ("base.json", "splits.json", "config.json"):
        path = copytree(outcome.run, tmp_path / f"without {name}")
        (path / name).unlink()
        with pytest.raises(
            TetherError, match=rf"{name} is missing.*Put the file back from a copy, or start a new run"
        ):
            quiet(options, tmp_path / "runs", resume=path)
        assert not (path / name).exists()


def test_altered_answers_are_refused(options, tmp_path):
    outcome = quiet(options, tmp_path / "runs")
    scores = outcome.run / "scores.safetensors"
    tensors = read_tensors(scores)
    key = next(key for key in tensors if key.endswith('"predictions"]'))
    write_tensors(scores, {**tensors, key: (tensors[key] + 1) % 3})
    with pytest.raises(
        TetherError, match=r"scores\.safetensors was changed after the run.*delete result\.json"
    ):
        quiet(options, tmp_path / "runs", resume=outcome.run)
    result = json.loads((outcome.run / "result.json").read_text())
    del result["scores_sha256"]  # as in runs that were made before
    write_json(outcome.run / "result.json", result)
    assert quiet(options, tmp_path / "runs", resume=outcome.run).alpha == outcome.alpha
