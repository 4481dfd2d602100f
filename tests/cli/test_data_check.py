"""`tether data check`: everything that is wrong with a data set at once, before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tether.cli import main


@pytest.fixture
def pairs(pixel_data, tmp_path):
    """A copy of the pairs that may be spoilt, and the options that describe it."""
    root = shutil.copytree(Path(pixel_data["train"]).parent, tmp_path / "pairs")
    options = {**pixel_data, "train": str(root / "light"), "classes": str(root / "classes.txt")}
    return root, {**options, "shifted": {"dark": str(root / "dark")}}


def said(capsys, options, folder, *words):
    """Exit code and lines of the command for options in a file."""
    (folder / "mine.yaml").write_text(json.dumps({"data": options}))  # JSON is YAML
    code = main(["data", "check", str(folder / "mine.yaml"), *words])
    return code, capsys.readouterr().out.splitlines()


def test_nothing_is_wrong_with_sound_data(pairs, tmp_path, capsys):
    assert said(capsys, pairs[1], tmp_path) == (0, ["light: 36 pictures, 0 problems, 0 notes."])


def test_all_that_is_wrong_with_masks_is_listed(pairs, tmp_path, capsys):
    root, options = pairs
    (root / "classes.txt").write_text("0 red\n1 green\n2 blue\n3 ground\n7 unicorn\n255 void\n")
    small, odd = sorted((root / "dark" / "masks").iterdir())[:2]
    Image.new("L", (10, 10)).save(small)
    Image.new("L", (48, 40), 9).save(odd)
    code, lines = said(capsys, options, tmp_path)
    assert code == 2 and lines[-1] == "light: 36 pictures, 3 problems, 3 notes."
    text = "\n".join(lines)
    assert "train: 1 of 5 classes occur in no picture: 'unicorn'." in lines
    assert f"{small.name}: it has 10 × 10 pixels, and its picture 48 × 40" in text
    assert f"{odd.name}: it holds the value 9 on 1,920 pixels, which stands for no class" in text
    assert "(may be meant so) validation: 1 of 5 classes occur in no picture: 'unicorn'." in lines


def test_pictures_of_classes_are_checked_too(tiny_data, tmp_path, capsys):
    root = shutil.copytree(Path(tiny_data["train"]).parent, tmp_path / "own")
    (root / "outline" / "cross" / "2.png").write_bytes(b"no picture")
    words = [f"data.train={root / 'colour'}", f"data.shifted.outline={root / 'outline'}"]
    code, lines = said(capsys, tiny_data, tmp_path, *words)
    assert code == 2 and lines[-1].endswith("42 pictures, 1 problems, 0 notes.")
    assert lines[0].startswith("test outline: ") and "cross/2.png" in lines[0]


def test_options_alone_will_do_and_nothing_is_refused(pixel_data, capsys):
    words = [f"data.{name}={pixel_data[name]}" for name in ("method", "train", "classes")]
    assert main(["data", "check", *words]) == 0
    assert "light: 30 pictures, 0 problems" in capsys.readouterr().out
    assert main(["data", "check"]) == 2
    assert "Say which data: a YAML file with its options" in capsys.readouterr().err


def test_pictures_without_classes_have_no_zero_shot_accuracy(pixel_data, capsys):
    words = [f"data.{name}={pixel_data[name]}" for name in ("method", "train", "classes")]
    assert main(["zero-shot", *words]) == 2
    assert (
        "where pictures have masks or boxes, as in light. Train a head on it first" in capsys.readouterr().err
    )
