"""Comparisons on the command line: made, killed, continued, and refused where they would make no sense."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tether._files import read_json
from tether.cli import main
from tether.evaluation import Results
from tether.recipe import from_plain
from tether.runs.comparing.comparison import compare
from tether.runs.comparing.plan import Plan, read_recipes


@pytest.fixture
def recipes(tmp_path, tiny_recipe, monkeypatch):
    """Two recipes on disk, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setenv("COLUMNS", "200")
    training = {**tiny_recipe["training"], "epochs": 1}
    head = {"adapter": {"method": "frozen"}, "objective": {"method": "cross_entropy"}}
    for name, parts in (("tiny", {}), ("head", head)):
        options = {**tiny_recipe, "name": name, "training": training, **parts}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(options))
    return ["tiny.yaml", "head.yaml"]


def results_of(recipe, root, **plan):
    (comparison,) = compare(Plan(recipes=[recipe], root=root, **plan), show_progress=False)
    return comparison.results


def stamps(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_killed_comparison_goes_on_and_repeats_nothing(recipes, tmp_path, capsys, monkeypatch):
    from tether.runs.comparing import worker

    command = ["compare", *recipes, "--seeds", "0", "1", "--runs", "runs", "--out", "out"]
    make, made = worker.run, []

    def run_then_die(recipe, *arguments, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(recipe.name)
        return make(recipe, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run", run_then_die)
        assert main(command) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "runs" / f"{made[0]}-002").mkdir()  # killed before it held anything
    finished = stamps(tmp_path / "runs")
    half = next((tmp_path / "runs").glob(f"{made[1]}-001"))
    (half / "result.json").unlink()  # the second one was killed just before its end
    del finished[str(half / "result.json")]

    assert main(command) == 0
    shown = capsys.readouterr().out
    for text in ("[4/4] head, seed 1, fold 0", "zero-shot", "report.html"):
        assert text in shown
    after = stamps(tmp_path / "runs")
    assert all(after[path] == stamp for path, stamp in finished.items() if str(half) not in path)
    assert len([path for path in after if path.endswith("result.json")]) == 4

    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "table.csv",
        "table.md",
        "differences.csv",
        "effective_robustness.svg",
        "report.html",
    }
    assert not list((tmp_path / "runs").glob(".*"))  # no claim is left behind
    results = read_json(out / "results.json")
    assert [method["name"] for method in results["methods"]] == ["zero-shot", "tiny", "head"]
    table = (out / "table.csv").read_text().splitlines()
    assert len(table) > 3 and "colour" in (out / "table.md").read_text()
    assert "<html" in (out / "report.html").read_text() and "outline" in (out / "report.html").read_text()

    def no_run(*arguments, **options):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(worker, "run", no_run)
    shutil.move(out / "table.csv", out / "before.csv")
    assert main(command) == 0
    assert (out / "table.csv").read_text() == (out / "before.csv").read_text()
    assert stamps(tmp_path / "runs") == after


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tiny.yaml"], "given twice"),
        (["--seeds", "0", "0"], "given twice"),
        (["--folds", "0", "1"], "Only the built-in data has folds"),
        (["full"], "full is not on that of tiny"),
        (["none.yaml"], "no file"),
        (["--set", "optimizer.lrr=1"], "tiny.yaml with optimizer.lrr=1: There is no option 'optimizer.lrr'"),
        (["empty"], "no recipe in the folder empty"),
        (["--baselines", "tiny,tiny"], "3 ordinary models or more; found 1"),
        (["--baselines", "tinny,tiny,head"], "no recipe 'tinny' in this comparison; did you mean 'tiny'"),
        (["--reference", "ful"], "no method 'ful' to compare with"),
        (["--tune", "3"], "nothing to tune"),
        (["--set", "name=zero-shot"], "that row is always there"),
        (["--highlight", "ful"], "no recipe 'ful' in this comparison"),
        (["--out", "tiny.yaml/out"], "tiny.yaml is no folder"),
    ],
)
def test_what_cannot_stand_in_one_table_is_refused_before_any_training(
    recipes, tmp_path, capsys, words, told
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "_base.yaml").write_text("name: base")
    out = [] if "--out" in words else ["--out", "out"]
    assert main(["compare", "tiny.yaml", *words, *out]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_a_comparison_does_not_mix_old_runs_with_other_pictures(recipes, tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data["train"], tmp_path / "pictures")
    command = ["compare", "tiny.yaml", "--set", f"data.train={tmp_path / 'pictures'}", "--out", "out"]
    assert main(command) == 0
    next((tmp_path / "pictures" / "circle").iterdir()).unlink()
    assert main(command) == 2
    assert "other pictures" in capsys.readouterr().err


def test_a_picture_that_was_replaced_under_its_name_is_noticed(recipes, tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data["train"], tmp_path / "pictures")
    command = ["compare", "tiny.yaml", "--set", f"data.train={tmp_path / 'pictures'}", "--out", "out"]
    assert main(command) == 0
    one, other = sorted((tmp_path / "pictures" / "circle").iterdir())[:2]
    assert one.stat().st_size != other.stat().st_size
    shutil.copy(other, one)
    assert main(command) == 2
    assert "other pictures" in capsys.readouterr().err


def test_a_base_that_was_replaced_under_its_name_is_noticed(recipes, make_tiny_model, tmp_path, capsys):
    """Whether the run is finished, stopped, or has weights that another recipe could take over."""
    base = tmp_path / "base"
    shutil.copytree(make_tiny_model(0), base)
    command = ["compare", "tiny.yaml", "--set", f"model={base}", "--out", "out"]
    assert main(command) == 0
    shutil.rmtree(base)
    shutil.copytree(make_tiny_model(1), base)
    capsys.readouterr()

    assert main(command) == 2
    assert "another base model" in capsys.readouterr().err
    run = next((tmp_path / "runs" / "compare").glob("tiny-*"))
    result = (run / "result.json").read_text()
    (run / "result.json").unlink()
    assert main(["train", "--resume", str(run)]) == 2
    assert "fingerprint was" in capsys.readouterr().err
    (run / "result.json").write_text(result)
    assert main([*command, "--set", "alpha.value=0.125", "--out", "other"]) == 0
    assert len(list((tmp_path / "runs" / "compare").glob("*/metrics.jsonl"))) == 2  # trained anew


def test_a_report_replaces_none_of_another_comparison(recipes, tmp_path, capsys):
    assert main(["compare", *recipes, "--out", "out", "--highlight", "tiny", "--tune", "0"]) == 0
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.highlighted == "tiny" and "--highlight tiny" in results.settings["command"]
    assert results.title.startswith("2 methods on ")
    finished = stamps(tmp_path)
    assert main(["compare", *recipes, "--out", "out"]) == 2
    assert "holds another comparison, made by `tether compare tiny.yaml" in capsys.readouterr().err
    assert stamps(tmp_path) == finished
    assert main(["compare", *recipes, "--out", "out", "--highlight", "tiny"]) == 0


def test_what_else_lies_among_the_runs_is_left_alone(recipes, tmp_path):
    for name, config in (("other-001", None), ("other-002", "[1]"), ("other-003", "{")):
        folder = tmp_path / "runs" / "compare" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("[]")
        if config:
            (folder / "config.json").write_text(config)
    assert main(["compare", "tiny.yaml", "--out", "out"]) == 0


def test_a_folder_of_recipes_with_a_line_through_three_of_them(recipes, tmp_path):
    """They differ in what follows training, so that one training does for all."""
    base = json.loads((tmp_path / "tiny.yaml").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "_base.yaml").write_text(json.dumps(base))
    for name, alpha in (("a", 0.25), ("b", 0.5), ("c", 1.0), ("d", 0.75)):
        changes = {"extends": "_base.yaml", "name": name, "alpha": {"value": alpha, "curve": False}}
        (tmp_path / "own" / f"{name}.yaml").write_text(json.dumps(changes))
    words = [
        "own",
        "--set",
        "training.batch_size=5",
        "--baselines",
        "a,b,c",
        "--reference",
        "c",
        "--out",
        "out",
    ]
    assert main(["compare", *words]) == 0
    results = Results.load(tmp_path / "out" / "results.json")
    assert [method.name for method in results.methods] == ["zero-shot", "a", "b", "c", "d"]
    assert [point.name for point in results.baseline] == ["a", "b", "c"]
    for point in results.baseline:
        method = results.method(point.name)
        assert point.in_distribution == method.measures["colour"].mean
        assert point.shifted_mean == method.shifted_mean.value == method.measures["outline"].mean
    unfitted = any("no line fits them" in note for note in results.notes)
    assert unfitted == (results.baseline_line() is None)
    assert {one.reference for one in results.differences} == {"c"}
    assert {one.method for one in results.differences} == {"zero-shot", "a", "b", "d"}
    assert "tether compare own --seeds 0 --folds 0 --set training.batch_size=5" in results.settings["command"]
    configs = [read_json(path) for path in (tmp_path / "runs" / "compare").glob("*/config.json")]
    assert [config["training"]["batch_size"] for config in configs] == [5] * 4
    assert len(list((tmp_path / "runs" / "compare").glob("*/metrics.jsonl"))) == 1


def test_a_recipe_of_tether_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    assert [recipe.name for recipe in read_recipes(["full"])] == ["full"]


def test_corrupted_pictures_are_no_natural_shift(tiny_recipe, tmp_path):
    pytest.importorskip("imagecorruptions")
    data = {**tiny_recipe["data"], "corruptions": "mixture"}
    training = {**tiny_recipe["training"], "epochs": 1}
    results = results_of(from_plain({**tiny_recipe, "data": data, "training": training}), tmp_path)
    assert {domain.name: domain.kind for domain in results.domains} == {
        "colour": "in-distribution",
        "outline": "shifted",
        "corrupted": "corruption",
    }
    method = results.method("tiny")
    assert method.shifted_mean.value == method.measures["outline"].mean
    assert results.mean_over(method, "corruption") == method.measures["corrupted"].first
    assert {one.where for one in results.differences} == {
        "colour",
        "outline",
        "corrupted",
        "mean of shifted domains",
    }


def test_the_results_say_how_alpha_was_chosen(tiny_recipe, tmp_path):
    recipe = from_plain({**tiny_recipe, "alpha": {"value": "auto", "grid": [0.0, 0.5, 1.0]}})
    results = results_of(recipe, tmp_path)
    assert results.alpha is not None and results.alpha.alpha in (0.0, 0.5, 1.0)
    assert [point.alpha for point in results.alpha.curve] == [0.0, 0.5, 1.0]
    assert "No test picture" in results.alpha.reason


def test_many_alphas_are_shown_by_their_range(tiny_recipe, tmp_path):
    recipe = from_plain({**tiny_recipe, "training": {**tiny_recipe["training"], "epochs": 1}})
    auto = replace(recipe, alpha=replace(recipe.alpha, value="auto"))
    method = results_of(auto, tmp_path, seeds=range(4)).method("tiny")
    alphas = [read_json(path)["alpha"] for path in sorted(tmp_path.glob("*/result.json"))]
    assert len(alphas) == 4
    if len(set(alphas)) > 1:
        assert method.alpha.startswith(f"by validation: {min(alphas):.4g} to {max(alphas):.4g}, median ")
    else:
        assert method.alpha == f"by validation: {alphas[0]:.4g}"


def test_the_pictures_of_a_comparison_are_checked_once(tiny_recipe, tmp_path, monkeypatch):
    from tether.runs import train as fine_tuning

    checked = []
    monkeypatch.setattr(
        fine_tuning, "require_readable", lambda benchmark, **_: checked.append(benchmark.name)
    )
    recipe = from_plain({**tiny_recipe, "training": {**tiny_recipe["training"], "epochs": 1}})
    results_of(recipe, tmp_path, seeds=(0, 1))
    assert len(checked) == 1


def test_a_change_of_logging_alone_trains_nothing_anew(recipes, monkeypatch, tmp_path):
    from tether.runs.comparing import worker

    assert main(["compare", *recipes, "--runs", "runs", "--out", "out"]) == 0
    before = stamps(tmp_path / "runs")

    def again(*arguments, **options):
        raise AssertionError("trained anew")

    monkeypatch.setattr(worker, "run", again)
    words = ["--set", "training.log_every=1", "--set", "training.keep=1"]
    assert main(["compare", *recipes, "--runs", "runs", "--out", "again", *words]) == 0
    assert stamps(tmp_path / "runs") == before
    one, two = (read_json(tmp_path / name / "results.json")["methods"] for name in ("out", "again"))
    assert one == two


def test_recipes_are_compared_on_data_of_ones_own(recipes, tiny_data, tmp_path, capsys):
    """The recipes' own data are others; the command that is kept names the file."""
    data = {**tiny_data, "domain": "mine", "shifted": {}}
    (tmp_path / "my data.yaml").write_text(json.dumps(data))
    assert main(["compare", *recipes, "--data", "my data.yaml", "--runs", "runs", "--out", "out"]) == 0
    results = Results.load(tmp_path / "out" / "results.json")
    assert [domain.name for domain in results.domains] == ["mine"]
    assert "--data 'my data.yaml'" in results.settings["command"]
