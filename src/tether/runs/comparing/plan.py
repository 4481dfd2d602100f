"""What a comparison is of: recipes, seeds, folds and trials, and the single runs that these stand for."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from tether.config import plain
from tether.errors import TetherError
from tether.recipe import Recipe, from_plain, read, to_plain
from tether.recipe_files import names
from tether.runs.comparing import tuning
from tether.runs.comparing.jobs import Job
from tether.runs.comparing.results import ZERO_SHOT, row_name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared: all that a process must know to tell which runs are wanted.

    Attributes:
        recipes: each with its own name, model or data. What is on the same data goes into one table; where the data
            differ, every recipe is to be on each of them.
        root: where runs are made, or found finished; other processes that compare the same there share the work.
        seeds: a run for each.
        folds: of data that has folds; a seed's answers on the test pictures of all folds are pooled.
        tune: trials that each method gets to choose its settings by, on the validation pictures of `tune_fold`
            with `tune_seed`; 0 for the settings of the recipes. What these pictures show is no test in any fold.

    Raises:
        TetherError: the recipes cannot stand in tables together, or what is asked for does not fit them.
    """

    recipes: Sequence[Recipe]
    root: Path
    seeds: Sequence[int] = (0,)
    folds: Sequence[int] = (0,)
    tune: int = 0
    tune_seed: int = 0
    tune_fold: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be put into tables."""
        for what, values in (("recipe", self.recipes), ("seed", self.seeds), ("fold", self.folds)):
            if not values:
                raise TetherError(f"A comparison needs at least one {what}.")
        for what, values in (("seed", self.seeds), ("fold", self.folds)):
            _refuse_twice(what, values)
        names = {recipe.name for recipe in self.recipes}
        if ZERO_SHOT in names:
            raise TetherError(f"No recipe may be called {ZERO_SHOT!r}: that row is always there.")
        for numbers in self.tables:
            _check_table([self.recipes[number] for number in numbers], names)
        if {*self.folds, self.tune_fold} != {0} and not all(hasattr(r.data, "fold") for r in self.recipes):
            raise TetherError("Only the built-in data has folds; leave them out.")
        if self.tune < 0:
            raise TetherError(f"The number of trials per method is 0 or more, found {self.tune}.")
        if self.tune and not any(recipe.search for recipe in self.recipes):
            raise TetherError(
                "There is nothing to tune: no recipe has a search block, such as "
                "search: {optimizer.lr: [1e-5, 1e-4]}."
            )
        for recipe in self.recipes:
            self.points(recipe)

    @cached_property
    def tables(self) -> list[list[int]]:
        """The numbers of the recipes by their data, in order."""
        tables: dict[str, list[int]] = {}
        for number, recipe in enumerate(self.recipes):
            data = to_plain(variant(recipe, 0, 0))["data"]
            tables.setdefault(json.dumps(data, sort_keys=True), []).append(number)
        return list(tables.values())

    @cached_property
    def labels(self) -> list[str]:
        """The recipes' names for people, with the model and the data where there are several."""
        models = [recipe.model for recipe in self.recipes]
        labels = [row_name(recipe.name, recipe.model, models) for recipe in self.recipes]
        for table, numbers in enumerate(self.tables, start=1):
            for number in numbers if len(self.tables) > 1 else ():
                labels[number] += f", data set {table}"
        return labels

    def points(self, recipe: Recipe) -> list[tuning.Point]:
        """The settings of a recipe that are to be tried; none without a search, or without a budget."""
        return tuning.points(recipe, self.tune, seed=self.tune_seed) if self.tune and recipe.search else []

    def trials(self, number: int) -> list[Job]:
        """A run for each of the points of a recipe, on validation pictures alone."""
        return [
            Job(
                recipe=variant(point.recipe, self.tune_seed, self.tune_fold),
                label=f"tuning {self.labels[number]}: "
                + ", ".join(" ".join(word) for word in point.words.items()),
                test=False,
                may_diverge=True,
            )
            for point in self.points(self.recipes[number])
        ]

    def runs(self, number: int, chosen: Recipe) -> list[Job]:
        """The runs of a recipe with the settings that were chosen: by seed and, of each, by fold."""
        return [
            Job(
                recipe=variant(chosen, seed, fold),
                label=f"{self.labels[number]}, seed {seed}, fold {fold}",
            )
            for seed in self.seeds
            for fold in self.folds
        ]


def read_recipes(
    sources: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    models: Sequence[str] = (),
    data: Sequence[str] = (),
) -> list[Recipe]:
    """Recipes by name, by path, or all of a folder, with the same overrides applied to each.

    Of a folder come its YAML files in the order of their names, without those that begin with "_": these are
    there for others to extend.

    Args:
        models: each recipe on each of these; on its own by default.
        data: each recipe on each of these data sets, as overrides (`data={method: folder, …}`); on its own by default.

    Raises:
        TetherError: one is not there or not right, an override does not fit it, or a folder has none.
    """
    found: list[str | Path] = []
    for source in sources:
        if str(source) in names() or not Path(source).is_dir():
            found.append(source)
            continue
        inside = [path for path in sorted(Path(source).iterdir()) if path.suffix in (".yaml", ".yml")]
        inside = [path for path in inside if not path.name.startswith("_")]
        if not inside:
            raise TetherError(f"There is no recipe in the folder {source}: expected files that end in .yaml.")
        found += inside
    on_models = [[f"model={json.dumps(model)}"] for model in models] or [[]]
    on_data = [[options] for options in data] or [[]]
    return [
        read(source, [*options, *model, *overrides])
        for options, model, source in product(on_data, on_models, found)
    ]


def variant(recipe: Recipe, seed: int, fold: int) -> Recipe:
    """A recipe as one run has it."""
    options = {**to_plain(recipe), "search": {}}
    options["training"]["seed"] = seed
    if "fold" in options["data"]:
        options["data"]["fold"] = fold
    return from_plain(options)


def _check_table(recipes: Sequence[Recipe], names: set[str]) -> None:
    """See that recipes on one data set can stand in one table.

    Args:
        names: of all recipes of the comparison.
    """
    _refuse_twice("recipe", [(recipe.name, recipe.model) for recipe in recipes])
    if missing := sorted(names - {recipe.name for recipe in recipes}):
        raise TetherError(
            f"Recipes of one comparison are on the same data, or each of them is on every data set; {missing[0]} is "
            f"not on that of {recipes[0].name}, {recipes[0].data}. Give --data, or the same data in every recipe."
        )
    tasks = {plain(recipe.task)["method"]: recipe.name for recipe in recipes}
    if len(tasks) > 1:
        raise TetherError(
            f"Recipes in one table have the same task, by whose metrics they are compared; found "
            f"{', '.join(f'{task} ({name})' for task, name in tasks.items())}. Compare them in two commands."
        )


def _refuse_twice(what: str, values: Sequence[Any]) -> None:
    """The values are numbers, or a recipe's name with its model."""
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        name = twice[0][0] if isinstance(twice[0], tuple) else twice[0]
        raise TetherError(f"The {what} {name!r} is given twice; each needs its own name.")
