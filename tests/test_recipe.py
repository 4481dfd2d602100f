"""Recipes: every one that ships can be read, written out and read again; wrong ones are refused at once."""

import pytest

from tether import recipe as recipes
from tether.config import made
from tether.errors import TetherError
from tether.families import ObjectiveConfig
from tether.recipe_files import names


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_survives_the_way_through_plain_data(name):
    recipe = recipes.read(name)
    assert recipe.name == name
    assert recipes.from_plain(recipes.to_plain(recipe)) == recipe


def test_the_main_recipe_is_the_papers_method():
    recipe = recipes.read("r-adapter")
    assert recipe.adapter.rank is None and recipe.adapter.drop == 0.2
    assert (recipe.objective.margin, recipe.objective.smoothing) == (0.05, 0.02)
    assert recipe.accumulation is not None and recipe.alpha.value == "auto"


def test_overrides_reach_nested_options():
    recipe = recipes.read(
        "r-adapter", ["adapter.rank={image: 4, text: 0}", "training.epochs=3", "alpha.value=0.3"]
    )
    assert (
        recipe.adapter.rank == {"image": 4, "text": 0}
        and recipe.training.epochs == 3
        and recipe.alpha.value == 0.3
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["adapter.rnak=4"], "rank"),
        (["objective.method=mpm_nc"], "mpm_nce"),
        (["adapter={method: frozen}"], "cross_entropy"),
        (["alpha.value=best"], "auto"),
        (["alpha.value=1.5"], "from 0 to 1"),
        (["alpha.value=.nan"], "alpha.value takes a finite number, found nan"),
        (["alpha.value={image: 0.5, text: -0.1}"], "from 0 to 1"),
        (["alpha.grid=[0, 2]"], "from 0 to 1"),
        (["alpha.value={image: 0.5}"], "both"),
        (["alpha.rule=typo"], "alpha.rule"),
        (["accumulation.correction=run_lenght"], "did you mean 'run_length'"),
        (["objective.method=cross_entropy", "objective.smoothing=3"], "less than 1"),
        (["optimizer.lr=0"], "positive"),
        (["data.fold=7"], "folds 0, 1 and 2"),
        (["training.seed=" + "9" * 30], "training.seed takes no number beyond 64 bits"),
        (["optimizer.lr=0", "name=b"], "^r-adapter with optimizer.lr=0 name=b: "),
    ],
)
def test_a_wrong_recipe_is_refused_when_it_is_read(overrides, told):
    with pytest.raises(TetherError, match=told):
        recipes.read("r-adapter", overrides)


def test_an_unknown_recipe_names_its_neighbours():
    with pytest.raises(TetherError, match="r-adapter"):
        recipes.read("r-adaptr")


def test_a_recipe_that_extends_another_says_only_what_differs(tmp_path):
    (tmp_path / "slow.yaml").write_text("extends: r-adapter\nname: slow\noptimizer: {lr: 1.0e-5}\n")
    (tmp_path / "own.yaml").write_text(
        "extends: slow.yaml\nname: own\nadapter: {drop: 0.0}\nobjective: {method: info_nce}\n"
        "search: {optimizer.lr: [1.0e-4, 3.0e-4]}\n"
    )
    base, own = recipes.read("r-adapter"), recipes.read(tmp_path / "own.yaml")
    assert own.optimizer.lr == 1e-5 and own.schedule == base.schedule
    assert own.adapter.drop == 0.0 and own.adapter.scale == base.adapter.scale
    assert own.objective == made(ObjectiveConfig, "info_nce")
    assert own.search == base.search | {"optimizer.lr": (1e-4, 3e-4)}


def test_recipes_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    with pytest.raises(TetherError, match="extends itself"):
        recipes.read(tmp_path / "a.yaml")


def test_a_wrong_option_in_a_file_names_the_file(tmp_path):
    (tmp_path / "own.yaml").write_text("extends: r-adapter\noptimizer: {lrr: 1e-5}\n")
    with pytest.raises(TetherError, match=r"own\.yaml: There is no option 'optimizer\.lrr'"):
        recipes.read(tmp_path / "own.yaml")


@pytest.mark.parametrize("parent", ("[r-adapter]", "{a: 1}", "3", "false"))
def test_a_recipe_extends_one_other(parent, tmp_path):
    (tmp_path / "own.yaml").write_text(f"extends: {parent}\nname: own\n")
    with pytest.raises(TetherError, match=r"own\.yaml: extends takes the name or path of one recipe"):
        recipes.read(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optimizer=adamw", r"optimizer takes options by name; for this method write \{method: adamw\}"),
        ("regularizers=[car_ft]", r"regularizers\[0\] takes options by name; .* \{method: car_ft\}"),
        ("optimizer=adam", r"with a method \(adamw, .*found 'adam'"),
        ("adapter=[1]", r"with a method \(adaptformer, .*found \[1\]"),
    ],
)
def test_a_method_by_its_bare_name_is_told_how_to_write_it(word, told):
    with pytest.raises(TetherError, match=told):
        recipes.read("full", [word])
