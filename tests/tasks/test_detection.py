"""Detection and instances as whole tasks: they learn, are judged on other looks, resumed, saved and compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tether import recipe as recipes
from tether.adapters.files import load_adapter
from tether.adapters.head import ModuleHead
from tether.cli import main
from tether.data.reading import read_image
from tether.errors import TetherError
from tether.evaluation.detection import AREAS, MOST, BoxScores, MaskScores, average_precision
from tether.runs.comparing.comparison import compare
from tether.runs.comparing.plan import Plan
from tether.runs.detector import load_finder
from tether.runs.drawings import read_drawings
from tether.runs.segmenter import load_segmenter
from tether.runs.train import run

MASKS = {
    "method": "mask_rcnn",
    "channels": 16,
    "strides": [4, 8],
    "anchor_scale": 2.0,
    "box_width": 32,
    "mask_width": 8,
    "proposals": 20,
}
DETR = {"method": "rt_detr_v2", "width": 16, "hidden": 16, "heads": 2, "decoder_layers": 2, "queries": 6}
DETR |= {"denoising": 6, "strides": [4, 8, 16]}


def changed(options, **changes):
    return recipes.from_plain({**options, **changes})


def short(options, epochs=1):
    return {**options["training"], "epochs": epochs}


def with_head(options, head, method="instances"):
    return {**options["task"], "method": method, "head": head}


def stopped_and_resumed(recipe, root, monkeypatch, at):
    """The outcome of a run that stops before the loss of step `at` and is taken up again."""
    from tether.runs import train

    real, seen = train.fit, []

    def stop(task, *arguments, **others):
        loss = task.loss

        def counted(batch, step):
            seen.append(step)
            if step == at and seen.count(at) == 1:
                raise TetherError("stopped")
            return loss(batch, step)

        task.loss = counted
        return real(task, *arguments, **others)

    monkeypatch.setattr(train, "fit", stop)
    with pytest.raises(TetherError, match="stopped"):
        run(recipe, root, show_progress=False)
    (path,) = root.iterdir()
    again = run(recipe, resume=path, show_progress=False)
    assert seen.count(at) == 2 and 0 not in seen[seen.index(at) :]
    return again


def assert_same(one, other):
    for name, scores in one.test.at(1.0).items():
        assert torch.equal(scores.rows, other.test.at(1.0)[name].rows)
    before, after = (load_adapter(outcome.run / "adapter").head.state for outcome in (one, other))
    assert all(torch.equal(before[name], after[name]) for name in before)


def assert_found(found, scores):
    """What is found now is what was judged, to the rounding of other batches, which may swap equals."""
    for one, row in zip(found, scores.rows, strict=True):
        judged = row[: -3 * len(AREAS)].unflatten(0, (MOST, -1))[: len(one), 0]
        torch.testing.assert_close(one.best(MOST).scores, judged, rtol=1e-3, atol=1e-4)
    objects = [example.target.read(40, 48).objects for example in scores.split.examples]
    pairs = list(zip(found, objects, strict=True))
    again = average_precision(pairs, scores.class_names, scores.split, masks=isinstance(scores, MaskScores))
    assert again.value == pytest.approx(scores.value, abs=0.02)


@pytest.fixture(scope="module")
def outcome(detection_options, tmp_path_factory):
    """A finished run, which no test changes."""
    return run(recipes.from_plain(detection_options), tmp_path_factory.mktemp("runs"), show_progress=False)


@pytest.fixture(scope="module")
def instances(detection_options, tmp_path_factory):
    """A short run with masks, of an adapter that merges."""
    adapter = {"method": "r_adapter", "select": {"tower": "image"}}
    task = with_head(detection_options, MASKS)
    recipe = changed(
        detection_options, adapter=adapter, task=task, training=short(detection_options, 14), name="masks"
    )
    return run(recipe, tmp_path_factory.mktemp("runs"), show_progress=False)


def test_it_learns_what_is_where_and_is_judged_on_other_looks(outcome):
    scores = outcome.test.at(1.0)
    assert list(scores) == ["light", "dark"] and isinstance(scores["light"], BoxScores)
    values = scores["light"].values()
    assert values["box_ap50"] > 0.2 and values["box_ap_large"] is None and next(iter(values)) == "box_ap"
    result = json.loads((outcome.run / "result.json").read_text())["test"]["1.0"]["light"]
    assert result["box_ap"] == scores["light"].value and result["by_class"].keys() == {"red", "green", "blue"}
    assert result["by_class"] == scores["light"].by_class()
    assert not torch.equal(outcome.test.at(0.0)["light"].rows, scores["light"].rows)  # the tower moved


def test_the_numbers_are_those_of_the_saved_adapter_and_head_picture_by_picture(outcome):
    split = outcome.benchmark.tests["light"]
    finder = load_finder(outcome.run)
    assert finder.class_names == ("red", "green", "blue") and not finder.finds_masks
    pictures = [read_image(example.image) for example in split.examples]
    assert_found(finder(pictures), outcome.test.at(1.0)["light"])
    (again,) = load_finder(outcome.run / "adapter", alpha=0.0)(pictures[:1])
    (tuned,) = finder(pictures[:1])
    assert len(again) != len(tuned) or not torch.equal(again.scores, tuned.scores)
    with pytest.raises(TetherError, match="is for detection, and this is for segmentation"):
        load_segmenter(outcome.run)


def test_a_stopped_run_goes_on_bit_for_bit(detection_options, outcome, tmp_path, monkeypatch):
    training = {**detection_options["training"], "checkpoint_every": 5}
    again = stopped_and_resumed(changed(detection_options, training=training), tmp_path, monkeypatch, at=7)
    assert_same(outcome, again)


@pytest.mark.slow
def test_running_statistics_are_resumed_and_saved(detection_options, tmp_path, monkeypatch):
    training = {**short(detection_options, 2), "checkpoint_every": 2}
    task = with_head(detection_options, DETR, "detection")
    recipe = changed(detection_options, task=task, training=training)
    whole = run(recipe, tmp_path / "whole", show_progress=False)
    state = load_adapter(whole.run / "adapter").head.state
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert means and all(mean.abs().sum() > 0 for mean in means)
    assert_same(whole, stopped_and_resumed(recipe, tmp_path / "parts", monkeypatch, at=3))
    finder, split = load_finder(whole.run), whole.benchmark.tests["light"]
    assert_found(
        finder([read_image(example.image) for example in split.examples]), whole.test.at(1.0)["light"]
    )


def test_the_report_shows_pictures_with_truth_and_answer(outcome):
    drawn = read_drawings(outcome.run)
    assert [one.domain for one in drawn] == ["light"] * 4 + ["dark"] * 4
    report = (outcome.run / "report.html").read_text()
    assert "Answers beside the truth" in report and "average precision of boxes" in report
    assert all(one.picture in report and one.truth in report and one.answer in report for one in drawn)
    assert {name for one in drawn for name, _ in one.legend} == {"red", "green", "blue"}


def test_instances_are_judged_by_masks_and_merge_with_their_head(instances, tmp_path, monkeypatch, capsys):
    scores = instances.test.at(1.0)["light"]
    assert isinstance(scores, MaskScores) and next(iter(scores.values())) == "mask_ap"
    assert scores.values()["mask_ap50"] > 0
    monkeypatch.chdir(tmp_path)
    assert main(["merge", str(instances.run), "merged"]) == 0
    assert 'tether.runs.detector.load_finder("merged")' in Path("merged/CARD.md").read_text()
    picture = read_image(instances.benchmark.tests["light"].examples[0].image)
    (merged,), (apart,) = load_finder("merged")([picture]), load_finder(instances.run)([picture])
    assert len(merged) == len(apart) > 0 and merged.masks.shape[1:] == (40, 48)
    torch.testing.assert_close(merged.scores, apart.scores, rtol=0, atol=1e-3)
    capsys.readouterr()


def test_alpha_is_chosen_by_average_precision_and_shifts_that_move_nothing(detection_options, tmp_path):
    alpha = {"value": "auto", "rule": "mean", "grid": [0.0, 1.0], "curve": False, "simulated_pictures": 2}
    # tpgm learns from held-out pictures, and leaves the head alone
    optimizer = {"method": "tpgm", "lr": 0.005}
    changes = {
        "alpha": alpha,
        "adapter": {"method": "full"},
        "optimizer": optimizer,
        "schedule": {"warmup": 0},
    }
    recipe = changed(detection_options, **changes, training=short(detection_options))
    outcome = run(recipe, tmp_path, show_progress=False, test=False)
    assert outcome.alpha in (0.0, 1.0) and "simulated shifts of 2 of" in outcome.alpha_reason
    simulated = outcome.validation[0]["simulated"]
    assert len(simulated) == 8 and "background" not in simulated


@pytest.mark.slow
def test_runs_are_compared_without_a_row_before_training(detection_options, tmp_path):
    retinanet = {"method": "retinanet", "channels": 8, "strides": [4, 8], "anchor_scale": 2.0}
    task = with_head(detection_options, retinanet, "detection")
    changes = {"training": short(detection_options), "schedule": {"warmup": 0}, "task": task}
    own = {**detection_options, **changes}
    head_alone = {**own, "name": "head", "adapter": {"method": "frozen"}}
    plan = Plan(recipes=list(map(recipes.from_plain, (head_alone, own))), root=tmp_path)
    compared = compare(plan, show_progress=False)[0]
    results = compared.results
    assert [method.name for method in results.methods] == ["head", "objects"] and results.zero_shot == ""
    assert results.metrics[0].name == "box_ap" and len(compared.drawings) == 8 and not results.changes
    (frozen,) = tmp_path.glob("head*")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    (found,) = load_finder(frozen)([picture])
    assert found.boxes.shape[1] == 4


def test_a_head_is_saved_with_what_it_is_made_by(outcome, instances):
    for done, task, method in ((outcome, "detection", "mask_rcnn"), (instances, "instances", "mask_rcnn")):
        head = load_adapter(done.run / "adapter").head
        assert isinstance(head, ModuleHead) and head.task == task and head.options["head"]["method"] == method
        assert not any("visual" in name for name in head.state)  # nothing of the trunk


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"method": "cross_entropy"}}, "Use objective.method=head"),
        ({"ensemble": {"method": "vrf"}}, "Leave `ensemble` out"),
        ({"adapter": {"method": "r_adapter", "select": {"tower": "text"}}}, "changes only the text tower"),
        ({"training": {"epochs": 1, "batch_size": 8, "micro_batch": 4}}, "would weigh pieces alike"),
        (
            {"task": {"method": "detection", "head": {"method": "retinanet", "strides": [3, 6]}}},
            "cannot be made of the one map of stride 8",
        ),
    ],
)
def test_what_makes_no_sense_in_it_is_refused(detection_options, changes, message, tmp_path):
    with pytest.raises(TetherError, match=message):
        run(changed(detection_options, **changes), tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_boxes_alone_are_refused_where_masks_are_asked_for(detection_options, tmp_path):
    data = {**detection_options["data"], "masks": False}
    recipe = changed(detection_options, data=data, task=with_head(detection_options, MASKS))
    with pytest.raises(TetherError, match=r"instances needs answers of the kind 'masks', and .* has 'boxes'"):
        run(recipe, tmp_path, show_progress=False)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"method": "detection", "head": MASKS}, "task.method=instances, or .* task.head.masks=false"),
        (
            {"method": "instances", "head": {"method": "retinanet"}},
            "finds boxes alone .* task.method=detection",
        ),
        ({"method": "instances", "head": {**MASKS, "masks": False}}, "finds boxes alone"),
        ({"method": "detection", "head": {"method": "yolo"}}, "task.head"),
    ],
)
def test_heads_for_the_other_task_are_refused(detection_options, task, message):
    with pytest.raises(TetherError, match=message):
        changed(detection_options, task=task)


def test_a_linear_head_has_no_loss_of_its_own(tiny_recipe, tmp_path):
    with pytest.raises(
        TetherError, match=r"objective.method=head is the loss that a detector's head brings along"
    ):
        run(recipes.from_plain({**tiny_recipe, "objective": {"method": "head"}}), tmp_path)
