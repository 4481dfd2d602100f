"""How a tuned model is judged: its alpha from validation, or a fitted ensemble, and the answers on every test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tether._alpha import TOWERS, Alpha, alpha_of
from tether.config import plain
from tether.data.records import PictureBenchmark
from tether.ensembles.ensemble import Ensemble
from tether.ensembles.pair import Pair
from tether.ensembles.sweep import alpha_sweep
from tether.evaluation import Sweep
from tether.evaluation.alpha import Evaluate, choose_alpha, choose_economically
from tether.evaluation.scoring import Progress
from tether.models.weight_path import Path
from tether.recipe import Recipe
from tether.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Alpha, why it was chosen and from what, the test scores along alpha, and the fitted ensemble if there is one."""

    alpha: Alpha
    reason: str
    validation: list[dict[str, Any]]
    tested: Sweep
    ensemble: Ensemble | None = None


def judge(
    task: Task,
    path: Path,
    *,
    test: bool = True,
    progress: Progress | None = None,
) -> Judgement:
    """Along the path from the zero-shot model to the tuned one, or with the recipe's ensemble.

    Args:
        task: finished: it knows what was trained.
        path: of its model, at the beginning.
        test: whether the test splits are looked at.
    """
    recipe, benchmark, model = task.recipe, task.benchmark, task.model
    reading = {"workers": recipe.training.workers, "progress": progress}
    if recipe.ensemble:
        pair = Pair.of(model, path, task.reader({}), **reading)
        parts = {"train": benchmark.train, "validation": benchmark.validation}
        ensemble = recipe.ensemble.fit(pair, **parts, seed=recipe.training.seed)
        return Judgement(
            alpha=ensemble.alpha,
            reason=ensemble.reason,
            validation=[plain(point) for point in ensemble.choice.curve] if ensemble.choice else [],
            tested=ensemble.sweep(benchmark.tests) if test else Sweep((), ()),
            ensemble=ensemble,
        )

    def sweep(splits: Mapping[str, Any], alphas: Sequence[Alpha]) -> Sweep:
        return alpha_sweep(model, path, splits, alphas, task.reader(splits), **reading)

    alpha, reason, validation = _choose(recipe, benchmark, sweep)
    curve = recipe.alpha.grid if recipe.alpha.curve else ()
    tested = sweep(benchmark.tests, _distinct([0.0, *curve, 1.0, alpha])) if test else Sweep((), ())
    return Judgement(alpha=alpha, reason=reason, validation=validation, tested=tested)


def _choose(
    recipe: Recipe, benchmark: PictureBenchmark, sweep: Evaluate
) -> tuple[Alpha, str, list[dict[str, Any]]]:
    """The recipe's alpha, or what validation pictures and simulated shifts of them speak for; and why."""
    if recipe.alpha.value != "auto":
        alpha = _simplest(recipe.alpha.value)
        measured = ()
        if len(benchmark.validation):
            swept = sweep({"validation": benchmark.validation}, [alpha])
            measured = choose_alpha(swept, "validation", rule="in distribution").curve
        return alpha, "given in the recipe", [plain(point) for point in measured]
    grid: list[Alpha] = list(recipe.alpha.grid)
    if recipe.alpha.per_tower:
        grid = [dict(zip(TOWERS, (a, b), strict=True)) for a in recipe.alpha.grid for b in recipe.alpha.grid]
    options = {"rule": recipe.alpha.rule, "pictures": recipe.alpha.simulated_pictures}
    choice = choose_economically(sweep, benchmark.validation, grid, **options)
    return _simplest(choice.alpha), choice.reason, [plain(point) for point in choice.curve]


def _simplest(alpha: Alpha) -> Alpha:
    """A number where both towers have the same."""
    towers = {alpha_of(alpha, tower) for tower in TOWERS}
    return towers.pop() if len(towers) == 1 else alpha


def _distinct(alphas: list[Alpha]) -> list[Alpha]:
    return [alpha for index, alpha in enumerate(alphas) if alpha not in alphas[:index]]
