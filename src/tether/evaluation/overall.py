"""Several data sets at once: each method's mean over them, and how far that is from another method's."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tether.errors import TetherError
from tether.evaluation.significance import Estimate, bootstrap, holm
from tether.evaluation.summary import Runs, paired
from tether.evaluation.tables import EXPLAIN_DIFFERENCES, markdown_table, range_text, spreadsheet_text

PLACES = ("in distribution", "shifted")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Those of several methods on one data set.

    Attributes:
        runs: by method.
        in_distribution: the test split that looks like what was trained on.
        shifted: the others that make up the mean over shifts.
    """

    runs: Mapping[str, Runs]
    in_distribution: str
    shifted: Sequence[str]

    def domains(self, place: str) -> Sequence[str]:
        return (self.in_distribution,) if place == PLACES[0] else self.shifted


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method over all data sets, in distribution and on the shifts.

    Attributes:
        values: mean of the first metric over data sets, domains and seeds, by place.
        differences: to the reference, paired by picture; none for the reference itself.
        adjusted_p_values: of the differences, corrected for the number of methods (Holm).
    """

    method: str
    values: Mapping[str, float]
    differences: Mapping[str, Estimate]
    adjusted_p_values: Mapping[str, float]


def overall(data_sets: Mapping[str, Answers], reference: str, *, draws: int = 10_000) -> tuple[Row, ...]:
    """A row for every method that is there on all data sets.

    Every domain of every data set counts the same. The bootstrap draws what the pictures show, the same in all domains
    and data sets where it has the same identity, and seeds; see `tether.evaluation.significance.bootstrap`.

    Raises:
        TetherError: the reference is not there on all data sets, or one of them has no shifts.
    """
    methods = [
        name
        for name in next(iter(data_sets.values())).runs
        if all(name in tested.runs for tested in data_sets.values())
    ]
    if reference not in methods:
        raise TetherError(f"The reference {reference!r} is not there on all of {', '.join(data_sets)}.")
    if without := [name for name, tested in data_sets.items() if not tested.shifted]:
        raise TetherError(f"There is no shifted test in {', '.join(without)}, so no mean over shifts.")

    def difference(method: str, place: str) -> Estimate:
        statistics, identities = {}, {}
        for name, tested in data_sets.items():
            runs, base = tested.runs[method], tested.runs[reference]
            for domain in tested.domains(place):
                statistics[f"{name}: {domain}"] = paired(runs, base, domain)
                identities[f"{name}: {domain}"] = next(iter(base.values()))[domain].identities
        return bootstrap(statistics, identities, draws=draws)

    others = [method for method in methods if method != reference]
    differences = {place: {method: difference(method, place) for method in others} for place in PLACES}
    adjusted = {
        place: holm({method: one.p_value for method, one in own.items()})
        for place, own in differences.items()
    }
    return tuple(
        Row(
            method=method,
            values={place: _mean(data_sets.values(), method, place) for place in PLACES},
            differences={place: own[method] for place, own in differences.items() if method in own},
            adjusted_p_values={place: own[method] for place, own in adjusted.items() if method in own},
        )
        for method in methods
    )


def _mean(data_sets: Collection[Answers], method: str, place: str) -> float:
    """The mean over the domains of all data sets of the mean over seeds."""
    means = []
    for tested in data_sets:
        for domain in tested.domains(place):
            values = [scores[domain].value for scores in tested.runs[method].values()]
            means.append(sum(values) / len(values))
    return sum(means) / len(means)


def overall_markdown(rows: Sequence[Row], data_sets: Collection[str], reference: str) -> str:
    """The table for people, in percent."""
    about = (
        f"Mean over {len(data_sets)} data sets ({', '.join(data_sets)}); differences are against {reference}, in "
        f"points, {EXPLAIN_DIFFERENCES}"
    )
    header = ["method", "in distribution", "mean shifted", *(f"{place}, difference" for place in PLACES)]
    cells = [
        [
            row.method,
            *(f"{100 * row.values[place]:.1f}" for place in PLACES),
            *(_difference(row, place) for place in PLACES),
        ]
        for row in rows
    ]
    return f"{about}\n\n{markdown_table(header, *cells)}\n"


def overall_csv(rows: Sequence[Row]) -> str:
    """One line per method, in fractions; differences are empty for the reference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", " difference", " low", " high", " p", " p_holm")
    writer.writerow(["method", *(f"{place}{part}" for place in PLACES for part in parts)])
    for row in rows:
        cells: list[str] = [spreadsheet_text(row.method)]
        for place in PLACES:
            numbers: list[float | None] = [row.values[place], *[None] * 5]
            if place in row.differences:
                one = row.differences[place]
                numbers[1:] = [one.value, one.low, one.high, one.p_value, row.adjusted_p_values[place]]
            cells += ["" if number is None else f"{number:.6g}" for number in numbers]
        writer.writerow(cells)
    return out.getvalue()


def _difference(row: Row, place: str) -> str:
    if place not in row.differences:
        return ""
    one = row.differences[place]
    return f"{range_text(one.value, one.low, one.high)}, p = {row.adjusted_p_values[place]:.2g}"
