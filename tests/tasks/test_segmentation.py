"""Segmentation as a whole task: it learns, is judged on other looks, resumed, saved, merged and compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tether import recipe as recipes
from tether.adapters.files import load_adapter
from tether.adapters.head import ModuleHead, mean_head
from tether.cli import main
from tether.data.reading import read_image
from tether.data.targets import IGNORE
from tether.errors import TetherError
from tether.evaluation.segmentation import SegmentationScores
from tether.runs.comparing.comparison import compare
from tether.runs.comparing.plan import Plan
from tether.runs.drawings import read_drawings
from tether.runs.segmenter import load_segmenter
from tether.runs.train import run


@pytest.fixture(scope="module")
def outcome(segmentation_options, tmp_path_factory):
    """A finished run, which no test changes."""
    root = tmp_path_factory.mktemp("runs")
    return run(recipes.from_plain(segmentation_options), root, show_progress=False)


def test_it_learns_what_pixels_are_of_and_is_judged_on_other_looks(outcome):
    scores = outcome.test.at(1.0)
    assert list(scores) == ["light", "dark"] and isinstance(scores["light"], SegmentationScores)
    ground = scores["light"].rows[:, 4 + 3].sum() / scores["light"].rows[:, 4:8].sum()
    assert scores["light"].value > 0.5 > ground / 4  # who answers "ground" everywhere has no more than that
    assert scores["light"].iou.isfinite().all()
    result = json.loads((outcome.run / "result.json").read_text())["test"]["1.0"]["light"]
    assert result["miou"] == scores["light"].value and result["convention"] == "scored over all classes"
    assert outcome.test.at(0.0)["light"].value != scores["light"].value  # the tower moved


def test_the_numbers_are_those_of_the_saved_adapter_and_head_picture_by_picture(outcome):
    split = outcome.benchmark.tests["dark"]
    segmenter = load_segmenter(outcome.run)
    assert segmenter.class_names == ("red", "green", "blue", "ground")
    pictures = [read_image(example.image) for example in split.examples]
    rows = outcome.test.at(1.0)["dark"].rows
    for answer, example, row in zip(segmenter(pictures), split.examples, rows, strict=True):
        truth = example.target.read(40, 48).semantic
        right = (answer == truth) & (truth != IGNORE)
        assert int(row[:4].sum()) == int(right.sum())
    (again,) = load_segmenter(outcome.run / "adapter", alpha=0.0)(pictures[:1])
    assert (again != segmenter(pictures[:1])[0]).any()


def test_a_stopped_run_goes_on_bit_for_bit(segmentation_options, outcome, tmp_path, monkeypatch):
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
    training = {**segmentation_options["training"], "checkpoint_every": 5}
    recipe = recipes.from_plain({**segmentation_options, "training": training})
    with pytest.raises(TetherError, match="stopped"):
        run(recipe, tmp_path / "parts", show_progress=False)
    (path,) = (tmp_path / "parts").iterdir()
    again = run(recipe, resume=path, show_progress=False)
    for name, scores in outcome.test.at(1.0).items():
        assert torch.equal(scores.rows, again.test.at(1.0)[name].rows)
    before, after = (load_adapter(one / "adapter").head.state for one in (outcome.run, path))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_report_shows_pictures_with_truth_and_answer(outcome):
    drawn = read_drawings(outcome.run)
    assert [one.domain for one in drawn] == ["light"] * 4 + ["dark"] * 4
    report = (outcome.run / "report.html").read_text()
    assert "Answers beside the truth" in report and "mean IoU" in report
    assert all(one.picture in report and one.truth in report and one.answer in report for one in drawn)
    names = {name for one in drawn for name, _ in one.legend}
    assert names and names <= {"red", "green", "blue"}


def test_alpha_is_chosen_by_mean_iou_and_shifts_that_move_nothing(segmentation_options, tmp_path):
    alpha = {"value": "auto", "rule": "mean", "grid": [0.0, 1.0], "curve": False, "simulated_pictures": 2}
    training = {**segmentation_options["training"], "epochs": 1}
    options = {**segmentation_options, "alpha": alpha, "training": training, "adapter": {"method": "full"}}
    options["optimizer"] = {
        "method": "tpgm",
        "lr": 0.01,
    }  # which learns from held-out pairs, and leaves the head alone
    outcome = run(recipes.from_plain(options), tmp_path, show_progress=False, test=False)
    assert outcome.alpha in (0.0, 1.0) and "simulated shifts of 2 of" in outcome.alpha_reason
    simulated = outcome.validation[0]["simulated"]
    assert len(simulated) == 8 and "background" not in simulated


def test_runs_are_compared_without_a_row_before_training(segmentation_options, tmp_path):
    training = {**segmentation_options["training"], "epochs": 1}
    short = {**segmentation_options, "training": training, "alpha": {"value": 1.0, "curve": False}}
    own, head_alone = short, {**short, "name": "head", "adapter": {"method": "frozen"}}
    plan = Plan(recipes=list(map(recipes.from_plain, (head_alone, own))), root=tmp_path)
    compared = compare(plan, show_progress=False)[0]
    results = compared.results
    assert [method.name for method in results.methods] == ["head", "pixels"] and results.zero_shot == ""
    assert {(one.method, one.reference) for one in results.differences} == {("pixels", "head")}
    assert results.metrics[0].name == "miou" and len(compared.drawings) == 8 and not results.changes
    (frozen,) = tmp_path.glob("head*")
    assert load_segmenter(frozen)([Image.new("RGB", (50, 30))])[0].shape == (30, 50)


def test_an_adapter_of_it_merges_with_its_head(segmentation_options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training = {**segmentation_options["training"], "epochs": 1}
    adapter = {"method": "r_adapter", "select": {"tower": "image"}}
    recipe = recipes.from_plain({**segmentation_options, "training": training, "adapter": adapter})
    one = run(recipe, tmp_path / "runs", show_progress=False).run
    assert main(["merge", str(one), "merged"]) == 0
    assert "load_segmenter" in Path("merged/CARD.md").read_text()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    merged, apart = load_segmenter("merged")([picture])[0], load_segmenter(one)([picture])[0]
    assert (merged == apart).mean() > 0.99  # to rounding
    assert main(["try", str(one), str(next((tmp_path / "runs").rglob("*.json")))]) == 2
    capsys.readouterr()


def test_heads_that_began_at_random_have_no_mean(outcome):
    head = load_adapter(outcome.run / "adapter").head
    assert isinstance(head, ModuleHead) and head.task == "segmentation"
    with pytest.raises(TetherError, match=r"Heads of several layers, here for segmentation, .* no mean"):
        mean_head([head, head])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"method": "mpm_nce"}}, "Use objective.method=cross_entropy"),
        ({"ensemble": {"method": "vrf"}}, "Leave `ensemble` out"),
        ({"regularizers": [{"method": "star_ft"}]}, "`regularizers` is on image features"),
        ({"augmentation": {"flip": True}}, r"give task.augmentation \(scale, flip"),
        ({"adapter": {"method": "r_adapter", "select": {"tower": "text"}}}, "changes only the text tower"),
        ({"training": {"epochs": 1, "batch_size": 8, "micro_batch": 4}}, "would weigh pieces alike"),
    ],
)
def test_what_makes_no_sense_in_it_is_refused(segmentation_options, changes, message, tmp_path):
    with pytest.raises(TetherError, match=message):
        run(recipes.from_plain({**segmentation_options, **changes}), tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_pictures_without_masks_are_refused(segmentation_options, tiny_recipe, tmp_path):
    with pytest.raises(
        TetherError, match=r"segmentation needs answers of the kind 'semantic', and .* has classes"
    ):
        run(recipes.from_plain({**segmentation_options, "data": tiny_recipe["data"]}), tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"hidden": 0}, "whole numbers from 1"),
        ({"pool_scales": []}, "whole numbers"),
        ({"auxiliary": -1.0}, "at least 0"),
    ],
)
def test_options_out_of_range_are_refused(segmentation_options, option, message):
    task = {**segmentation_options["task"], **option}
    with pytest.raises(TetherError, match=message):
        recipes.from_plain({**segmentation_options, "task": task})
