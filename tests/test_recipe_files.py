"""Recipes as files: each that ships says in a line what it is."""

import pytest

from tether.errors import TetherError
from tether.recipe_files import description, find, names, read_options


def test_each_shipped_recipe_is_described_in_a_line():
    assert {"r-adapter", "full", "flyp", "wise-ft", "linear-probe"} <= set(names())
    for name in names():
        assert 20 < len(description(name)) <= 100 and not description(name).startswith("#"), name


def test_a_recipe_is_found_by_name_or_path(tmp_path):
    assert find("full").name == "full.yaml" and find(tmp_path / "own.yaml") == tmp_path / "own.yaml"
    with pytest.raises(TetherError, match="did you mean 'r-adapter'"):
        find("r-adaptr")


def test_what_extends_another_is_laid_over_it(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "extends: full\nname: own\noptimizer: {lr: 1}\nimports: [mine.py, torch]"
    )
    own = read_options(tmp_path / "own.yaml")
    assert own["optimizer"] == {**read_options("full")["optimizer"], "lr": 1}
    assert own["imports"] == [str((tmp_path / "mine.py").resolve()), "torch"]
