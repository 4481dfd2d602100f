"""What a recipe's classification trains, and how its loss may be taken apart."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tether import recipe as recipes
from tether.adapters import attach
from tether.adapters.files import apply, load_adapter
from tether.data import Split, load_benchmark
from tether.errors import TetherError
from tether.evaluation import class_embeddings, evaluate, zero_shot_classifier, zero_shot_reader
from tether.models import load
from tether.runs.outcome import RESULT
from tether.runs.report import REPORT
from tether.runs.train import run
from tether.training import read_metrics


def made(options, **parts):
    """The task of a recipe, right after `attach`, with its recipe and benchmark."""
    recipe = recipes.from_plain({**options, **parts})
    model, benchmark = load(recipe.model), load_benchmark(recipe.data)
    task = recipe.task.make(recipe, model, benchmark)
    task.start(attach(model, recipe.adapter))
    return task


def batch(task):
    size = task.model.image.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(3)
    return {"pixels": pixels, "label": numbers, "index": numbers, "text_pick": numbers}


OBJECTIVES = pytest.mark.parametrize("objective", ["info_nce", "mpm_nce", "cross_entropy"])


@OBJECTIVES
@pytest.mark.parametrize("trains", [False, True])
def test_the_logit_scale_is_trained_where_the_recipe_says_so(objective, trains, tiny_recipe):
    adapter = {"method": "full", "train_logit_scale": trains}
    task = made(tiny_recipe, adapter=adapter, objective={"method": objective})
    parameter = task.model.module.logit_scale
    start = task.model.logit_scale
    assert ("logit_scale" in task.named_parameters()) == trains
    given = batch(task)
    task.begin_step(0, given)
    loss, _ = task.loss(given, 0)
    loss.backward()
    assert (parameter.grad is not None and parameter.grad.item() != 0) == trains
    with torch.no_grad():
        parameter += 0.5
    changed, _ = task.loss(given, 0)
    assert (changed.item() != loss.item()) == trains
    grown = start * (math.exp(0.5) if trains else 1)
    assert torch.as_tensor(task.scale).item() == pytest.approx(grown)


@pytest.mark.parametrize("objective", ["info_nce", "cross_entropy"])
def test_a_run_learns_and_keeps_its_logit_scale(objective, tiny_recipe, tmp_path):
    adapter = {"method": "full", "train_logit_scale": True}
    options = {**tiny_recipe, "adapter": adapter, "objective": {"method": objective}}
    outcome = run(recipes.from_plain(options), tmp_path, show_progress=False)
    (path,) = tmp_path.glob("*/adapter")
    tuned = load_adapter(path).state["logit_scale"]
    base = load(options["model"]).module.logit_scale
    assert outcome is not None and tuned.item() != pytest.approx(base.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("term", "separable"),
    [
        (None, True),
        ("car_ft", True),
        ("lipsum_ft", True),
        ("l2_sp_penalty", True),
        ("star_ft", False),
        ("function_space", False),
    ],
)
def test_a_batch_is_taken_in_pieces_only_where_no_term_looks_at_it_as_a_whole(
    term, separable, tiny_recipe, tmp_path
):
    """The first steps are the same with pieces and without, or the recipe is refused."""
    own = {"car_ft": {"contexts": ["a drawing", "a photo"]}, "star_ft": {"fade": False}}
    own["lipsum_ft"] = {"texts": 5, "length": 3}
    terms = [{"method": term, **own.get(term, {})}] if term else []
    common = {
        **tiny_recipe,
        "adapter": {"method": "full"},
        "objective": {"method": "cross_entropy"},
        "regularizers": terms,
        "optimizer": {"method": "sgd", "lr": 0.01},
        "schedule": {"warmup": 0},
    }

    def trained(micro_batch):
        training = {"steps": 2, "batch_size": 6, "seed": 3, "micro_batch": micro_batch}
        root = tmp_path / str(micro_batch)
        run(recipes.from_plain({**common, "training": training}), root, show_progress=False)
        return load_adapter(next(root.glob("*/adapter"))).state

    if not separable:
        with pytest.raises(TetherError, match="micro_batch=4 would change the result"):
            trained(4)
        return
    pieces, whole = trained(4), trained(None)
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [{"method": "full"}, {"method": "r_adapter"}, {"method": "frozen"}])
def test_a_model_without_texts_learns_with_a_head(adapter, tiny_recipe, tmp_path):
    torch.manual_seed(0)  # the weights are random: the same ones each time
    load("timm:test_vit", pretrained=False).save(tmp_path / "base")
    options = {
        **tiny_recipe,
        "model": str(tmp_path / "base"),
        "adapter": adapter,
        "objective": {"method": "cross_entropy"},
        "optimizer": {"lr": 1e-3},
        "alpha": {"value": 1.0, "curve": False},
    }
    outcome = run(recipes.from_plain(options), tmp_path / "runs", show_progress=False)
    losses = [row["loss"] for row in read_metrics(outcome.run) if row["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-3)  # a head that was not trained stays there
    assert min(losses) < losses[0] - 0.02  # batches of a few pictures: not each is better than the one before
    assert outcome.test.at(0.0)["colour"].confidences.tolist() == pytest.approx([1 / 3] * 6)  # knows nothing


def test_a_model_without_texts_has_no_pairs(tiny_recipe, tmp_path):
    load("timm:test_vit", pretrained=False).save(tmp_path / "base")
    options = {**tiny_recipe, "model": str(tmp_path / "base")}
    with pytest.raises(TetherError, match=r"objective\.method=cross_entropy"):
        run(recipes.from_plain(options), tmp_path / "runs", show_progress=False)


OWN = {"classes": "own", "templates": ["a drawing of a {}.", "{}, drawn"]}


@pytest.fixture
def with_animals(tiny_recipe, tmp_path):
    """The tiny recipe with a shifted domain of other classes (outlines that go by other names)."""
    outlines = tiny_recipe["data"]["shifted"]["outline"]
    root = tmp_path / "animals"
    root.mkdir()
    for shape, animal in (("circle", "snail"), ("cross", "sea_star")):
        (root / animal).symlink_to(f"{outlines}/{shape}")
    data = tiny_recipe["data"]
    shifted = {**data["shifted"], "animals": str(root)}
    return {**tiny_recipe, "data": {**data, "shifted": shifted, "domains": {"animals": OWN}}}


def test_a_test_of_other_classes_is_answered_with_these_at_every_alpha(with_animals, tmp_path):
    outcome = run(recipes.from_plain(with_animals), tmp_path / "runs", show_progress=False)
    benchmark = outcome.benchmark
    tests = benchmark.tests
    model = load(with_animals["model"])
    prompts = {"animals": (("sea star", "snail"), ("a drawing of a {}.", "{}, drawn"))}
    assert (tests["animals"].class_names, tests["animals"].templates) == prompts["animals"]

    def expected(name):
        own = prompts.get(name, (benchmark.class_names, benchmark.templates))
        return evaluate(model, {name: tests[name]}, zero_shot_classifier(model, *own))[name]

    with apply(model, outcome.run / "adapter").path() as path:
        for alpha in (0.0, 0.5, 1.0):
            path.set(alpha)
            for name, scores in outcome.test.at(alpha).items():
                slow = expected(name)
                assert torch.equal(scores.predictions, slow.predictions), (alpha, name)
                torch.testing.assert_close(scores.confidences, slow.confidences, atol=1e-5, rtol=1e-5)
                assert scores.classes == (2 if name == "animals" else 3)
    start, end = (outcome.test.at(alpha)["animals"].confidences for alpha in (0.0, 1.0))
    assert not torch.allclose(start, end)  # so alpha matters above

    result = json.loads((outcome.run / RESULT).read_text())["test"]["1.0"]
    assert result["animals"]["class_names"] == ["sea star", "snail"]
    assert result["animals"]["templates"] == OWN["templates"]
    assert "class_names" not in result["outline"] and "templates" not in result["outline"]
    page = (outcome.run / REPORT).read_text()
    assert "animals<br><small>other classes" in page and "outline<br><small>shifted" in page


def test_zero_shot_classifiers_are_shared_by_tests_of_the_same_prompts(with_animals, monkeypatch):
    benchmark, model = load_benchmark(recipes.from_plain(with_animals).data), load(with_animals["model"])
    reader = zero_shot_reader(model, benchmark, benchmark.tests.values())
    assert len(reader.classifiers) == 2
    found = evaluate(model, benchmark.tests, reader)
    animals = benchmark.tests["animals"]
    classifier = zero_shot_classifier(model, animals.class_names, animals.templates)
    alone = evaluate(model, {"animals": animals}, classifier)["animals"]
    assert torch.equal(found["animals"].confidences, alone.confidences)
    trained = zero_shot_classifier(model, benchmark.class_names, benchmark.templates)
    with pytest.raises(TetherError, match="'test animals' has 2 classes of its own"):
        evaluate(model, {"animals": animals}, trained)


def test_class_texts_are_encoded_once_per_alpha_and_prompts(with_animals, tmp_path, monkeypatch):
    encoded = []

    def counted(model, names, templates, **rest):
        encoded.append((names, templates))
        return class_embeddings(model, names, templates, **rest)

    monkeypatch.setattr("tether.tasks.classification.class_embeddings", counted)
    alphas = {"value": "auto", "grid": [0.0, 0.5, 1.0], "rule": "in distribution"}
    short = {"training": {"steps": 2, "batch_size": 6, "seed": 3}, "schedule": {"warmup": 0}}
    data = {**with_animals["data"], "templates": ["{}", "a {}.", "one {}"]}  # measured while training by two
    texts = {**with_animals, **short, "data": data, "alpha": alphas}
    outcome = run(recipes.from_plain(texts), tmp_path / "both", show_progress=False)
    animals, own = outcome.benchmark.tests["animals"], outcome.benchmark
    ends = [(own.class_names, own.templates)] * 3 + [(animals.class_names, animals.templates)] * 3
    of_curves = [prompts for prompts in encoded if prompts in ends]
    before = (
        own.class_names,
        own.templates,
    )  # of the model without the adapter, whose last bit may be another
    assert sorted(of_curves) == sorted([before, *ends])

    encoded.clear()
    image = {**texts, "adapter": {"method": "r_adapter", "select": {"tower": "image"}}}
    run(recipes.from_plain(image), tmp_path / "image", show_progress=False)
    assert sorted(encoded) == sorted(set(ends))  # the texts are the same at every alpha


def test_a_linear_head_refuses_classes_that_it_does_not_have(with_animals, tmp_path):
    head = {**with_animals, "objective": {"method": "cross_entropy"}}
    with pytest.raises(TetherError, match="A linear head has no prompts, and 'animals' has"):
        run(recipes.from_plain(head), tmp_path / "runs", show_progress=False)
    head["data"] = {**head["data"], "domains": {"animals": {"classes": "own"}}}
    with pytest.raises(
        TetherError, match="2 of 2 classes of 'animals' are not among them, such as 'sea star'"
    ):
        run(recipes.from_plain(head), tmp_path / "runs", show_progress=False)


def test_an_ensemble_refuses_tests_of_other_classes(with_animals, tmp_path):
    output = {**with_animals, "ensemble": {"method": "output"}}
    with pytest.raises(TetherError, match="one classifier for all tests, and 'animals' has classes"):
        run(recipes.from_plain(output), tmp_path / "runs", show_progress=False)


def test_a_linear_head_answers_a_test_that_names_some_of_its_classes(tiny_recipe):
    task = made(tiny_recipe, objective={"method": "cross_entropy"})
    head = torch.randn(task.head.shape, generator=torch.Generator().manual_seed(1))
    task.finish({"head.weight": head})
    task.model.module.eval()
    split = task.benchmark.tests["outline"]
    some = tuple(example for example in split.examples if example.label != 1)
    masked = replace(split, examples=some, class_mask=(0, 2))
    assert task.class_names == ("circle", "cross", "square")
    named = Split(
        name="named",
        domain="named",
        examples=tuple(replace(example, label=0 if example.label == 2 else 1) for example in some),
        class_names=("square", "circle"),
    )
    splits = {"masked": masked, "named": named}
    scores = evaluate(task.model, splits, task.reader(splits)(1.0))
    assert torch.equal(scores["masked"].confidences, scores["named"].confidences)
    assert torch.equal(scores["masked"].ranks, scores["named"].ranks)
    assert 0 < scores["masked"].top1 < 1
