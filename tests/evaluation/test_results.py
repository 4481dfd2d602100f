import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tether.errors import TetherError
from tether.evaluation.effective_robustness import effective_robustness, inside
from tether.evaluation.figures import robustness_figure, styles
from tether.evaluation.report import report_page
from tether.evaluation.results import Difference, Results, results_schema
from tether.evaluation.scoring import Metric
from tether.evaluation.significance import Estimate
from tether.evaluation.summary import MEAN_OF_SHIFTED
from tether.evaluation.tables import (
    bytes_text,
    chosen_text,
    count_text,
    differences_csv,
    p_text,
    percent,
    predictions_csv,
    seconds_text,
    to_csv,
    to_markdown,
    to_terminal,
    tuning_text,
)

from .demo import CLASSES, TUNING, demo_results, scores, split

COMMITTED = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def results():
    return demo_results(seeds=2, n=80)


def test_saved_results_are_read_as_they_were(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    grid = demo_results(seeds=1, n=80, grid=True)
    grid.save(tmp_path / "grid.json")
    assert Results.load(tmp_path / "grid.json") == grid


def test_other_versions_and_damaged_files_are_refused(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    text = path.read_text()
    path.write_text(text.replace('"version": 4', '"version": 1'))
    with pytest.raises(TetherError, match="version 1; this program reads version 4"):
        Results.load(path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(TetherError, match="not valid JSON"):
        Results.load(path)
    value = json.loads(text)
    value["methods"][1]["seeds"] = "three"
    path.write_text(json.dumps(value))
    with pytest.raises(TetherError, match=r"methods\[1\].seeds takes a list"):
        Results.load(path)
    path.write_text("[]")
    with pytest.raises(TetherError, match="version None"):
        Results.load(path)


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*/results.json")), ids=lambda path: path.parent.name)
def test_results_of_earlier_versions_are_read(path, tmp_path):
    earlier = Results.load(path)
    assert earlier.methods and earlier.metrics
    earlier.save(tmp_path / "now.json")
    assert Results.load(tmp_path / "now.json") == earlier


def test_schema_covers_every_saved_name(results, tmp_path):
    results.save(tmp_path / "results.json")
    saved, found = json.loads((tmp_path / "results.json").read_text()), results_schema()
    assert set(saved) == set(found["$defs"]["Results"]["properties"])
    assert set(saved["methods"][0]) == set(found["$defs"]["Method"]["required"])


def test_inconsistent_results_are_refused(results):
    first = results.methods[0]
    measure = first.measures["noto"]
    with pytest.raises(TetherError, match="its own name; found twice: zero-shot"):
        replace(results, methods=(first, first))
    with pytest.raises(TetherError, match="did you mean 'R-Adapter'"):
        replace(results, highlighted="R-Adaptor")
    with pytest.raises(TetherError, match="2 seeds but 1 results"):
        replace(results, methods=(replace(first, seeds=(0, 1)), *results.methods[1:]))
    with pytest.raises(TetherError, match="unknown domains: \\['mars'\\]"):
        replace(results, methods=(replace(first, measures={"mars": measure}), *results.methods[1:]))
    broken = replace(
        first,
        measures={**first.measures, "noto": replace(measure, values={**measure.values, "top1": (math.nan,)})},
    )
    with pytest.raises(TetherError, match="finite numbers only"):
        replace(results, methods=(broken, *results.methods[1:]))


def test_mean_and_worst_over_shifts(results):
    method = results.method("R-Adapter")
    names = [domain.name for domain in results.of_kind("shifted")]
    for seed, mean in enumerate(results.mean_over(method, "shifted")):
        assert mean == pytest.approx(sum(method.measures[name].first[seed] for name in names) / 5)
    name, value = results.worst(method)
    assert value == method.measures[name].mean == min(method.measures[n].mean for n in names)
    assert results.mean_over(method, "corruption") == ()
    assert results.method("nobody") is None


def cells(markdown, title="method"):
    """Rows of a Markdown table as dicts by column; the table whose first column has this title."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:] if len(line) == len(lines[0])]


def test_effective_robustness_is_measured_from_each_method_s_place(results):
    line, method = results.baseline_line(), results.method("R-Adapter")
    home = inside(method.measures["twemoji"].mean, 80)
    value, ends = effective_robustness(line, home, method.shifted_mean.value)
    assert results.effective_robustness(method) == (value, ends) and ends.low < value < ends.high
    row = next(row for row in cells(to_markdown(results)) if row["method"] == "R-Adapter")
    shown = f"{100 * value:+.1f} ({100 * ends.low:+.1f} to {100 * ends.high:+.1f})".replace("-", "−")
    assert row["effective robustness"] == shown
    row = next(row for row in csv.DictReader(io.StringIO(to_csv(results))) if row["method"] == "R-Adapter")
    assert float(row["effective robustness"]) == pytest.approx(value, rel=1e-5)
    few = replace(results, baseline=results.baseline[:2])
    assert few.baseline_line() is None and few.effective_robustness(method) is None
    assert "effective robustness" not in to_markdown(few)
    alone = replace(method, shifted_mean=None)
    assert results.place(alone) is None and results.effective_robustness(alone) is None


def test_tables_say_how_settings_were_chosen_and_what_that_cost(results):
    rows = {row["method"]: row for row in cells(to_markdown(results))}
    assert rows["R-Adapter"]["tuning"] == "3 trials, 1,200 steps" == tuning_text(results.method("R-Adapter"))
    assert rows["R-Adapter"]["chosen"] == "optimizer.lr 0.0003, adapter.drop 0.2"
    assert rows["linear probe"]["tuning"] == rows["linear probe"]["chosen"] == "–"
    assert rows["linear probe"]["steps"] == "300" and rows["zero-shot"]["steps"] == "–"
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv(results)))}
    own = rows["R-Adapter"]
    assert (own["tuning_budget"], own["tuning_trials"], own["tuning_steps"]) == ("4", "3", "1200")
    assert own["chosen"] == chosen_text(results.method("R-Adapter")) and rows["linear probe"]["chosen"] == ""
    untuned = [replace(method, tuning=None) for method in results.methods]
    assert "| tuning |" not in to_markdown(replace(results, methods=tuple(untuned)))
    with pytest.raises(TetherError, match="chosen but never tried"):
        replace(TUNING, chosen={"optimizer.lr": "1"})


def test_one_kind_of_corruption_has_its_own_column_and_is_no_shift(results):
    noise = replace(results.domains[1], name="corrupted", kind="corruption")
    methods = [
        replace(method, measures={**method.measures, "corrupted": method.measures["fxemoji"]})
        for method in results.methods
    ]
    noisy = replace(results, methods=tuple(methods), domains=(*results.domains, noise))
    for before, after in zip(cells(to_markdown(results)), cells(to_markdown(noisy)), strict=True):
        assert after.pop("corrupted") == before["fxemoji"] and after == before
    rows = list(csv.DictReader(io.StringIO(to_csv(noisy))))
    assert all(row["corrupted"] == row["fxemoji"] == row["mean corruption"] for row in rows)


def test_differences_are_written_line_by_line(results):
    rows = list(csv.DictReader(io.StringIO(differences_csv(results))))
    assert len(rows) == len(results.differences) == 8
    for row, one in zip(rows, results.differences, strict=True):
        assert (row["method"], row["reference"], row["where"]) == (one.method, one.reference, one.where)
        assert float(row["difference"]) == pytest.approx(one.estimate.value, rel=1e-5)
        assert float(row["p_holm"]) == pytest.approx(one.adjusted_p_value, rel=1e-5)
    text = to_markdown(results)
    own = next(one for one in results.differences if one.method == "R-Adapter" and one.where == "twemoji")
    assert "more (+) or less (−) than full fine-tuning" in text and p_text(own.adjusted_p_value) in text
    table = [line for line in text[text.index("more (+)") :].splitlines() if line.startswith("| ")]
    assert table[0] == "| method | twemoji | p | mean of shifted domains | p |" and len(table) == 2 + 4
    assert p_text(0.0004) == "< 0.001" and p_text(0.05) == "0.050"
    assert "more (+)" not in to_markdown(replace(results, differences=()))


def test_tables_show_every_method_and_domain(results):
    console = Console(width=300, file=io.StringIO())
    console.print(to_terminal(results))
    for table in (console.file.getvalue(), to_markdown(results), to_csv(results)):
        for name in [m.name for m in results.methods] + [d.name for d in results.domains]:
            assert name in table
    method = results.method("R-Adapter")
    cell = percent(method.measures["noto"].first)
    assert "±" in cell and cell in to_markdown(results) and cell in console.file.getvalue()
    assert "standard deviation over 2 seeds" in to_markdown(results)


def test_csv_holds_every_number(results):
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [row["method"] for row in rows] == [method.name for method in results.methods]
    for row, method in zip(rows, results.methods, strict=True):
        assert float(row["noto"]) == pytest.approx(method.measures["noto"].mean, rel=1e-5)
        assert float(row["noto low"]) == pytest.approx(method.measures["noto"].interval.low, rel=1e-5)
        assert float(row["mean shifted"]) == pytest.approx(method.shifted_mean.value, rel=1e-5)
        assert int(row["file_bytes"]) == method.file_bytes


def test_hostile_names_stay_text(results):
    name = "=HYPERLINK(1)|<b>x</b>\n[bold red]y"
    hostile = replace(
        results, methods=(replace(results.methods[0], name=name),), zero_shot="", highlighted=""
    )
    assert next(csv.DictReader(io.StringIO(to_csv(hostile))))["method"] == "'" + name
    row = to_markdown(hostile).splitlines()[2]
    assert row.count(" | ") == to_markdown(hostile).splitlines()[0].count(" | ") and "<b>" not in row
    console = Console(width=400, file=io.StringIO())
    console.print(to_terminal(hostile))
    assert "[bold red]y" in console.file.getvalue()


def test_empty_results_make_empty_tables():
    empty = Results(title="nothing", data_set="none", domains=(), methods=())
    assert to_csv(empty).count("\n") == 1
    assert to_markdown(empty).startswith("| method |")
    Console(file=io.StringIO()).print(to_terminal(empty))


def test_sizes_and_times_read_well():
    assert [
        bytes_text(n) for n in (None, 0, 999, 1000, 1_640_000, 820_000, 3_500_000_000, 9_000_000_000_000)
    ] == [
        "–",
        "0 B",
        "999 B",
        "1.0 kB",
        "1.6 MB",
        "820 kB",
        "3.5 GB",
        "9000 GB",
    ]
    assert [count_text(n) for n in (None, 0, 820_000, 20_447_232)] == ["–", "0", "820 k", "20.4 M"]
    assert [seconds_text(s) for s in (None, 41.7, 200.0, 7500.0)] == ["–", "42 s", "3 min 20 s", "2 h 05 min"]
    assert percent(()) == "–" and percent((0.5,)) == "50.0" and percent((0.5, 0.6)) == "55.0 ±7.1"


def test_predictions_are_listed_picture_by_picture():
    own = scores(split("noto", 9), 0.5, 0)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(own, CLASSES))))
    assert [row["identity"] for row in rows] == list(own.identities)
    assert sum(int(row["right"]) for row in rows) == int(own.correct.sum())
    for row, prediction, confidence in zip(rows, own.predictions, own.confidences, strict=True):
        assert row["answer"] == CLASSES[prediction] and (row["answer"] == row["truth"]) == (
            row["right"] == "1"
        )
        assert float(row["confidence"]) == pytest.approx(confidence.item(), rel=1e-5)


def test_identical_methods_are_named_in_tables_and_share_a_mark(results):
    assert results.identical() == ()
    twin = replace(results.method("R-Adapter"), name="twin")
    both = replace(results, methods=(*results.methods, twin))
    assert both.identical() == (("R-Adapter", "twin"),)
    assert "R-Adapter and twin are identical in every number" in to_markdown(both)
    assert "R-Adapter = twin" in robustness_figure(both, names=True)
    page = report_page(both)
    assert "R-Adapter = twin" in page and "R-Adapter and twin are identical" in page
    looks = styles(both)
    assert looks["twin"] == looks["R-Adapter"] == styles(results)["R-Adapter"]


def test_a_method_all_of_whose_seeds_are_the_zero_shot_model_is_identical_to_it(results):
    zero_shot = results.method("zero-shot")
    many = {
        name: replace(measure, values={part: numbers * 2 for part, numbers in measure.values.items()})
        for name, measure in zero_shot.measures.items()
    }
    copy = replace(zero_shot, name="copy", seeds=(0, 1), measures=many)
    assert len(zero_shot.seeds) == 1
    assert replace(results, methods=(*results.methods, copy)).identical() == (("zero-shot", "copy"),)


def test_tables_say_what_their_numbers_are(results):
    assert "Top-1 accuracy in percent" in to_markdown(results)
    recall = replace(results, metrics=(Metric(name="recall", title="recall at 1"),))
    text = to_markdown(recall)
    assert "Recall at 1 in percent" in text and "Points of recall at 1 more (+)" in text
    assert "accuracy" not in text.split("Effective robustness")[0]


def test_a_domain_of_other_classes_has_a_column_and_no_part_in_the_mean(results):
    (first, *rest) = results.of_kind("shifted")
    home = results.of_kind("in-distribution")
    changed = replace(results, domains=(*home, replace(first, kind="other classes"), *rest))
    assert [domain.name for domain in changed.shown] == [
        domain.name for domain in (*home, *rest, replace(first, kind="other classes"))
    ]
    method = changed.method("R-Adapter")
    means = [method.measures[domain.name].mean for domain in rest]
    over_seeds = changed.mean_over(method, "shifted")
    assert sum(over_seeds) / len(over_seeds) == pytest.approx(sum(means) / len(means))
    assert f"{first.name} (other classes)" in to_markdown(changed)
    page = report_page(changed)
    assert f"{first.name}<br><small>other classes</small>" in page and "<dt>other classes</dt>" in page
    assert "and 1 of other classes" in page


def test_a_domain_whose_name_begins_with_mean_is_not_the_mean(results):
    def difference(where, low):
        estimate = Estimate(value=0.1, low=low, high=0.2, p_value=0.5)
        return Difference(
            method="R-Adapter", reference="zero-shot", where=where, estimate=estimate, adjusted_p_value=0.5
        )

    differences = (difference(MEAN_OF_SHIFTED, 0.0123), difference("meanwhile", 0.0456))
    page = report_page(replace(results, highlighted="R-Adapter", differences=differences))
    lead = page.partition('class="lead">')[2].partition("</p>")[0]
    assert "+1.2 to +20.0" in lead and "+4.6" not in lead
