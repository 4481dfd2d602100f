"""Comparisons on the command line: made, killed, continued, and refused where they would make no sense."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

from tether._files import read_json
from tether.cli import main
from tether.config import method
from tether.data import FolderConfig
from tether.errors import TetherError
from tether.evaluation import Results
from tether.recipe import from_plain
from tether.runs.comparing.comparison import ReportOptions, compare
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


def test_several_models_and_data_sets_give_a_table_per_data_set(
    recipes, tiny_data, make_tiny_model, tmp_path, capsys
):
    models = []
    for seed, name in enumerate(("small", "other")):
        models.append(str(shutil.copytree(make_tiny_model(seed), tmp_path / "models" / name)))
    for name in ("flowers", "birds"):
        train = shutil.copytree(tiny_data["train"], tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**tiny_data, "train": str(train)}))
    data = ["flowers.yaml", "birds.yaml"]
    command = ["compare", "head.yaml", "--models", *models, "--data", *data, "--runs", "runs"]
    assert main([*command, "--reference", "head", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert (
        "[3/4] head (small), data set 2, seed 0, fold 0" in said and "[4/4] head (other), data set 2" in said
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "flowers",
        "birds",
        "overall.md",
        "overall.csv",
        "overall.svg",
    }
    for name in ("flowers", "birds"):
        assert f"Table and report: out/{name}/report.html" in said
        results = Results.load(tmp_path / "out" / name / "results.json")
        rows = [method.name for method in results.methods]
        assert rows == ["zero-shot (small)", "head (small)", "zero-shot (other)", "head (other)"]
        assert (results.zero_shot, results.highlighted) == ("zero-shot (other)", "head (other)")
        assert {one.reference for one in results.differences} == {"head (small)"}
        assert {one.method for one in results.differences} == {*rows} - {"head (small)"}
        assert results.data_set == name and results.settings["model"] == ", ".join(models)
        assert f"--models {' '.join(models)} --data {' '.join(data)}" in results.settings["command"]

    before = stamps(tmp_path)
    assert main([*command, "--reference", "zero-shot", "--out", "out"]) == 2
    assert "holds another comparison" in capsys.readouterr().err
    assert stamps(tmp_path) == before

    alone = ["compare", "head.yaml", "--models", models[1], "--data", "birds.yaml", "--runs", "runs"]
    assert main([*alone, "--out", "alone"]) == 0  # the same run, in a table as ever
    one = Results.load(tmp_path / "alone" / "results.json")
    assert [method.name for method in one.methods] == ["zero-shot", "head"]
    assert replace(one.method("head"), name="") == replace(results.method("head (other)"), name="")
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_a_fold_may_lack_a_shift(tiny_recipe, tmp_path, own_methods):
    """As the hand-drawn look of icon-shift, of which all designers lie in two folds."""

    @method("folded")
    @dataclass(frozen=True, kw_only=True)
    class FoldedConfig(FolderConfig):
        fold: int = 0

        def load(self):
            benchmark = super().load()
            halves = {
                name: replace(split, examples=split.examples[self.fold :: 2])
                for name, split in benchmark.tests.items()
            }
            tests = halves if self.fold == 0 else {"colour": halves["colour"]}
            return replace(benchmark, tests=tests)

    recipe = from_plain({**tiny_recipe, "data": {**tiny_recipe["data"], "method": "folded"}})
    (first,) = compare(Plan(recipes=[recipe], root=tmp_path, folds=(0,)), show_progress=False)
    (both,) = compare(Plan(recipes=[recipe], root=tmp_path, folds=(0, 1)), show_progress=False)
    assert [domain.name for domain in both.results.domains] == ["colour", "outline"]
    counts = {domain.name: domain.n for domain in both.results.domains}
    alone = {domain.name: domain.n for domain in first.results.domains}
    assert alone["colour"] < counts["colour"] and alone["outline"] == counts["outline"]
    assert {name: len(split) for name, split in both.tests.items()} == counts
    pooled, single = both.results.method("tiny"), first.results.method("tiny")
    assert pooled.measures["outline"] == single.measures["outline"]
    assert [point.measures["outline"] for point in pooled.path] == [
        point.measures["outline"] for point in single.path
    ]


@pytest.fixture
def on_models(tiny_recipe, tmp_path):
    """Recipes "a" and "b" on the models "large" and "small"."""
    return [
        from_plain({**tiny_recipe, "name": name, "model": model})
        for model in ("hub/large", "hub/small")
        for name in ("a", "b")
    ]


def test_a_row_of_several_models_goes_by_its_recipe_or_its_whole_name(on_models):
    assert ReportOptions().rows(on_models) == {
        "reference": "zero-shot (large)",
        "baselines": [],
        "highlighted": "b (small)",
    }
    chosen = ReportOptions(reference="zero-shot (small)", baselines=["a", "b (small)"], highlighted="b").rows(
        on_models
    )
    assert chosen == {
        "reference": "zero-shot (small)",
        "baselines": ["a (large)", "a (small)", "b (small)"],
        "highlighted": "b (large)",
    }
    with pytest.raises(
        TetherError, match=r"no recipe 'b \(smal\)' in this comparison; did you mean 'b \(small"
    ):
        ReportOptions(highlighted="b (smal)").rows(on_models)


def test_models_of_one_name_are_told_apart_by_their_paths(tiny_recipe):
    models = ("mine/vit", "yours/vit")
    recipes = [from_plain({**tiny_recipe, "model": model}) for model in models]
    assert ReportOptions().rows(recipes)["highlighted"] == "tiny (yours/vit)"


def test_what_cannot_stand_in_tables_together_is_refused(on_models, tiny_recipe, tmp_path):
    elsewhere = from_plain({**tiny_recipe, "name": "a", "data": {"method": "emoji_shift"}})
    with pytest.raises(TetherError, match="b is not on that of a"):
        Plan(recipes=[*on_models, elsewhere], root=tmp_path)
    with pytest.raises(TetherError, match="'a' is given twice"):
        Plan(recipes=[*on_models, on_models[0]], root=tmp_path)
    captions = from_plain({**tiny_recipe, "name": "found", "task": {"method": "retrieval"}})
    with pytest.raises(TetherError, match=r"same task.*classification \(b\), retrieval \(found\)"):
        Plan(recipes=[*on_models, captions], root=tmp_path)


def test_recipes_are_crossed_with_models_and_data(recipes):
    chosen = read_recipes(
        recipes, ["training.seed=7"], models=["one", "two"], data=["data={method: emoji_shift}"]
    )
    assert [(one.name, one.model) for one in chosen] == [
        ("tiny", "one"),
        ("head", "one"),
        ("tiny", "two"),
        ("head", "two"),
    ]
    assert {(one.training.seed, type(one.data).__name__) for one in chosen} == {(7, "EmojiShiftConfig")}
