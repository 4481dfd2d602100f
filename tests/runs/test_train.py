"""Whole runs of fine-tuning for classification on a tiny model: what they report is what they saved."""

import json
from dataclasses import replace
from shutil import copytree

import pytest
import torch

import tether.data.dataset
import tether.data.simulated
from tether import recipe as recipes
from tether._files import read_json, read_tensors
from tether.adapters.files import apply, load_adapter
from tether.adapters.head import HEAD_FILE, read_head
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.evaluation import Classifier, class_embeddings, evaluate, zero_shot_classifier
from tether.evaluation import alpha as deciding
from tether.evaluation.reading import read_ahead
from tether.models import load
from tether.runs import train as fine_tuning
from tether.runs.outcome import load_sweep
from tether.runs.train import run
from tether.tasks.classification import Classification
from tether.training import read_metrics

METHODS = {
    "r_adapter + mpm_nce": ({"method": "r_adapter", "drop": 0.3}, {"method": "mpm_nce"}),
    "full + cross_entropy": ({"method": "full"}, {"method": "cross_entropy", "smoothing": 0.1}),
    "full + info_nce": ({"method": "full"}, {"method": "info_nce"}),
    "frozen + cross_entropy": ({"method": "frozen"}, {"method": "cross_entropy"}),
}


def changed(options, **parts):
    """The options of a recipe, some of them others; mappings are merged."""
    result = dict(options)
    for name, part in parts.items():
        fresh = not isinstance(part, dict) or "method" in part or not isinstance(result.get(name), dict)
        result[name] = part if fresh else {**result[name], **part}
    return result


def quiet(options, root, **keywords):
    return run(recipes.from_plain(options), root, show_progress=False, **keywords)


def answers(scores):
    return {name: own.predictions.tolist() for name, own in scores.items()}


def confidences(scores):
    return torch.cat([own.confidences for own in scores.values()])


def zero_shot_scores(options):
    model, benchmark = load(options["model"]), load_benchmark(recipes.from_plain(options).data)
    classifier = zero_shot_classifier(model, benchmark.class_names, benchmark.templates)
    return evaluate(model, benchmark.tests, classifier)


OPTIMIZERS = ("sgd", "ftp", "tpgm", "spd", "digrap", "l2_sp", "mars_sp")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ("r_adapter + mpm_nce", "full + cross_entropy"))
def test_every_optimizer_trains_every_kind_of_adapter(name, method, tiny_recipe, tmp_path):
    adapter, objective = METHODS[method]
    options = changed(tiny_recipe, adapter=adapter, objective=objective, training={"epochs": 1})
    options = changed(options, optimizer={"method": name, "lr": 0.01}, alpha={"value": 1.0, "grid": [1.0]})
    outcome = quiet(options, tmp_path)
    assert confidences(outcome.test.at(1.0)).ne(confidences(outcome.test.at(0.0))).any()


REGULARIZERS = {
    "r_adapter + mpm_nce": ("car_ft", "carot", "function_space", "lipsum_ft", "star_ft", "m3_mix"),
    "full + cross_entropy": ("car_ft", "function_space", "l2_sp_penalty", "lipsum_ft"),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers_are_added_to_the_objective_and_logged(name, tiny_recipe, tmp_path):
    adapter, objective = METHODS[name]
    options = changed(tiny_recipe, adapter=adapter, objective=objective, training={"epochs": 1})
    options = changed(options, optimizer={"lr": 0.002}, alpha={"value": 1.0, "grid": [1.0]})
    methods = REGULARIZERS[name]
    own = {"car_ft": {"contexts": ["a photo", "a sketch"]}, "star_ft": {"fade": False}}
    regularizers = [{"method": method, **own.get(method, {})} for method in methods]
    outcome = quiet({**options, "regularizers": regularizers}, tmp_path)
    last = [row for row in read_metrics(outcome.run) if row["kind"] == "train"][-1]
    assert last["loss"] == pytest.approx(
        last["objective"] + sum(last[method] for method in methods), rel=1e-4
    )
    assert all(last[method] != 0 for method in methods)


ENSEMBLES = {
    "output": {"method": "output"},
    "vrf": {"method": "vrf", "share": 0.2},
    "fisher": {"method": "fisher"},
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_stands_between_the_two_models_and_is_kept_with_the_run(name, tiny_recipe, tmp_path):
    options = changed(tiny_recipe, adapter={"method": "full"}, optimizer={"lr": 2e-3}, training={"epochs": 1})
    outcome = quiet({**options, "ensemble": ENSEMBLES[name]}, tmp_path)
    assert {0.0, outcome.alpha, 1.0} <= set(outcome.test.alphas)
    assert answers(outcome.test.at(0.0)) == answers(zero_shot_scores(options))
    assert "validation" in outcome.alpha_reason
    if name == "fisher":
        head = load_adapter(outcome.run / "fisher").head
        assert torch.equal(head.at(0.3), head.weight) and len(head.weight) == len(
            outcome.benchmark.class_names
        )
    else:
        assert (outcome.run / "ensemble.json").is_file()


def test_a_probe_gives_the_head_that_fine_tuning_begins_with(tiny_recipe, tmp_path):
    adapter, objective = METHODS["full + cross_entropy"]
    options = changed(tiny_recipe, adapter=adapter, objective=objective, optimizer={"lr": 1e-9})
    options = changed(options, training={"epochs": 1}, accumulation=None, probe={"epochs": 3, "lr": 0.1})
    outcome = quiet(options, tmp_path)
    probe = read_tensors(outcome.run / "probe.safetensors")["weight"]
    head = read_tensors(outcome.run / "adapter" / HEAD_FILE)
    torch.testing.assert_close(head["weight"], probe, atol=1e-6, rtol=0)
    assert (head["weight"] - head["zero_shot"]).abs().max() > 0.01


@pytest.fixture
def bases(monkeypatch):
    """Every model a run loads, with its weights as they were loaded."""
    seen = []

    def spy(*arguments, **options):
        model = load(*arguments, **options)
        seen.append((model, {name: t.clone() for name, t in model.module.state_dict().items()}))
        return model

    monkeypatch.setattr(fine_tuning, "load", spy)
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_what_was_saved_gives_the_reported_answers(name, tiny_recipe, tmp_path, bases):
    adapter, objective = METHODS[name]
    rate = {"r_adapter": 0.02, "full": 2e-3, "frozen": 0.05}[adapter["method"]]
    options = changed(tiny_recipe, adapter=adapter, objective=objective, optimizer={"lr": rate})
    options = changed(options, alpha={"value": 0.7, "grid": [0.5, 1.0]})
    outcome = quiet(options, tmp_path)

    (model, before) = bases[0]
    after = model.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert outcome.test.alphas == (0.0, 0.5, 0.7, 1.0)
    losses = [row["loss"] for row in read_metrics(outcome.run) if row["kind"] == "train"]
    assert losses and all(torch.isfinite(torch.tensor(losses)))

    fresh, benchmark = load(options["model"]), outcome.benchmark
    embed = lambda: class_embeddings(fresh, benchmark.class_names, benchmark.templates)  # noqa: E731
    zero_shot = embed()
    if adapter["method"] != "frozen":
        apply(fresh, outcome.run / "adapter").merge(outcome.alpha)
    if objective["method"] == "cross_entropy":
        alone = adapter["method"] == "frozen"
        head = read_head(outcome.run / HEAD_FILE) if alone else load_adapter(outcome.run / "adapter").head
        torch.testing.assert_close(head.zero_shot, zero_shot)
        weight = head.at(outcome.alpha)
    else:
        weight = embed()
    found = evaluate(fresh, benchmark.tests, Classifier(weight=weight, scale=fresh.logit_scale))
    reported = outcome.test.at(outcome.alpha)
    assert answers(found) == answers(reported)
    torch.testing.assert_close(confidences(found), confidences(reported), rtol=1e-4, atol=1e-6)

    expected = zero_shot_scores(options)
    assert answers(outcome.test.at(0.0)) == answers(expected)
    torch.testing.assert_close(confidences(outcome.test.at(0.0)), confidences(expected), rtol=1e-4, atol=1e-6)
    tuned = confidences(outcome.test.at(1.0))
    assert (tuned - confidences(expected)).abs().max() > 1e-3  # it did train


def test_training_lowers_the_loss_and_the_numbers_are_kept(tiny_recipe, tmp_path):
    options = changed(tiny_recipe, training={"epochs": 12, "log_every": 3}, adapter={"drop": 0.1})
    outcome = quiet(options, tmp_path)
    losses = [row["loss"] for row in read_metrics(outcome.run) if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.1
    result = read_json(outcome.run / "result.json")
    assert result["alpha"] == 0.5 and result["alpha_reason"] == "given in the recipe"
    assert set(map(json.loads, result["test"])) == {0.0, 0.5, 1.0}
    files = [path for path in (outcome.run / "adapter").iterdir() if path.is_file()]
    assert outcome.file_bytes == sum(path.stat().st_size for path in files)
    kept = load_sweep(outcome.run / "scores.safetensors", outcome.recipe, outcome.benchmark)
    assert kept.alphas == outcome.test.alphas
    with pytest.raises(TetherError, match="test splits"):
        other = replace(outcome.benchmark, tests={"colour": outcome.benchmark.tests["colour"]})
        load_sweep(outcome.run / "scores.safetensors", outcome.recipe, other)


def test_one_alpha_per_tower(tiny_recipe, tmp_path):
    both = {"value": {"image": 1.0, "text": 0.0}, "grid": [0.0, 1.0]}
    outcome = quiet(changed(tiny_recipe, alpha=both), tmp_path)
    assert outcome.alpha == {"image": 1.0, "text": 0.0} == load_adapter(outcome.run / "adapter").alpha

    model, benchmark = load(tiny_recipe["model"]), outcome.benchmark
    untouched = class_embeddings(model, benchmark.class_names, benchmark.templates)
    apply(model, outcome.run / "adapter").merge(outcome.alpha)
    classifier = Classifier(weight=untouched, scale=model.logit_scale)
    found = evaluate(model, benchmark.tests, classifier)
    torch.testing.assert_close(
        confidences(found), confidences(outcome.test.at(outcome.alpha)), rtol=1e-4, atol=1e-6
    )
    assert (confidences(found) - confidences(outcome.test.at(1.0))).abs().max() > 1e-4


def test_equal_alphas_of_both_towers_are_one_number(tiny_recipe, tmp_path):
    alpha = {"value": {"image": 0.5, "text": 0.5}, "grid": [0.0, 0.5]}
    assert quiet(changed(tiny_recipe, alpha=alpha), tmp_path).alpha == 0.5


@pytest.mark.parametrize("per_tower", [False, True])
def test_alpha_is_chosen_without_a_look_at_any_test_picture(tiny_recipe, tmp_path, monkeypatch, per_tower):
    reads = []
    read_image = tether.data.dataset.read_image
    monkeypatch.setattr(tether.data.dataset, "read_image", lambda ref: reads.append(ref) or read_image(ref))
    alpha = {"value": "auto", "grid": [0.0, 0.5, 1.0], "per_tower": per_tower}
    outcome = quiet(changed(tiny_recipe, alpha=alpha), tmp_path, test=False)
    tested = {image for split in outcome.benchmark.tests.values() for image in split.images}
    assert reads and not tested & set(reads)
    assert outcome.benchmark.validation.images <= set(reads)
    assert "No test picture was used" in outcome.alpha_reason
    assert len(outcome.validation) == (9 if per_tower else 3)
    assert outcome.test.alphas == ()

    reads.clear()  # the same run, continued with the test: alpha stays, and now every test picture is read
    again = quiet(changed(tiny_recipe, alpha=alpha), tmp_path, resume=outcome.run)
    assert again.alpha == outcome.alpha and tested <= set(reads)


@pytest.mark.parametrize("per_tower", [False, True])
def test_alpha_is_the_same_where_everything_is_evaluated(tiny_recipe, tmp_path, monkeypatch, per_tower):
    """Simulated shifts at alphas that cannot be chosen change nothing, to the last bit of the others.

    Of so few pictures chance would explain every loss; here it explains none.
    """
    monkeypatch.setattr(deciding, "LEVEL", 1.0)
    alpha = {"value": "auto", "grid": [0.0, 0.25, 0.5, 0.75, 1.0], "per_tower": per_tower}
    found = quiet(changed(tiny_recipe, alpha=alpha), tmp_path, test=False)
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "competing", lambda sweep, *rest, **options: sweep.alphas)
        everything = quiet(changed(tiny_recipe, alpha=alpha), tmp_path, test=False)
    assert found.alpha == everything.alpha
    assert all(point["simulated"] for point in everything.validation)
    for point, full in zip(found.validation, everything.validation, strict=True):
        assert point == full or point == {**full, "simulated": {}, "simulated_mean": None}
        assert not point["simulated"] or point["allowed"]
    assert found.validation != everything.validation


def test_so_many_validation_pictures_are_altered_and_no_more(tiny_recipe, tmp_path, monkeypatch):
    altered = set()
    simulate = tether.data.simulated.simulate
    monkeypatch.setattr(
        tether.data.simulated,
        "simulate",
        lambda image, name, **options: altered.add(options["key"]) or simulate(image, name, **options),
    )
    alpha = {"value": "auto", "rule": "mean", "grid": [0.0, 1.0], "simulated_pictures": 4}
    outcome = quiet(changed(tiny_recipe, alpha=alpha, training={"epochs": 1}), tmp_path, test=False)
    assert len(altered) == 4 < len(outcome.benchmark.validation)
    assert "shifts of 4 of them" in outcome.alpha_reason
    assert read_json(outcome.run / "config.json")["alpha"]["simulated_pictures"] == 4
    with pytest.raises(
        TetherError, match="simulated_pictures is 1 or more, or null for all of them; found 0"
    ):
        recipes.from_plain(changed(tiny_recipe, alpha={"simulated_pictures": 0}))
    assert (
        recipes.from_plain(changed(tiny_recipe, alpha={"simulated_pictures": None})).alpha.simulated_pictures
        is None
    )


def test_a_finished_run_is_read_and_not_repeated(tiny_recipe, tmp_path, bases, monkeypatch):
    outcome = quiet(tiny_recipe, tmp_path)
    kept = {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")}
    monkeypatch.setattr(fine_tuning, "fit", None)
    before = {path: path.stat().st_mtime_ns for path in (outcome.run, *outcome.run.rglob("*"))}
    again = quiet(tiny_recipe, tmp_path, resume=outcome.run)
    # nothing is written, so it may lie where nothing can be
    assert before == {path: path.stat().st_mtime_ns for path in (outcome.run, *outcome.run.rglob("*"))}
    assert answers(again.test.at(1.0)) == answers(outcome.test.at(1.0))
    assert (again.seconds, again.alpha, again.file_bytes) == (
        outcome.seconds,
        outcome.alpha,
        outcome.file_bytes,
    )
    assert kept == {path: path.read_bytes() for path in outcome.run.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    """The directory of a finished run of one epoch, to be copied."""
    return quiet(changed(tiny_recipe, training={"epochs": 1}), tmp_path_factory.mktemp("finished")).run


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[1]"),
        ("time.json", '{"training_seconds": "long"}'),
        ("base.json", "[1]"),
        ("config.json", "7"),
    ],
)
def test_a_file_of_a_finished_run_that_holds_something_else_is_named(
    tiny_recipe, tmp_path, finished, name, content
):
    path = copytree(finished, tmp_path / finished.name)
    (path / name).write_text(content)
    with pytest.raises(TetherError, match=rf"{name} holds something else than it should"):
        quiet(changed(tiny_recipe, training={"epochs": 1}), tmp_path, resume=path)


def test_half_an_adapter_of_a_killed_part_is_made_again(tiny_recipe, tmp_path):
    outcome = quiet(tiny_recipe, tmp_path)
    whole = (outcome.run / "adapter" / "adapter.safetensors").read_bytes()
    (outcome.run / "result.json").unlink()
    (outcome.run / "adapter" / "adapter.json").unlink()
    (outcome.run / "adapter" / ".adapter.json.1234.tmp").write_text("{")
    again = quiet(tiny_recipe, tmp_path, resume=outcome.run)
    assert (outcome.run / "adapter" / "adapter.safetensors").read_bytes() == whole
    assert again.file_bytes == outcome.file_bytes


def test_alpha_by_validation_needs_validation_pictures(tiny_recipe, tmp_path):
    options = changed(
        tiny_recipe, data={**tiny_recipe["data"], "validation_share": 0.0}, alpha={"value": "auto"}
    )
    with pytest.raises(TetherError, match="validation"):
        quiet(options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_differs_after_training_takes_the_weights_of_another(tiny_recipe, tmp_path):
    first = quiet(changed(tiny_recipe, alpha={"value": 1.0, "grid": [0.0, 0.25, 1.0]}), tmp_path)
    options = changed(tiny_recipe, name="other", alpha={"value": 0.25, "grid": [0.0, 0.25]})
    second = quiet(options, tmp_path, trained=first.run)
    assert second.alpha == 0.25 and second.seconds >= first.seconds
    assert answers(second.test.at(0.25)) == answers(first.test.at(0.25))
    assert not (second.run / "metrics.jsonl").exists()

    with pytest.raises(TetherError, match="otherwise"):
        quiet(changed(options, optimizer={"lr": 0.01}), tmp_path, trained=first.run)


def test_without_a_curve_the_test_is_answered_at_zero_one_and_the_chosen_alpha(tiny_recipe, tmp_path):
    options = changed(tiny_recipe, alpha={"value": 0.5, "grid": [0.2, 0.8], "curve": False})
    assert quiet(options, tmp_path).test.alphas == (0.0, 0.5, 1.0)


def test_a_run_whose_options_do_not_fit_the_data_leaves_nothing_behind(tiny_recipe, tmp_path):
    options = changed(tiny_recipe, adapter={"method": "full", "exclude": ["visual.*"]})
    options = changed(options, objective={"method": "cross_entropy"})
    with pytest.raises(TetherError, match=r"nothing but the head would be trained(?s:.)*is removed again"):
        quiet(options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_explains_itself_whatever_its_name(tiny_recipe, tmp_path):
    outcome = quiet({**tiny_recipe, "name": "zero-shot"}, tmp_path)
    page = (outcome.run / "report.html").read_text()
    for text in ("tuned on ", "Against the zero-shot model, tuned changes", "outline", "data:image"):
        assert text in page


def test_a_broken_test_picture_is_found_before_training(tiny_recipe, tmp_path):
    copytree(tiny_recipe["data"]["shifted"]["outline"], tmp_path / "outline")
    (tmp_path / "outline" / "cross" / "1.png").write_bytes(b"half a pic")
    options = changed(tiny_recipe, data={"shifted": {"outline": str(tmp_path / "outline")}})
    with pytest.raises(TetherError, match=r"1 of 42 pictures(?s:.)*cross/1\.png"):
        quiet(options, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_workers_read_for_the_evaluation_too_and_change_nothing(tiny_recipe, tmp_path, monkeypatch):
    counts = []

    def spy(*arguments, workers, **options):
        counts.append(workers)
        return read_ahead(*arguments, workers=workers, **options)

    monkeypatch.setattr("tether.evaluation.classification.read_ahead", spy)
    alone = quiet(changed(tiny_recipe, training={"epochs": 1}), tmp_path)
    assert set(counts) == {0}
    counts.clear()
    helped = quiet(changed(tiny_recipe, training={"epochs": 1, "workers": 1}), tmp_path)
    assert set(counts) == {1}
    assert torch.equal(confidences(helped.test.at(0.5)), confidences(alone.test.at(0.5)))


def test_a_single_class_is_refused(tiny_recipe, tmp_path):
    copytree(f"{tiny_recipe['data']['train']}/cross", tmp_path / "data" / "cross")
    options = {**tiny_recipe, "data": {"method": "folder", "train": str(tmp_path / "data")}}
    with pytest.raises(TetherError, match="only the class 'cross'"):
        quiet(options, tmp_path / "runs")


ONLY_TEXT = (
    {"method": "r_adapter", "select": {"tower": "text"}},
    {"method": "r_adapter", "rank": {"image": 0}},
    {"method": "full", "exclude": ["visual.*"]},
)


@pytest.mark.parametrize("adapter", ONLY_TEXT)
def test_cross_entropy_with_an_adapter_of_the_text_tower_alone_is_refused(adapter, tiny_recipe, tmp_path):
    options = changed(tiny_recipe, adapter=adapter, objective={"method": "cross_entropy"})
    with pytest.raises(TetherError, match="nothing but the head would be trained"):
        quiet(options, tmp_path)


def test_classes_come_equally_often_in_every_batch_where_that_is_asked_for(
    tiny_recipe, tmp_path, monkeypatch
):
    batches, original = [], Classification.loss

    def loss(task, batch, step):
        batches.append(sorted(batch["label"].tolist()))
        return original(task, batch, step)

    monkeypatch.setattr(Classification, "loss", loss)
    options = changed(tiny_recipe, training={"sampler": "balanced"})
    outcome = quiet(options, tmp_path, test=False)
    assert batches == [[0, 0, 1, 1, 2, 2]] * 12
    assert read_json(outcome.run / "config.json", dict)["training"]["sampler"] == "balanced"


def test_a_run_whose_batches_cannot_be_shared_leaves_nothing(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tether.training.plan.world_size", lambda: 4)
    with pytest.raises(
        TetherError, match=r"batch of 6 examples cannot be shared equally by 4.*is removed again"
    ):
        run(recipes.from_plain(tiny_recipe), tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())
