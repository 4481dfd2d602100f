import csv
import io
from itertools import pairwise

import pytest

from tether.errors import TetherError
from tether.evaluation.overall import PLACES, Answers, overall, overall_csv, overall_markdown
from tether.evaluation.overall_figure import label_places, overall_figure
from tether.evaluation.summary import MEAN_OF_SHIFTED, differences

from .demo import SHIFTED, demo_runs

REFERENCE = "full fine-tuning"


@pytest.fixture(scope="module")
def data_sets():
    return {
        name: Answers(runs=demo_runs(seeds=3, n=n), in_distribution="twemoji", shifted=shifted)
        for name, n, shifted in (("small", 60, SHIFTED), ("large", 120, SHIFTED[:2]))
    }


def test_one_data_set_alone_is_its_own_table(data_sets):
    tested = data_sets["large"]
    rows = {row.method: row for row in overall({"large": tested}, REFERENCE)}
    assert list(rows) == list(tested.runs)
    assert not rows[REFERENCE].differences and not rows[REFERENCE].adjusted_p_values
    for found in differences(tested.runs, REFERENCE, ["twemoji"], tested.shifted):
        row, place = rows[found.method], PLACES[found.where == MEAN_OF_SHIFTED]
        assert row.differences[place] == found.estimate
        assert row.adjusted_p_values[place] == found.adjusted_p_value


def test_every_domain_of_every_data_set_counts_the_same(data_sets):
    row = next(row for row in overall(data_sets, REFERENCE, draws=200) if row.method == "R-Adapter")

    def mean(method, domains):
        values = [
            sum(data_sets[name].runs[method][seed][domain].value for seed in range(3)) / 3
            for name, domain in domains
        ]
        return sum(values) / len(values)

    home = [("small", "twemoji"), ("large", "twemoji")]
    away = [(name, domain) for name, tested in data_sets.items() for domain in tested.shifted]
    assert len(away) == 7
    for place, domains in zip(PLACES, (home, away), strict=True):
        assert row.values[place] == pytest.approx(mean("R-Adapter", domains))
        expected = mean("R-Adapter", domains) - mean(REFERENCE, domains)
        assert row.differences[place].value == pytest.approx(expected)
        assert row.differences[place].low < expected < row.differences[place].high


def test_only_methods_of_all_data_sets_stand_there(data_sets):
    small = data_sets["small"]
    few = {name: own for name, own in small.runs.items() if name in (REFERENCE, "R-Adapter")}
    both = {"large": data_sets["large"], "few": Answers(runs=few, in_distribution="twemoji", shifted=SHIFTED)}
    assert {row.method for row in overall(both, REFERENCE, draws=50)} == {REFERENCE, "R-Adapter"}
    with pytest.raises(TetherError, match="'zero-shot' is not there on all of large, few"):
        overall(both, "zero-shot")
    with pytest.raises(TetherError, match="no shifted test in few"):
        overall({"few": Answers(runs=few, in_distribution="twemoji", shifted=())}, REFERENCE)


def test_the_tables_hold_the_numbers(data_sets):
    rows = overall(data_sets, REFERENCE, draws=200)
    lines = list(csv.DictReader(io.StringIO(overall_csv(rows))))
    assert [line["method"] for line in lines] == [row.method for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["shifted"]) == pytest.approx(row.values["shifted"], rel=1e-5)
        if row.method == REFERENCE:
            assert line["shifted p_holm"] == ""
        else:
            assert float(line["in distribution low"]) == pytest.approx(
                row.differences["in distribution"].low, rel=1e-4, abs=1e-6
            )
    page = overall_markdown(rows, data_sets, REFERENCE)
    assert f"| {REFERENCE} | {100 * rows[0].values['shifted']:.1f}" not in page
    assert len([line for line in page.splitlines() if line.startswith("|")]) == len(rows) + 2
    assert "p = " in page and "-0" not in page


def test_the_picture_names_every_method_apart(data_sets):
    rows = overall(data_sets, REFERENCE, draws=50)
    picture = overall_figure(rows, REFERENCE, "R-Adapter", {"zero-shot"})
    for row in rows:
        assert f">{row.method}<" in picture
    assert picture.startswith("<svg") and 'fill="white"' in picture


def test_labels_lie_beside_their_points_and_not_on_each_other():
    points = {f"method {number}": (0.4 + number / 2000, 0.5) for number in range(6)} | {
        "far right": (0.97, 0.2)
    }
    places = label_places(points)
    heights = sorted(y for name, (_, y) in places.items() if name != "far right")
    assert all(second - first > 0.04 for first, second in pairwise(heights))
    assert places["method 0"] == (pytest.approx(0.42), 0.5)
    assert places["far right"][0] < 0.97 - 0.1
