"""The files that explain results to people: of a comparison a folder, of a run one page in its directory."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from tether._files import write_text
from tether.data import read_image
from tether.data.alterations import alter
from tether.data.records import PictureSplit
from tether.errors import TetherError
from tether.evaluation.overall import Answers, overall, overall_csv, overall_markdown
from tether.evaluation.overall_figure import overall_figure
from tether.evaluation.report import write_report, write_robustness_figure
from tether.evaluation.results import Results
from tether.evaluation.tables import differences_csv, to_csv, to_markdown
from tether.runs.comparing.results import ZERO_SHOT, Comparison, Trained, all_runs, make_results
from tether.runs.drawings import read_drawings
from tether.runs.outcome import Outcome
from tether.training.environment import package_versions

REPORT = "report.html"


def check_out(folder: Path, command: str, *, several: bool = False) -> None:
    """See, before any work is done for it, that a comparison's files can be written and replace no other's.

    Args:
        command: what makes the comparison again; that of the files which are there already must be the same.
        several: whether it is of several data sets, each of which gets a folder in there.

    Raises:
        TetherError: the folder cannot be written, or holds what another command made.
    """
    for path in (folder / "results.json", *(folder.glob("*/results.json") if several else ())):
        before = Results.load(path).settings.get("command") if path.is_file() else command
        if before != command:
            raise TetherError(
                f"{path.parent} holds another comparison, made by `{before or 'no command'}`, and nothing is "
                "overwritten. Name another --out, or remove that folder: the runs lie elsewhere and are kept."
            )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TetherError(
            f"{folder} cannot be written, because {there} is no folder that can. Name another --out."
        )


def write_comparisons(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Put into `folder`, or of several data sets each into a folder of its name in there: `results.json`,
    `report.html`, `effective_robustness.svg` (where there are shifts), `table.csv`, `table.md` and `differences.csv`.

    Of several, the mean of each method over all data sets is put beside them: `overall.md`,
    `overall.csv` and `overall.svg`.

    Returns the reports.
    """
    several = len(comparisons) > 1
    if several:
        _write_overall(comparisons, folder)
    return [_write_comparison(one, folder / one.name if several else folder) for one in comparisons]


def _write_overall(comparisons: Sequence[Comparison], folder: Path) -> None:
    """The mean over data sets, where the same method is the reference on all and all have shifts."""
    data_sets = {
        one.name: Answers(
            runs=one.runs,
            in_distribution=one.results.of_kind("in-distribution")[0].name,
            shifted=[domain.name for domain in one.results.of_kind("shifted")],
        )
        for one in comparisons
    }
    references = {difference.reference for one in comparisons for difference in one.results.differences}
    if len(references) != 1 or not all(tested.shifted for tested in data_sets.values()):
        return
    (reference,) = references
    rows = overall(data_sets, reference)
    zero_shot = {
        method.name
        for one in comparisons
        for method in one.results.methods
        if method.trained_parameters is None
    }
    figure = overall_figure(rows, reference, comparisons[0].results.highlighted, zero_shot)
    for name, text in (
        ("overall.md", overall_markdown(rows, data_sets, reference)),
        ("overall.csv", overall_csv(rows)),
        ("overall.svg", figure),
    ):
        write_text(folder / name, text)


def _write_comparison(comparison: Comparison, folder: Path) -> Path:
    results = comparison.results
    results.save(folder / "results.json")
    for name, make in (
        ("table.csv", to_csv),
        ("table.md", to_markdown),
        ("differences.csv", differences_csv),
    ):
        write_text(folder / name, make(results))
    write_robustness_figure(results, folder / "effective_robustness.svg")
    write_report(results, folder / REPORT, _pictures(comparison.tests), comparison.drawings)
    return folder / REPORT


def write_run(outcome: Outcome) -> None:
    """Put `report.html` into the directory of a finished run: what was trained, and the zero-shot model where one is.

    Raises:
        TetherError: a test picture cannot be read, or the file cannot be written.
    """
    recipe, tests = outcome.recipe, outcome.benchmark.tests
    if recipe.name == ZERO_SHOT:  # the name of the other row
        recipe = replace(recipe, name="tuned")
    trained = [Trained(recipe=recipe, tuning=None, by_seed={recipe.training.seed: [outcome]})]
    results = make_results(
        trained,
        all_runs(trained),
        title=f"{recipe.name} on {outcome.benchmark.name}",
        data_set=outcome.benchmark.name,
        highlighted=recipe.name,
        reference=ZERO_SHOT if recipe.task.zero_shot else recipe.name,
        draws=2_000,  # it is made after every run
        settings={
            "model": recipe.model,
            "seed": str(recipe.training.seed),
            "recipe": "config.json beside this page",
        },
        versions=package_versions(),
    )
    write_report(results, outcome.run / REPORT, _pictures(tests), read_drawings(outcome.run))


def _pictures(tests: Mapping[str, PictureSplit]) -> Callable[[str, int], Image.Image]:
    """Test pictures by domain and index, as the models saw them."""

    def picture(domain: str, index: int) -> Image.Image:
        split = tests[domain]
        image = split.examples[index].image
        return alter(read_image(image), split.alteration, image.name)

    return picture
