"""Choose a method's settings on validation pictures, with the same number of trials for every method.

A recipe says what may be varied:

    search: {optimizer.lr: [1e-5, 3e-5, 1e-4], regularizers.0.weight: [0.1, 1.0]}

Every combination is a point. Where all points fit the budget all are tried, otherwise as many as the budget
allows, drawn by chance (seeded, none twice) so that each option's values come equally often, those of the option
named first above all: three trials of three learning rates and two strengths see every learning rate. A trial is an
ordinary run that never looks at a test picture.

The rule: the point with the best first metric of its task (top-1 accuracy, recall) on in-distribution validation
pictures, at the alpha of its run. Of equally good ones the smaller learning rate wins, then the point named earlier. No
slack beyond that: one standard error of a few hundred pictures is wider than what methods differ by, so "the smallest
within one standard error" would choose the weakest training for every method before the data had a say.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tether._alpha import TOWERS, alpha_of
from tether.config import plain
from tether.errors import TetherError, near_misses
from tether.evaluation.results import Trial, Tuning
from tether.recipe import Recipe, from_plain, to_plain
from tether.runs.outcome import Outcome

FIXED = ("name", "model", "data", "search", "training.seed")
"""What a search may not vary, because runs of one comparison share it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination of a search's values, and the recipe with these."""

    values: Mapping[str, Any]
    recipe: Recipe

    @property
    def words(self) -> dict[str, str]:
        """The values as people read them."""
        return {
            name: f"{value:g}" if isinstance(value, float) else str(value)
            for name, value in self.values.items()
        }


def size(recipe: Recipe) -> int:
    """How many points a recipe's search has; 0 without one."""
    return math.prod(len(values) for values in recipe.search.values()) if recipe.search else 0


def points(recipe: Recipe, budget: int, *, seed: int = 0) -> list[Point]:
    """At most `budget` points of a recipe's search, in the order in which it names them; see the module.

    Raises:
        TetherError: the search names an option that is not there, may not vary or has no or equal values; or a
            combination makes no valid recipe.
    """
    values = {name: _values(recipe, name, given) for name, given in recipe.search.items()}
    if budget < 1:
        raise TetherError(f"A search needs a budget of at least one trial, found {budget}.")
    total = size(recipe)
    sizes = [len(own) for own in values.values()]
    chance = random.Random(f"{seed} {recipe.name}")
    places = range(total) if total <= budget else _spread(sizes, budget, chance)
    return [_point(recipe, values, place) for place in places]


def choose(
    recipe: Recipe, tried: Sequence[Point], outcomes: Sequence[Outcome | None], budget: int
) -> tuple[Recipe, Tuning]:
    """The recipe of the best point, and the record of how it was found.

    Args:
        outcomes: of the tried points, in their order; None where training diverged.

    Raises:
        TetherError: every trial diverged, or a run has no validation accuracy.
    """
    accuracies = [outcome and validation_accuracy(outcome) for outcome in outcomes]
    alive = [place for place, accuracy in enumerate(accuracies) if accuracy is not None]
    if not alive:
        raise TetherError(
            f"All {len(tried)} trials of {recipe.name} diverged. Search smaller learning rates, or set clip_norm."
        )
    best = min(alive, key=lambda place: (-accuracies[place], tried[place].recipe.optimizer.lr, place))
    steps = [
        point.recipe.training.total_steps(point.recipe.task.examples(outcome.benchmark))
        for point, outcome in zip(tried, outcomes, strict=True)
        if outcome
    ]
    trials = (
        Trial(values=point.words, validation=accuracy)
        for point, accuracy in zip(tried, accuracies, strict=True)
    )
    return tried[best].recipe, Tuning(
        budget=budget,
        points=size(recipe),
        steps=sum(steps),
        chosen=tried[best].words,
        trials=tuple(trials),
    )


def at_the_end(tuning: Tuning) -> list[str]:
    """Options whose chosen value is the least or greatest of three numbers or more that were tried, in words."""
    found = []
    for name, chosen in tuning.chosen.items():
        tried = {_number(trial.values[name]) for trial in tuning.trials}
        numbers = sorted(value for value in tried if isinstance(value, float))
        if len(numbers) == len(tried) >= 3 and float(chosen) in (numbers[0], numbers[-1]):
            found.append(f"{name} {chosen}")
    return found


def validation_accuracy(outcome: Outcome) -> float:
    """Top-1 accuracy on the validation pictures at the run's alpha.

    Raises:
        TetherError: it was not measured.
    """
    for entry in outcome.validation:
        if all(alpha_of(entry["alpha"], tower) == alpha_of(outcome.alpha, tower) for tower in TOWERS):
            return entry["in_distribution"]
    raise TetherError(
        f"{outcome.run} has no accuracy on validation pictures, by which settings could be chosen. Give the data "
        f"a validation share, or leave --tune out."
    )


def _values(recipe: Recipe, name: str, given: Sequence[Any]) -> list[Any]:
    """The values of one option; numbers that YAML reads as text (1e-5) are numbers."""
    where = f"{recipe.name}: search.{name}"
    if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
        raise TetherError(f"{where} may not vary: all runs of a comparison share it.")
    values = [_number(value) for value in given]
    if not values:
        raise TetherError(f"{where} has no values to try.")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise TetherError(f"{where} names a value twice: {values}.")
    return values


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _spread(sizes: Sequence[int], count: int, chance: random.Random) -> list[int]:
    """Numbers of `count` points by chance, each next one of the values that came least often so far."""
    left = chance.sample(range(math.prod(sizes)), min(math.prod(sizes), 100 * count))
    drawn: list[int] = []
    came: Counter[tuple[int, int]] = Counter()
    while len(drawn) < count:
        rarest = min(left, key=lambda place: [came[cell] for cell in enumerate(_indices(place, sizes))])
        came.update(enumerate(_indices(rarest, sizes)))
        left.remove(rarest)
        drawn.append(rarest)
    return sorted(drawn)


def _indices(place: int, sizes: Sequence[int]) -> list[int]:
    """Which value of each option point number `place` has, the last option varying fastest."""
    found = []
    for length in reversed(sizes):
        place, which = divmod(place, length)
        found.append(which)
    return found[::-1]


def _point(recipe: Recipe, values: Mapping[str, Sequence[Any]], place: int) -> Point:
    """Point number `place` of all combinations."""
    indices = _indices(place, [len(own) for own in values.values()])
    own = {name: values[name][which] for name, which in zip(values, indices, strict=True)}
    options = {**to_plain(recipe), "search": {}}
    try:
        for name, value in own.items():
            _put(options, name, plain(value))
        return Point(values=own, recipe=from_plain(options))
    except TetherError as error:
        raise TetherError(f"{recipe.name}, with {own}: {error}") from error


def _put(options: Any, name: str, value: Any) -> None:
    """Set an option by its dotted name; a number names an entry of a list."""
    *parents, last = name.split(".")
    place = options
    for part in parents:
        place = place[_key(place, part, name)]
    place[_key(place, last, name)] = value


def _key(place: Any, part: str, name: str) -> str | int:
    if isinstance(place, dict):
        if part not in place:
            raise TetherError(f"There is no option {name!r} to search{near_misses(part, list(place))}")
        return part
    if isinstance(place, list):
        if not part.isdecimal() or int(part) >= len(place):
            raise TetherError(f"search.{name}: {part!r} is no entry of a list of {len(place)}.")
        return int(part)
    raise TetherError(f"search.{name}: {part!r} belongs to something that is {place!r} in this recipe.")
