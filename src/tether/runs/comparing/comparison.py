"""Methods side by side: every recipe on every fold with every seed, and of each data set one table and one report.

Each run is an ordinary run directory named after its recipe and the hash of its configuration: a comparison that was
killed goes on where it was, what is finished is not done again, and several processes may share the work (`worker`).
Methods can be tuned first, on validation pictures (`tuning`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tether.errors import TetherError, near_misses
from tether.evaluation.results import Tuning
from tether.evaluation.scoring import Progress
from tether.evaluation.tables import count
from tether.recipe import Recipe
from tether.runs.comparing import tuning
from tether.runs.comparing.launch import Launch
from tether.runs.comparing.notes import notes
from tether.runs.comparing.plan import Plan, variant
from tether.runs.comparing.results import (
    ZERO_SHOT,
    Comparison,
    Trained,
    all_runs,
    make_results,
    pooled_tests,
    row_name,
    without,
)
from tether.runs.comparing.worker import Worker
from tether.runs.drawings import read_drawings
from tether.training.environment import package_versions

REFERENCE = "full"
"""The recipe that all others are tested against, where it is there and no other is named."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What tables and reports are about. A row is named by its recipe, or as it stands in a table of several models,
    such as "full (ViT-B-16)"; of several rows with a recipe's name the first is meant.

    Attributes:
        title: by default how many methods on which data.
        command: what makes the comparison again, for people.
        reference: the method that all others are tested against; by default "full", else zero-shot, or the first row
            where no model answers before it is trained.
        baselines: ordinary models, through which the line of effective robustness is drawn; three or more. A recipe
            on several models is as many.
        highlighted: what the report is about; the last method by default.
    """

    title: str = ""
    command: str = ""
    reference: str = ""
    baselines: Sequence[str] = ()
    highlighted: str = ""

    def rows(self, recipes: Sequence[Recipe]) -> dict[str, Any]:
        """Reference, baselines and highlighted method of one table, by the names of its rows.

        Raises:
            TetherError: there is no such row, or there are fewer than three baselines.
        """
        models = [recipe.model for recipe in recipes]
        rows = [row_name(recipe.name, recipe.model, models) for recipe in recipes]
        methods: dict[str, list[str]] = {row: [row] for row in rows}
        for recipe, row in zip(recipes, rows, strict=True):
            if row != recipe.name:
                methods.setdefault(recipe.name, []).append(row)
        known = dict(methods)
        if any(recipe.task.zero_shot for recipe in recipes):
            zero_shots = [row_name(ZERO_SHOT, model, models) for model in models]
            known |= {ZERO_SHOT: zero_shots, **{row: [row] for row in zero_shots}}
        usual = next(name for name in (REFERENCE, ZERO_SHOT, rows[0]) if name in known)
        for name in (*self.baselines, *filter(None, [self.highlighted])):
            if name not in methods:
                raise TetherError(
                    f"There is no recipe {name!r} in this comparison{near_misses(name, list(methods))}"
                )
        if self.reference and self.reference not in known:
            raise TetherError(
                f"There is no method {self.reference!r} to compare with"
                f"{near_misses(self.reference, list(methods))}"
            )
        baselines = list(dict.fromkeys(row for name in self.baselines for row in methods[name]))
        if baselines and len(baselines) < 3:
            raise TetherError(
                f"The line of effective robustness goes through 3 ordinary models or more; found {len(baselines)}."
            )
        return {
            "reference": known[self.reference or usual][0],
            "baselines": baselines,
            "highlighted": methods[self.highlighted][0] if self.highlighted else rows[-1],
        }


def compare(
    plan: Plan,
    launch: Launch | None = None,
    report: ReportOptions | None = None,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    show_progress: bool = True,
) -> list[Comparison]:
    """Run what is not there yet, and make the results of all of it: one comparison per data set, in their order.

    >>> (comparison,) = compare(Plan(recipes=[full, r_adapter], root=Path("runs")), Launch(workers=2))

    Args:
        launch: who does the runs; this process alone by default.
        announce: told how many runs and trainings there are, and about every run that begins or is found finished.

    Raises:
        TetherError: what the report is to be about is not there, or a run fails.
    """
    launch, report = launch or Launch(), report or ReportOptions()
    tables = [[plan.recipes[number] for number in numbers] for numbers in plan.tables]
    rows = [report.rows(recipes) for recipes in tables]
    with launch.crew(plan.root, _help, plan) as crew:
        worker = Worker(
            plan.root,
            device=launch.device,
            crew=crew,
            progress=progress,
            announce=announce,
            show_progress=show_progress,
        )
        trained = _train(plan, worker)
    comparisons: list[Comparison] = []
    for numbers, of in zip(plan.tables, rows, strict=True):
        taken = [comparison.name for comparison in comparisons]
        comparisons.append(_comparison(plan, [trained[number] for number in numbers], report, of, taken))
    return comparisons


def _help(plan: Plan, device: torch.device, announce: Callable[[str], None] = lambda line: None) -> None:
    """What a further process does."""
    worker = Worker(plan.root, device=device, announce=announce, show_progress=False)
    chosen = [recipe for recipe, _ in _choose(plan, worker)]
    worker.help([job for number, recipe in enumerate(chosen) for job in plan.runs(number, recipe)])


def _choose(plan: Plan, worker: Worker) -> list[tuple[Recipe, Tuning | None]]:
    """Every recipe with the settings that do best on validation pictures, where they are to be chosen."""
    trials = [plan.trials(number) for number in range(len(plan.recipes))]
    jobs = [job for own in trials for job in own]
    paths = iter(worker.finish(jobs))
    chosen = []
    for recipe, own in zip(plan.recipes, trials, strict=True):
        outcomes = [worker.outcome(job, path) if (path := next(paths)) else None for job in own]
        points = plan.points(recipe)
        chosen.append(tuning.choose(recipe, points, outcomes, plan.tune) if own else (recipe, None))
    return chosen


def _train(plan: Plan, worker: Worker) -> list[Trained]:
    """Choose every method's settings, where they are to be chosen, and finish all runs."""
    chosen = _choose(plan, worker)
    jobs = [plan.runs(number, recipe) for number, (recipe, _) in enumerate(chosen)]
    paths = iter(worker.finish([job for own in jobs for job in own]))
    trained = []
    for (recipe, tuned), own in zip(chosen, jobs, strict=True):
        left_out = _identities_tuned_on(plan, recipe, worker)
        outcomes = iter([without(worker.outcome(job, next(paths)), left_out) for job in own])
        by_seed = {seed: [next(outcomes) for _ in plan.folds] for seed in plan.seeds}
        trained.append(Trained(recipe=recipe, tuning=tuned, by_seed=by_seed, left_out=left_out))
    return trained


def _identities_tuned_on(plan: Plan, recipe: Recipe, worker: Worker) -> set[str]:
    """Identities on whose pictures settings were chosen; other folds have them in their tests."""
    if not plan.tune:
        return set()
    return worker.benchmark(variant(recipe, plan.tune_seed, plan.tune_fold)).validation.identities


def _comparison(
    plan: Plan,
    trained: Sequence[Trained],
    report: ReportOptions,
    rows: Mapping[str, Any],
    taken: Sequence[str],
) -> Comparison:
    """The results on one data set.

    Args:
        rows: see `ReportOptions.rows`.
        taken: names of other data sets.
    """
    models = list(dict.fromkeys(one.recipe.model for one in trained))
    trained = [
        replace(one, recipe=replace(one.recipe, name=row_name(one.recipe.name, one.recipe.model, models)))
        for one in trained
    ]
    benchmarks = [outcome.benchmark for outcome in next(iter(trained[0].by_seed.values()))]
    data_set = benchmarks[0].name
    short = data_set.split(" (")[0]
    if len(plan.folds) > 1:
        data_set = f"{short} (folds {', '.join(map(str, plan.folds))} pooled)"
    runs = all_runs(trained)
    results = make_results(
        trained,
        runs,
        title=report.title or f"{count(len(trained), 'method')} on {short}",
        data_set=data_set,
        **rows,
        settings={
            "model": ", ".join(models),
            "command": report.command,
            "seeds": ", ".join(map(str, plan.seeds)),
        },
        versions=package_versions(),
        notes=notes(plan, trained),
    )
    highlighted = next(one for one in trained if one.recipe.name == rows["highlighted"])
    return Comparison(
        name=_folder_name(short, taken),
        results=results,
        tests=pooled_tests(benchmarks, trained[0].left_out),
        runs=runs,
        drawings=read_drawings(highlighted.outcomes[0].run),
    )


def _folder_name(data_set: str, taken: Sequence[str]) -> str:
    """A data set's name as that of a folder, with a number where it is taken."""
    name = re.sub(r"[^\w.-]+", "-", data_set).strip("-.") or "data"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *numbered) if one not in taken)
