"""What a reader must know of how a comparison came about, beside its numbers."""

from collections.abc import Sequence

from tether.runs.comparing import tuning
from tether.runs.comparing.plan import Plan
from tether.runs.comparing.results import Trained


def notes(plan: Plan, trained: Sequence[Trained]) -> list[str]:
    """Sentences on tuning, on validation pictures that serve twice, and on trainings that serve several methods.

    Args:
        trained: on one data set, under the names of their rows.
    """
    return [*_tuning_notes(plan, trained), *_reuse_notes(plan, trained), *_sharing_notes(trained)]


def _tuning_notes(plan: Plan, trained: Sequence[Trained]) -> list[str]:
    if not plan.tune:
        return []
    notes = [
        f"Settings were chosen by at most {plan.tune} trials per method on the validation pictures of fold "
        f"{plan.tune_fold}, with seed {plan.tune_seed}, and used for all seeds and folds."
    ]
    if set(plan.folds) != {plan.tune_fold}:
        notes.append("What those validation pictures show is left out of the test sets of the other folds.")
    if untuned := [one.recipe.name for one in trained if one.tuning is None]:
        notes.append(f"Not tuned, because their recipes name nothing to search: {', '.join(untuned)}.")
    tuned = {one.recipe.name: one.tuning for one in trained if one.tuning}
    if fewer := [f"{name} ({own.points})" for name, own in tuned.items() if own.points < own.budget]:
        notes.append(f"With fewer settings to try than the budget allows: {', '.join(fewer)}.")
    if ends := [f"{name} ({', '.join(at)})" for name, own in tuned.items() if (at := tuning.at_the_end(own))]:
        notes.append(f"Chosen at the end of what was tried, so better may lie beyond: {', '.join(ends)}.")
    return notes


def _reuse_notes(plan: Plan, trained: Sequence[Trained]) -> list[str]:
    """Where the validation pictures that choose something are also what something was fitted to."""
    radii = [
        one.recipe.name
        for one in trained
        if one.recipe.optimizer.held_out and (plan.tune or one.recipe.alpha.value == "auto")
    ]
    fitted = [
        one.recipe.name
        for one in trained
        if one.tuning and one.recipe.ensemble and one.recipe.ensemble.needs_validation
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


def _sharing_notes(trained: Sequence[Trained]) -> list[str]:
    """Whose rows tell the time of a training that another run did."""
    shared = [one.recipe.name for one in trained if any(outcome.trained_in for outcome in one.outcomes)]
    if not shared:
        return []
    return [
        f"{', '.join(shared)}: what was trained, and the time of it, is in some runs or all that of another run, which "
        f"differs only in what follows training."
    ]
