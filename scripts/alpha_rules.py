"""What alpha by validation is now, what it was by the former rule, and what either does to the test: a table of runs.

    python scripts/alpha_rules.py RUN...      # directories of finished runs with `alpha: {value: auto, curve: true}`

By the rule "bounded loss" an alpha competes if the pictures that only one of it and the best answers rightly do not
tell it to be worse (`tether.evaluation.alpha`). Formerly it competed if its loss was at most one paired standard
error. Both are decided from what the run's result.json keeps, the loss and its error at every alpha, and both choose
among what competes by the simulated shifts. Test accuracies are those of the answers that the run keeps.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tether._alpha import Alpha
from tether._files import read_json
from tether.data import load_benchmark
from tether.data.records import PictureBenchmark
from tether.errors import TetherError
from tether.evaluation.alpha import LEVEL, AlphaPoint, _size, sign_flip_test
from tether.evaluation.scores import alpha_text
from tether.recipe import from_plain
from tether.runs.outcome import Outcome, read_outcome

TOLERANCE = 0.005
EXACT_IN_REASON = "than chance explains"
"""What the reason of a run says that was judged by the exact test."""


@dataclass(frozen=True)
class Row:
    """The alpha of one run by the former rule and now, and accuracies as (in distribution, mean shifted)."""

    run: str
    former: Alpha
    now: Alpha
    former_accuracy: tuple[float, float]
    accuracy: tuple[float, float]


def read(run: Path) -> Row:
    """The row of a finished run.

    Raises:
        TetherError: it is not finished, its alpha was not chosen by the rule "bounded loss", the test was not
            answered at both alphas, or the numbers do not tell what the exact test says.
    """
    recipe = from_plain(read_json(run / "config.json", dict))
    outcome = read_outcome(run, recipe, load_benchmark(recipe.data))
    if recipe.ensemble or recipe.alpha.value != "auto" or recipe.alpha.rule != "bounded loss":
        raise TetherError(
            f"{run} did not choose alpha by the rule 'bounded loss'. Go on from a run that did "
            "(alpha.value=auto, alpha.rule='bounded loss')."
        )
    points = [AlphaPoint(**point) for point in outcome.validation]
    former = best(points, lambda point: point.loss <= max(point.loss_error, TOLERANCE) + 1e-12)
    now = best(points, competes_now(outcome))
    return Row(run.name, former, now, *(accuracy(outcome, alpha) for alpha in (former, now)))


def competes_now(outcome: Outcome) -> Callable[[AlphaPoint], bool]:
    """Whether an alpha may compete by the exact test: as the run says, or by the counts that its numbers stand for."""
    if EXACT_IN_REASON in outcome.alpha_reason:
        return lambda point: point.allowed
    pictures = len(outcome.benchmark.validation)
    if len(outcome.benchmark.validation.identities) < pictures:
        raise TetherError(
            f"{outcome.run} was judged by the former rule, and its validation pictures share identities, so that "
            f"its numbers do not tell what the exact test says. Delete its result.json and judge it again: "
            f"tether train --resume {outcome.run}"
        )
    return lambda point: (
        point.loss <= TOLERANCE + 1e-12 or sign_flip_test(differences(point, pictures)) > LEVEL
    )


def differences(point: AlphaPoint, pictures: int) -> torch.Tensor:
    """+1 for each picture that only the best alpha has right, −1 for each that only this one has.

    With b and c of them the loss is (b − c) / n, and the square of its error (b + c − (b − c)² / n) / n².
    """
    lead = round(point.loss * pictures)
    count = round((point.loss_error * pictures) ** 2 + lead**2 / pictures)
    return torch.tensor([1.0] * ((count + lead) // 2) + [-1.0] * ((count - lead) // 2))


def best(points: Sequence[AlphaPoint], competes: Callable[[AlphaPoint], bool]) -> Alpha:
    """Of those that compete the best on the simulated shifts; of equals the one nearer to the zero-shot model.

    Raises:
        TetherError: one of several that compete was not evaluated on simulated shifts.
    """
    allowed = [point for point in points if competes(point)]
    if len(allowed) == 1:
        return allowed[0].alpha
    if missing := [alpha_text(point.alpha) for point in allowed if point.simulated_mean is None]:
        raise TetherError(
            f"No simulated shift was evaluated at alpha {', '.join(missing)}, which competes by the former rule "
            "though not by the present one. Such a run cannot be compared."
        )
    return min(allowed, key=lambda point: (-round(point.simulated_mean, 12), _size(point.alpha))).alpha


def accuracy(outcome: Outcome, alpha: Alpha) -> tuple[float, float]:
    """In distribution, and the mean over the shifted domains."""
    scores = outcome.test.at(alpha)
    shifted = [scores[name].value for name in shifts(outcome.benchmark)]
    return scores[outcome.benchmark.in_distribution].value, math.fsum(shifted) / len(shifted)


def shifts(benchmark: PictureBenchmark) -> list[str]:
    """The test splits that are neither in-distribution nor a corruption."""
    return [
        name
        for name, split in benchmark.tests.items()
        if name != benchmark.in_distribution and not split.is_corruption
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown; accuracies in percent."""
    names = ("run", "alpha, former rule", "alpha", "in distribution, former rule", "in distribution")
    lines = [f"| {' | '.join(names)} | shifted, former rule | shifted |", f"|---{'|---:' * 6}|"]
    for row in rows:
        numbers = (f"{100 * row.former_accuracy[i]:.1f} | {100 * row.accuracy[i]:.1f}" for i in (0, 1))
        lines.append(
            f"| {row.run} | {alpha_text(row.former)} | {alpha_text(row.now)} | {' | '.join(numbers)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    try:
        print(table([read(run) for run in parser.parse_args().runs]))
    except TetherError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
