"""Retrieval as a whole task: trained, chosen, judged, resumed, merged and compared like classification."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tether import recipe as recipes
from tether.cli import main
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.evaluation.retrieval import best_ranks, pairs_of_groups
from tether.evaluation.retrieval_scores import CaptionReader, RetrievalScores
from tether.models import load
from tether.runs.comparing.comparison import compare
from tether.runs.comparing.plan import Plan
from tether.runs.train import run


@pytest.fixture(scope="module")
def outcome(retrieval_options, tmp_path_factory):
    """A finished run, which no test changes."""
    return run(recipes.from_plain(retrieval_options), tmp_path_factory.mktemp("runs"), show_progress=False)


def test_a_run_ranks_both_ways_and_keeps_what_it_found(outcome):
    result = json.loads((outcome.run / "result.json").read_text())
    numbers = result["test"]["0.5"]["colour"]
    assert 0 <= numbers["recall"] <= 1 and numbers["text_to_image_recall_at_10"] == 1
    assert numbers["recall"] == pytest.approx(
        (numbers["text_to_image_recall_at_1"] + numbers["image_to_text_recall_at_1"]) / 2
    )
    scores = outcome.test.at(0.5)["outline"]
    assert isinstance(scores, RetrievalScores)
    assert len(scores.text_ranks) == len(outcome.benchmark.tests["outline"].captions)
    report = (outcome.run / "report.html").read_text()
    assert "What came up first for some captions" in report and "recall at 1" in report
    assert 'class="picture right"' in report


def test_the_numbers_are_those_of_the_features_at_alpha_0(retrieval_options, outcome):
    model, split = load(retrieval_options["model"]), outcome.benchmark.tests["colour"]
    from tether.data import ImageDataset, test_transform

    pictures = ImageDataset(split, test_transform(model.image))
    with torch.no_grad():
        images = model.encode_image(torch.stack([pictures[i]["pixels"] for i in range(len(split))]))
        texts = model.encode_text(model.tokenize(list(split.captions)))
    pairs = pairs_of_groups(torch.arange(len(split)), torch.from_numpy(split.pictures))
    scores = outcome.test.at(0.0)["colour"]
    assert torch.equal(scores.image_ranks, best_ranks(images, texts, pairs))
    assert torch.equal(scores.text_ranks, best_ranks(texts, images, pairs.flip(1)))


def test_zero_shot_is_what_the_run_has_at_alpha_0(retrieval_options, outcome, capsys):
    data = [f"data.{name}={json.dumps(value)}" for name, value in retrieval_options["data"].items()]
    assert main(["zero-shot", *data, "--model", retrieval_options["model"]]) == 0
    shown = capsys.readouterr().out
    for name, scores in outcome.test.at(0.0).items():
        row = next(line for line in shown.splitlines() if name in line and "│" in line)
        values = scores.values()
        assert all(
            f"{values[metric]:.1%}" in row
            for metric in ("recall", "text_to_image_recall_at_1", "image_to_text_recall_at_1")
        )


@pytest.mark.parametrize("rule", ["bounded loss", "mean"])
def test_alpha_is_chosen_by_recall_on_validation_pictures(retrieval_options, tmp_path, rule):
    alpha = {"value": "auto", "grid": [0.0, 1.0], "curve": False, "simulated_pictures": 4}
    recipe = recipes.from_plain({**retrieval_options, "alpha": {**alpha, "rule": rule}})
    outcome = run(recipe, tmp_path, show_progress=False, test=False)
    assert len(outcome.validation) == 2 and outcome.alpha in (0.0, 1.0)
    assert "No test picture was used" in outcome.alpha_reason
    decided = [point for point in outcome.validation if point["allowed"]]
    if rule == "mean" or len(decided) > 1:
        assert "simulated shifts of 4 of" in outcome.alpha_reason
        assert all(len(point["simulated"]) == 9 for point in decided)
    else:
        assert not any(point["simulated"] for point in outcome.validation)


def test_a_stopped_run_goes_on_bit_for_bit(retrieval_options, outcome, tmp_path, monkeypatch):
    from tether.runs import train

    real, seen = train.fit, []

    def stop(task, *arguments, **others):
        loss = task.loss

        def counted(batch, step):
            seen.append(step)
            if step == 7 and seen.count(7) == 1:
                raise TetherError("stopped")
            return loss(batch, step)

        task.loss = counted
        return real(task, *arguments, **others)

    monkeypatch.setattr(train, "fit", stop)
    training = {**retrieval_options["training"], "checkpoint_every": 5}
    recipe = recipes.from_plain({**retrieval_options, "training": training})
    with pytest.raises(TetherError, match="stopped"):
        run(recipe, tmp_path / "parts", show_progress=False)
    (path,) = (tmp_path / "parts").iterdir()
    again = run(recipe, resume=path, show_progress=False)
    for name, scores in outcome.test.at(0.5).items():
        assert torch.equal(scores.text_ranks, again.test.at(0.5)[name].text_ranks)
        assert torch.equal(scores.space, again.test.at(0.5)[name].space)


def test_runs_are_compared_pooled_and_tuned(retrieval_options, tmp_path):
    own = recipes.from_plain({**retrieval_options, "search": {"optimizer.lr": [0.01, 0.02]}})
    other = recipes.from_plain({**retrieval_options, "name": "flyp", "objective": {"method": "info_nce"}})
    plan = Plan(recipes=[own, other], root=tmp_path, seeds=[0, 1], tune=2)
    results = compare(plan, show_progress=False)[0].results
    assert [method.name for method in results.methods] == ["zero-shot", "found", "flyp"]
    assert results.metrics[0].name == "recall" and not results.changes and results.queries
    assert results.method("found").measures["colour"].values["text_to_image_recall_at_1"]
    assert results.method("found").tuning.trials[0].validation is not None


def test_an_adapter_of_it_merges(retrieval_options, outcome, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["merge", str(outcome.run), "merged", "--model", retrieval_options["model"]]) == 0
    assert Path("merged").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"method": "cross_entropy"}}, "Use objective.method=mpm_nce or info_nce"),
        ({"ensemble": {"method": "vrf"}}, "Leave `ensemble` out"),
        (
            {"training": {"epochs": 1, "batch_size": 5}},
            "A batch of 5 captions cannot be divided into groups of 2",
        ),
        ({"regularizers": [{"method": "star_ft"}]}, "classes"),
        ({"adapter": {"method": "sct", "channels": 3}}, "sct looks at the training pictures by class"),
    ],
)
def test_what_makes_no_sense_in_it_is_refused(retrieval_options, changes, message, tmp_path):
    with pytest.raises(TetherError, match=message):
        run(recipes.from_plain({**retrieval_options, **changes}), tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_data_of_the_other_kind_is_refused_by_both_tasks(retrieval_options, tiny_recipe, tmp_path):
    with pytest.raises(TetherError, match=r"Classification needs pictures of classes, .* has captions"):
        run(recipes.from_plain({**tiny_recipe, "data": retrieval_options["data"]}), tmp_path)
    with pytest.raises(TetherError, match=r"Retrieval needs pictures with captions, .* has classes"):
        run(recipes.from_plain({**retrieval_options, "data": tiny_recipe["data"]}), tmp_path)
    scenes = {
        "method": "scenes",
        "train_pictures": 4,
        "validation_pictures": 2,
        "test_pictures": 1,
        "size": 64,
    }
    for options in (tiny_recipe, retrieval_options):
        with pytest.raises(TetherError, match=r"needs pictures .* has masks or boxes"):
            run(recipes.from_plain({**options, "data": scenes}), tmp_path)


def test_pooled_and_picked_scores_keep_ranks_and_what_came_up(retrieval_options):
    split = load_benchmark(recipes.from_plain(retrieval_options).data).tests["colour"]
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1)
        for n in (len(split), len(split.captions))
    )
    scores = CaptionReader({split.captions: texts}).scorer(split).scores(images)
    assert scores.value == pytest.approx(scores.primary.mean().item())
    few = scores.picked([1, 3])
    assert torch.equal(few.image_ranks, scores.image_ranks[[1, 3]]) and len(few.split) == 2
    assert few.nearest.max() <= 1 and few.nearest.min() >= -1
    parts = [scores.picked([0, 1, 2]), scores.picked([3, 4, 5])]
    both = scores.pooled(parts)
    assert torch.equal(both.image_ranks, scores.image_ranks) and torch.equal(
        both.text_ranks, scores.text_ranks
    )
    assert both.value == pytest.approx(scores.value)
    second = both.nearest[len(parts[0].text_ranks) :]
    assert set(second.unique().tolist()) <= {-1, 3, 4, 5}
    pair, last = parts[0].picked([1, 2]), scores.picked([2])
    assert torch.equal(pair.picked([1]).nearest, last.nearest)  # what is gone is not the last picture later
    assert (last.nearest == -1).any()


def test_one_picture_alone_lies_nowhere(retrieval_options):
    split = load_benchmark(recipes.from_plain(retrieval_options).data).tests["colour"]
    one, rest = replace(split, examples=split.examples[:1]), replace(split, examples=split.examples[1:])
    generator = torch.Generator().manual_seed(0)

    def scores(split):
        images, texts = (
            torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1)
            for n in (len(split), len(split.captions))
        )
        return CaptionReader({split.captions: texts}).scorer(split).scores(images)

    alone, others = scores(one), scores(rest)
    assert alone.values()["alignment"] is None and alone.values()["image_uniformity"] is None
    assert alone.values()["recall"] == 1
    assert alone.pooled([alone, others]).values()["alignment"] == pytest.approx(others.values()["alignment"])
