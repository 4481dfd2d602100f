from pathlib import Path

import pytest

from tether.data.tables import resolve_columns, split_of, texts_of
from tether.errors import TetherError

TABLE = Path("t.csv")
OURS = ("path", "caption", "domain")


def test_columns_by_their_names_or_those_given():
    found = ["domain", "file", "captions"]
    expected = {"path": 1, "caption": 2, "domain": 0}
    assert resolve_columns(TABLE, found, OURS, {"path": "file"}, {"path"}) == expected
    assert resolve_columns(TABLE, ["path"], OURS, {}, {"path"}) == {"path": 0}
    with pytest.raises(TetherError, match=r"t\.csv has two columns called 'path'"):
        resolve_columns(TABLE, ["path", "path"], OURS, {}, {"path"})
    with pytest.raises(
        TetherError, match=r"no column 'path'; did you mean 'paths'\? .*columns=\{'path': ...\}"
    ):
        resolve_columns(TABLE, ["paths"], OURS, {}, {"path"})
    with pytest.raises(TetherError, match="no column 'look'"):  # renamed, so it is wanted
        resolve_columns(TABLE, ["path"], OURS, {"domain": "look"}, {"path"})
    with pytest.raises(TetherError, match="'domains', which looks like a misspelt 'domain'"):
        resolve_columns(TABLE, ["path", "domains"], OURS, {}, {"path"})


def test_texts_of_a_cell():
    assert texts_of(" a | b||", "|") == ("a", "b")
    assert texts_of(["a|b", " ", None], "|") == ("a|b",)
    assert texts_of(None, "|") == texts_of("", "|") == ()


def test_splits_by_their_usual_names():
    assert [split_of(name, "row 1") for name in ("train", " Val", "valid", "validation", "TEST")] == [
        "train",
        *["validation"] * 3,
        "test",
    ]
    with pytest.raises(TetherError, match="row 1: the split is ''; known: 'train', 'validation', 'test'"):
        split_of(None, "row 1")
