"""Methods side by side: every recipe on every fold with every seed, one table, one report.

Each run is an ordinary run directory named after its recipe and the hash of its configuration: a comparison
that was killed goes on where it was, what is finished is not done again, and several processes may share the
work (`workers`). Methods can be tuned first, on validation pictures (`tuning`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tether._distributed import world_size
from tether.data.records import PictureSplit
from tether.errors import TetherError, near_misses
from tether.evaluation.results import Results, Tuning
from tether.evaluation.scoring import Progress
from tether.evaluation.tables import count
from tether.recipe import Recipe
from tether.runs.comparing import tuning
from tether.runs.comparing.plan import Plan, benchmark_of, identities_tuned_on, variant
from tether.runs.comparing.results import ZERO_SHOT, Trained, joined, make_results, without
from tether.runs.comparing.workers import Job, finish, local_workers, own_device
from tether.training.environment import package_versions

REFERENCE = "full"
"""The recipe that all others are tested against, where it is there and no other is named."""


def compare(
    recipes: Sequence[Recipe],
    root: Path,
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] = (0,),
    tune: int = 0,
    tune_seed: int = 0,
    tune_fold: int = 0,
    baselines: Sequence[str] = (),
    reference: str = "",
    workers: int = 1,
    title: str = "",
    command: str = "",
    highlighted: str = "",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    show_progress: bool = True,
) -> Results:
    """Run what is not there yet, and make the results of all of it.

    Args:
        recipes: of one model and one data set, each with its own name.
        root: where runs are made, or found finished; other processes that compare the same there share the work.
        folds: of data that has folds; a seed's answers on the test pictures of all folds are pooled.
        tune: trials that each method gets to choose its settings by, on the validation pictures of `tune_fold`
            with `tune_seed`; 0 for the settings of the recipes. What these pictures show is no test in any fold.
        baselines: names of recipes that are ordinary models, through which the line of effective robustness is
            drawn; three or more.
        reference: the method that all others are tested against; "full" by default, or zero-shot without one.
        workers: processes of this machine.
        title: of the report; by default how many methods on which data.
        highlighted: name of the recipe that the report is about; the last one by default.
        announce: told about every run that begins or is found finished.

    Raises:
        TetherError: the recipes cannot stand in one table (names, models or data), or a run fails.
    """
    plan = Plan(
        recipes=recipes,
        root=root,
        seeds=seeds,
        folds=folds,
        tune=tune,
        tune_seed=tune_seed,
        tune_fold=tune_fold,
    )
    rows = [recipe.name for recipe in recipes]
    for name in (*baselines, *filter(None, [highlighted])):
        if name not in rows:
            raise TetherError(f"There is no recipe {name!r} in this comparison{near_misses(name, rows)}")
    if reference and reference not in (ZERO_SHOT, *rows):
        raise TetherError(f"There is no method {reference!r} to compare with{near_misses(reference, rows)}")
    if baselines and len(set(baselines)) < 3:
        raise TetherError(
            f"The line of effective robustness goes through 3 ordinary models or more; found {len(set(baselines))}."
        )
    if workers < 1 or (workers > 1 and world_size() > 1):
        raise TetherError(
            f"Expected one worker or more, and only one under torchrun; found {workers} under {world_size()} "
            "processes."
        )
    with local_workers(workers - 1, _work, plan, device):
        trained = _train(
            plan, device=device, progress=progress, announce=announce, show_progress=show_progress
        )
    data_set = benchmark_of(recipes[0], folds[0]).name
    short = data_set.split(" (")[0]
    if len(folds) > 1:
        data_set = f"{short} (folds {', '.join(map(str, folds))} pooled)"
    return make_results(
        trained,
        title=title or f"{count(len(recipes), 'method')} on {short}",
        data_set=data_set,
        highlighted=highlighted or rows[-1],
        reference=reference or (REFERENCE if REFERENCE in rows else ZERO_SHOT),
        baselines=baselines,
        settings={"model": recipes[0].model, "command": command, "seeds": ", ".join(map(str, seeds))},
        versions=package_versions(),
        notes=[*_tuning_notes(plan, trained), *_reuse_notes(plan)],
    )


def pooled_tests(
    recipe: Recipe, folds: Sequence[int], *, tuned_on: int | None = None
) -> dict[str, PictureSplit]:
    """The test splits of all folds as one per domain, in the order of `compare`'s answers.

    Args:
        tuned_on: the fold on whose validation pictures settings were chosen.
    """
    left_out = identities_tuned_on(recipe, tuned_on)
    benchmarks = [benchmark_of(recipe, fold) for fold in folds]
    return {
        name: joined([benchmark.tests[name] for benchmark in benchmarks], left_out)
        for name in benchmarks[0].tests
    }


def _work(plan: Plan, device: torch.device | str, number: int) -> None:
    """What a further process of this machine does: the same, silently."""
    own = own_device(device, number)
    if own.type == "cuda":
        torch.cuda.set_device(own)  # else every process has a context and its random stream on the first GPU
    _train(
        plan,
        device=own,
        progress=None,
        announce=lambda line: None,
        show_progress=False,
    )


def _train(plan: Plan, *, announce: Callable[[str], None], **options: Any) -> list[Trained]:
    """Choose every method's settings, where they are to be chosen, and finish all runs."""
    tried = plan.points()
    trials = [
        Job(
            recipe=variant(point.recipe, plan.tune_seed, plan.tune_fold),
            label=f"tuning {name}: {', '.join(' '.join(word) for word in point.words.items())}",
            test=False,
            may_diverge=True,
        )
        for name, own in tried.items()
        for point in own
    ]
    tested = iter(finish(trials, plan.root, announce=announce, **options))
    chosen: list[tuple[Recipe, Tuning | None]] = []
    for recipe in plan.recipes:
        own = tried.get(recipe.name)
        chosen.append(
            tuning.choose(recipe, own, [next(tested) for _ in own], plan.tune) if own else (recipe, None)
        )
    jobs = [
        Job(
            recipe=variant(recipe, seed, fold),
            label=f"{recipe.name}, seed {seed}, fold {fold}",
        )
        for recipe, _ in chosen
        for seed in plan.seeds
        for fold in plan.folds
    ]
    left_out = identities_tuned_on(plan.recipes[0], plan.tune_fold if plan.tune else None)
    outcomes = (without(one, left_out) for one in finish(jobs, plan.root, announce=announce, **options))
    return [
        Trained(
            recipe=recipe,
            tuning=found,
            by_seed={seed: [next(outcomes) for _ in plan.folds] for seed in plan.seeds},
        )
        for recipe, found in chosen
    ]


def _reuse_notes(plan: Plan) -> list[str]:
    """Where the validation pictures that choose something are also what something was fitted to."""
    radii = [
        recipe.name
        for recipe in plan.recipes
        if recipe.optimizer.held_out and (plan.tune or recipe.alpha.value == "auto")
    ]
    fitted = [
        recipe.name
        for recipe in plan.recipes
        if plan.tune and recipe.search and recipe.ensemble and recipe.ensemble.needs_validation
    ]
    notes = []
    if radii:
        notes.append(
            f"{', '.join(radii)}: the radii are learned on the same validation pictures by which settings and alpha "
            f"are chosen, so that choice flatters strong training."
        )
    if fitted:
        notes.append(
            f"{', '.join(fitted)}: the ensemble is fitted to the same validation pictures by which settings are "
            f"chosen, so what it shows on these is a little too good; the test pictures play no part in either."
        )
    return notes


def _tuning_notes(plan: Plan, trained: Sequence[Trained]) -> list[str]:
    """What a reader must know of how settings were chosen."""
    if not plan.tune:
        return []
    notes = [
        f"Settings were chosen by at most {plan.tune} trials per method on the validation pictures of fold "
        f"{plan.tune_fold}, with seed {plan.tune_seed}, and used for all seeds and folds."
    ]
    if set(plan.folds) != {plan.tune_fold}:
        notes.append("What those validation pictures show is left out of the test sets of the other folds.")
    if untuned := [recipe.name for recipe in plan.recipes if not recipe.search]:
        notes.append(f"Not tuned, because their recipes name nothing to search: {', '.join(untuned)}.")
    tuned = {one.recipe.name: one.tuning for one in trained if one.tuning}
    if fewer := [f"{name} ({own.points})" for name, own in tuned.items() if own.points < own.budget]:
        notes.append(f"With fewer settings to try than the budget allows: {', '.join(fewer)}.")
    if ends := [f"{name} ({', '.join(at)})" for name, own in tuned.items() if (at := tuning.at_the_end(own))]:
        notes.append(f"Chosen at the end of what was tried, so better may lie beyond: {', '.join(ends)}.")
    return notes
