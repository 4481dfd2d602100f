"""What a comparison is of: recipes, seeds, folds and trials, and the single runs that these stand for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tether.data import load_benchmark
from tether.data.records import PictureBenchmark
from tether.errors import TetherError
from tether.recipe import Recipe, from_plain, read, to_plain
from tether.recipe_files import names
from tether.runs.comparing import tuning
from tether.runs.comparing.results import ZERO_SHOT


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared: all that a process must know to tell which runs are wanted; see `compare`."""

    recipes: Sequence[Recipe]
    root: Path
    seeds: Sequence[int] = (0,)
    folds: Sequence[int] = (0,)
    tune: int = 0
    tune_seed: int = 0
    tune_fold: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be put into one table."""
        names = [recipe.name for recipe in self.recipes]
        for what, values in (("recipe", names), ("seed", self.seeds), ("fold", self.folds)):
            if not values:
                raise TetherError(f"A comparison needs at least one {what}.")
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise TetherError(f"The {what} {twice[0]!r} is given twice; each needs its own name.")
        if ZERO_SHOT in names:
            raise TetherError(f"No recipe may be called {ZERO_SHOT!r}: that row is always there.")
        first = self.recipes[0]
        for recipe in self.recipes:
            for part in ("model", "data"):
                own, others = getattr(recipe, part), getattr(first, part)
                if own != others:
                    raise TetherError(
                        f"Recipes of one comparison share model and data, and {part} is {others} in "
                        f"{first.name} but {own} in {recipe.name}."
                    )
        if {*self.folds, self.tune_fold} != {0} and not hasattr(first.data, "fold"):
            raise TetherError("Only the built-in data has folds; leave them out.")
        if self.tune < 0:
            raise TetherError(f"The number of trials per method is 0 or more, found {self.tune}.")
        if self.tune and not any(recipe.search for recipe in self.recipes):
            raise TetherError(
                "There is nothing to tune: no recipe has a search block, such as "
                "search: {optimizer.lr: [1e-5, 1e-4]}."
            )
        self.points()

    def points(self) -> dict[str, list[tuning.Point]]:
        """What is to be tried, by the name of the recipe; nothing of recipes without a search."""
        tuned = [recipe for recipe in self.recipes if recipe.search] if self.tune else []
        return {recipe.name: tuning.points(recipe, self.tune, seed=self.tune_seed) for recipe in tuned}


def read_recipes(sources: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Recipes by name, by path, or all of a folder, with the same overrides applied to each.

    Of a folder come its YAML files in the order of their names, without those that begin with "_": these are
    there for others to extend.

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
    return [read(source, list(overrides)) for source in found]


def variant(recipe: Recipe, seed: int, fold: int) -> Recipe:
    """A recipe as one run has it."""
    options = {**to_plain(recipe), "search": {}}
    options["training"]["seed"] = seed
    if "fold" in options["data"]:
        options["data"]["fold"] = fold
    return from_plain(options)


def benchmark_of(recipe: Recipe, fold: int) -> PictureBenchmark:
    """The data of one fold."""
    return load_benchmark(variant(recipe, 0, fold).data)


def identities_tuned_on(recipe: Recipe, fold: int | None) -> set[str]:
    """Identities on whose pictures settings were chosen; other folds have them in their tests."""
    return set() if fold is None else benchmark_of(recipe, fold).validation.identities
