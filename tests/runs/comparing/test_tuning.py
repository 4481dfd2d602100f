"""Which points are tried, which wins, and that a tuned comparison looks at no test picture before the end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tether._files import read_json
from tether.cli import main
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.evaluation import Sweep
from tether.evaluation.results import Trial, Tuning
from tether.recipe import from_plain
from tether.runs.comparing import comparison
from tether.runs.comparing.notes import _reuse_notes
from tether.runs.comparing.plan import Plan, variant
from tether.runs.comparing.results import Trained, pooled_tests
from tether.runs.comparing.tuning import at_the_end, choose, points, size
from tether.runs.comparing.worker import Worker
from tether.runs.outcome import Outcome
from tether.training.run_directory import read_metrics

SEARCH = {"optimizer.lr": ["1e-5", 3e-5, 1e-4], "adapter.drop": [0.0, 0.2]}


@pytest.fixture
def recipe(tiny_recipe):
    return from_plain({**tiny_recipe, "search": SEARCH})


def outcome(recipe, accuracy):
    """What a run of this recipe would leave behind."""
    rows = [
        {"alpha": 0.0, "in_distribution": 0.99},
        {"alpha": {"image": 0.5, "text": 0.5}, "in_distribution": accuracy},
    ]
    return Outcome(
        recipe=recipe,
        benchmark=load_benchmark(recipe.data),
        test=Sweep((), ()),
        alpha=0.5,
        alpha_reason="",
        validation=rows,
        trained_parameters=0,
        file_bytes=0,
        seconds=0.0,
        peak_memory_bytes=0,
        run=Path("run"),
    )


def test_a_grid_within_the_budget_is_tried_whole_in_the_order_of_its_names(recipe):
    found = points(recipe, 6)
    assert [point.words for point in found] == [
        {"optimizer.lr": lr, "adapter.drop": drop}
        for lr in ("1e-05", "3e-05", "0.0001")
        for drop in ("0", "0.2")
    ]
    assert found[1].recipe.optimizer.lr == 1e-5 and found[1].recipe.adapter.drop == 0.2
    assert all(point.recipe.search == {} for point in found) and size(recipe) == 6
    unchanged = replace(recipe, search={})
    assert points(replace(recipe, search={"optimizer.lr": (recipe.optimizer.lr,)}), 9)[0].recipe == unchanged


def test_a_larger_grid_is_drawn_from_by_chance_without_repetition(recipe):
    wide = replace(recipe, search={**recipe.search, "optimizer.weight_decay": tuple(range(100))})
    drawn = [point.values for point in points(wide, 20)]
    assert len({json.dumps(values) for values in drawn}) == 20
    assert drawn == [point.values for point in points(wide, 20)]
    assert drawn != [point.values for point in points(wide, 20, seed=1)]
    assert {values["optimizer.lr"] for values in drawn} == {1e-5, 3e-5, 1e-4}
    decays = [values["optimizer.weight_decay"] for values in drawn]
    assert min(decays) < 30 and max(decays) > 70  # not the first twenty of the grid


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_has_each_value_of_every_option_equally_often(recipe, seed):
    """Three trials of three learning rates and two drops: every learning rate once, neither drop left out."""
    drawn = [point.values for point in points(recipe, 3, seed=seed)]
    assert sorted(values["optimizer.lr"] for values in drawn) == [1e-5, 3e-5, 1e-4]
    assert {values["adapter.drop"] for values in drawn} == {0.0, 0.2}


def test_the_seed_of_the_trials_also_draws_them(recipe, tmp_path):
    draws = {
        tuple(map(str, Plan(recipes=[recipe], root=tmp_path, tune=3, tune_seed=seed).points(recipe)))
        for seed in range(8)
    }
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"optimizer.lrr": [1.0]}, "'optimizer.lrr' to search; did you mean 'lr'"),
        ({"optimizr.lr": [1.0]}, "did you mean 'optimizer'"),
        ({"optimizer.lr.deep": [1.0]}, "belongs to something that is 0.02"),
        ({"data.validation_share": [0.2, 0.3]}, "may not vary"),
        ({"training.seed": [0, 1]}, "may not vary"),
        ({"model": ["builtin"]}, "may not vary"),
        ({"optimizer.lr": []}, "no values"),
        ({"optimizer.lr": ["1e-4", 1e-4]}, "twice"),
        ({"optimizer.lr": [0.1, -0.1]}, "with {'optimizer.lr': -0.1}: optimizer.lr must be positive"),
        ({"alpha.grid.7": [0.1]}, "no entry of a list of 3"),
    ],
)
def test_a_search_that_makes_no_recipe_is_refused(tiny_recipe, search, told):
    with pytest.raises(TetherError, match="(?i)" + told.replace("{", r"\{")):
        points(from_plain({**tiny_recipe, "search": search}), 9)


def test_an_entry_of_a_list_can_be_searched(tiny_recipe):
    recipe = from_plain({**tiny_recipe, "search": {"alpha.grid.1": [0.25, 0.75]}})
    assert [point.recipe.alpha.grid for point in points(recipe, 2)] == [(0.0, 0.25, 1.0), (0.0, 0.75, 1.0)]


def test_the_best_on_validation_wins_and_ties_go_to_the_smaller_learning_rate(recipe):
    recipe = replace(recipe, search={"optimizer.lr": (3e-5, 1e-4, 1e-5), "adapter.drop": (0.0, 0.2)})
    tried = points(recipe, 6)

    def chosen(*accuracies):
        outcomes = [
            None if accuracy is None else outcome(point.recipe, accuracy)
            for point, accuracy in zip(tried, accuracies, strict=True)
        ]
        return choose(recipe, tried, outcomes, 8)

    best, record = chosen(0.5, 0.6, 0.9, 0.7, None, 0.4)
    assert best.optimizer.lr == 1e-4 and best.adapter.drop == 0.0 and best.search == {}
    assert record.chosen == {"optimizer.lr": "0.0001", "adapter.drop": "0"}
    assert [trial.validation for trial in record.trials] == [0.5, 0.6, 0.9, 0.7, None, 0.4]
    assert (record.budget, record.points) == (8, 6) and record.steps == 5 * 12  # 4 epochs of 3 batches
    assert chosen(0.5, 0.9, 0.9, 0.9, 0.9, 0.9)[0] == tried[4].recipe
    assert chosen(None, 0.9, 0.8, 0.9, 0.5, None)[0] == tried[1].recipe
    with pytest.raises(TetherError, match="All 6 trials of tiny diverged"):
        chosen(*[None] * 6)


def test_a_choice_at_the_end_of_a_range_of_numbers_is_told(recipe):
    recipe = replace(
        recipe,
        search={
            "optimizer.lr": (1e-5, 1e-4, 1e-3),
            "alpha.rule": ("in distribution", "mean", "bounded loss"),
        },
    )
    tried = points(recipe, 9)

    def ends(best):
        outcomes = [outcome(point.recipe, float(point is tried[best])) for point in tried]
        return at_the_end(choose(recipe, tried, outcomes, 9)[1])

    assert [ends(best) for best in (0, 3, 8)] == [["optimizer.lr 1e-05"], [], ["optimizer.lr 0.001"]]
    two = replace(recipe, search={"optimizer.lr": (1e-5, 1e-4)})
    tried = points(two, 2)
    assert at_the_end(choose(two, tried, [outcome(point.recipe, 0.5) for point in tried], 2)[1]) == []


def test_a_run_without_validation_accuracy_cannot_be_chosen(recipe):
    tried = points(recipe, 1)
    blind = outcome(tried[0].recipe, 0.5)
    blind = replace(blind, validation=blind.validation[:1])  # not at the run's alpha
    with pytest.raises(TetherError, match="no accuracy on validation pictures"):
        choose(recipe, tried, [blind], 1)


@pytest.fixture
def tuned(tiny_recipe, tmp_path, monkeypatch):
    """A recipe with three learning rates, one of which diverges, and one without a search, on disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = {
        **tiny_recipe,
        "alpha": {"value": "auto", "rule": "in distribution", "grid": [0.5, 1.0], "curve": False},
        "training": {**tiny_recipe["training"], "epochs": 1},
    }
    search = {"optimizer.lr": [0.001, 0.02, 1e30]}
    (tmp_path / "searched.yaml").write_text(json.dumps({**base, "name": "searched", "search": search}))
    (tmp_path / "fixed.yaml").write_text(json.dumps({**base, "name": "fixed"}))
    return ["compare", "searched.yaml", "fixed.yaml", "--tune", "4", "--tune-seed", "7", "--runs", "runs"]


def test_a_tuned_comparison_chooses_without_tests_and_trains_no_point_twice(
    tuned, tmp_path, capsys, monkeypatch
):
    looked = []
    finish = Worker.finish

    def finish_and_look(self, jobs):
        paths = finish(self, jobs)
        if any(job.may_diverge for job in jobs):
            looked.extend(read_json(path / "result.json")["test"] for path in paths if path)
        return paths

    monkeypatch.setattr(Worker, "finish", finish_and_look)
    assert main([*tuned, "--seeds", "7", "8", "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert "tuning searched: optimizer.lr 0.001" in shown and "searched, seed 8, fold 0" in shown
    assert looked == [{}, {}]  # of the two trials that did not diverge

    results = read_json(tmp_path / "out" / "results.json")
    methods = {method["name"]: method for method in results["methods"]}
    record = methods["searched"]["tuning"]
    levels = {trial["values"]["optimizer.lr"]: trial["validation"] for trial in record["trials"]}
    assert (
        levels["1e+30"] is None and record["budget"] == 4 and record["points"] == 3 and record["steps"] == 6
    )
    best = min(("0.001", "0.02"), key=lambda lr: (-levels[lr], float(lr)))
    assert record["chosen"] == {"optimizer.lr": best} and methods["fixed"]["tuning"] is None
    assert f"lr {best}" in methods["searched"]["description"]
    assert any("Not tuned" in note and "fixed" in note for note in results["notes"])
    assert "With fewer settings to try than the budget allows: searched (3)." in results["notes"]
    told = f"Chosen at the end of what was tried, so better may lie beyond: searched (optimizer.lr {best})."
    assert (told in results["notes"]) == (best == "0.001")
    for table in ("table.md", "table.csv", "report.html"):
        assert f"optimizer.lr {best}" in (tmp_path / "out" / table).read_text()

    runs = sorted((tmp_path / "runs").glob("searched-*"))
    configs = {run: read_json(run / "config.json") for run in runs}
    assert all(config["search"] == {} for config in configs.values())
    assert len(runs) == 3 + 1  # seed 7 of the final runs goes on from its trial
    chosen = [run for run in runs if configs[run]["optimizer"]["lr"] == float(best)]
    assert sorted(configs[run]["training"]["seed"] for run in chosen) == [7, 8]
    for run in chosen:
        assert read_json(run / "result.json")["test"]
        steps = [row["step"] for row in read_metrics(run) if row["kind"] == "train"]
        assert steps == sorted(set(steps))  # no step was made twice

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert main([*tuned, "--seeds", "7", "8", "--out", "out"]) == 0  # a diverged trial is not tried again
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert after == before


def test_a_method_whose_alpha_is_given_is_tuned_too(tiny_recipe, tmp_path):
    search = {"optimizer.lr": [0.001, 0.02]}
    training = {**tiny_recipe["training"], "epochs": 1}
    recipe = from_plain({**tiny_recipe, "alpha": {"value": 1.0}, "search": search, "training": training})
    plan = Plan(recipes=[recipe], root=tmp_path, tune=2)
    results = comparison.compare(plan, show_progress=False)[0].results
    assert [trial.validation is None for trial in results.method("tiny").tuning.trials] == [False, False]
    assert results.method("tiny").alpha == "1" and results.alpha is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tune-fold", "1"], "Only the built-in data has folds"),
        (["--set", "search={}"], "nothing to tune"),
        (
            ["--set", "optimizer.beta=1"],
            "fixed.yaml with optimizer.beta=1: There is no option 'optimizer.beta'",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_training(tuned, tmp_path, capsys, words, told):
    order = [tuned[0], *reversed(tuned[1:3]), *tuned[3:]]
    assert main([*order, *words, "--out", "out"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_settings_were_chosen_on_is_no_test_in_another_fold(tiny_recipe):
    """On the built-in data the validation pictures of one fold are test pictures of the others."""
    options = {name: part for name, part in tiny_recipe.items() if name != "model"}
    recipe = from_plain({**options, "data": {"method": "emoji_shift"}})
    benchmarks = [load_benchmark(variant(recipe, 0, fold).data) for fold in (0, 1)]
    seen, first = benchmarks[0].validation.identities, benchmarks[0].tests
    tests, honest = pooled_tests(benchmarks), pooled_tests(benchmarks, seen)
    for name, split in tests.items():
        assert split.identities & seen and not honest[name].identities & seen
        assert honest[name].identities == split.identities - seen
        assert honest[name].examples[: len(first[name])] == first[name].examples


def notes_on(recipes, root, tune):
    """What is said of pictures that serve twice, where every recipe with a search was tuned."""
    trained = []
    for recipe in recipes:
        words = {"optimizer.lr": "1e-05"}
        tuning = Tuning(
            budget=2, points=2, steps=1, chosen=words, trials=(Trial(values=words, validation=0.5),)
        )
        trained.append(Trained(recipe=recipe, tuning=tuning if tune and recipe.search else None, by_seed={}))
    return _reuse_notes(Plan(recipes=recipes, root=root, tune=tune), trained)


def test_radii_that_are_learned_on_the_validation_pictures_are_told(tiny_recipe, tmp_path):
    tpgm = {"name": "tpgm", "optimizer": {"method": "tpgm"}, "objective": {"method": "cross_entropy"}}
    given = from_plain({**tiny_recipe, **tpgm, "alpha": {"value": 1.0}, "search": SEARCH})
    chosen = replace(given, name="chosen", alpha=replace(given.alpha, value="auto"))
    other = from_plain({**tiny_recipe, "name": "other"})

    def told(*recipes, tune=0):
        return notes_on(recipes, tmp_path, tune)

    assert told(given, other) == []
    (note,) = told(given, chosen, other)
    assert note.startswith("chosen: ")
    (note,) = told(given, chosen, other, tune=2)
    assert note.startswith("tpgm, chosen: ")


def test_ensembles_fitted_to_the_pictures_that_choose_settings_are_told(tiny_recipe, tmp_path):
    vrf = from_plain({**tiny_recipe, "name": "vrf", "ensemble": {"method": "vrf"}, "search": SEARCH})
    other = from_plain({**tiny_recipe, "name": "other", "search": SEARCH})
    assert notes_on([vrf, other], tmp_path, 0) == []
    (note,) = notes_on([vrf, other], tmp_path, 2)
    assert note.startswith("vrf: the ensemble is fitted to the same validation pictures")
