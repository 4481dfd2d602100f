import math
from dataclasses import replace

import pytest
import torch

from tether.errors import TetherError
from tether.evaluation.scores import SplitScores
from tether.evaluation.scoring import Metric
from tether.evaluation.significance import bootstrap_mean, wilson_interval
from tether.evaluation.summary import (
    MEAN_OF_SHIFTED,
    changed_answers,
    describe_domains,
    differences,
    summarise,
)

from .demo import CLASSES, SHIFTED, demo_runs, scores, split


@pytest.fixture(scope="module")
def runs():
    return demo_runs(seeds=3, n=120)


def test_a_row_holds_every_seed_and_an_interval_over_pictures(runs):
    own = runs["R-Adapter"]
    method = summarise("R-Adapter", own, SHIFTED, trained_parameters=5)
    assert method.seeds == (0, 1, 2) and method.trained_parameters == 5
    measure = method.measures["noto"]
    assert measure.values["top1"] == tuple(own[seed]["noto"].top1 for seed in range(3))
    assert measure.mean == pytest.approx(sum(measure.values["top1"]) / 3)
    assert measure.spread == pytest.approx(
        torch.tensor(measure.values["top1"], dtype=torch.float64).std().item()
    )
    assert measure.interval == wilson_interval(measure.mean, 120)
    assert len(measure.values["top5"]) == len(measure.values["macro_f1"]) == 3
    means = [method.measures[name].mean for name in SHIFTED]
    assert method.shifted_mean.value == pytest.approx(sum(means) / 5)
    assert method.shifted_mean.low < method.shifted_mean.value < method.shifted_mean.high


def test_differences_are_paired_by_picture_and_seed(runs):
    found = differences(runs, "full fine-tuning", ["twemoji"], SHIFTED)
    assert len(found) == 8  # four other methods, one domain and the mean
    own = next(d for d in found if d.method == "R-Adapter" and d.where == MEAN_OF_SHIFTED)
    first, second = runs["R-Adapter"], runs["full fine-tuning"]
    values = {
        name: torch.stack(
            [first[s][name].correct.double() - second[s][name].correct.double() for s in range(3)]
        )
        for name in SHIFTED
    }
    identities = {name: first[0][name].identities for name in SHIFTED}
    expected = bootstrap_mean(values, identities, draws=10_000)
    assert own.estimate == expected and own.estimate.value > 0
    assert own.adjusted_p_value >= own.estimate.p_value
    alone = {"zero-shot": runs["zero-shot"], "full fine-tuning": second}
    (single,) = differences(alone, "full fine-tuning", ["noto"], [])
    level = runs["zero-shot"][0]["noto"].top1 - sum(second[s]["noto"].top1 for s in range(3)) / 3
    assert single.estimate.value == pytest.approx(level)
    assert single.adjusted_p_value == single.estimate.p_value


def mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test (1947) with half of the observed table's probability (Fagerland et al. 2013), two-sided."""
    n, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(least + 1)) - math.comb(n, least) / 2
    return min(1.0, 2 * tail / 2**n)


def test_the_paired_bootstrap_agrees_with_mcnemar(runs):
    first, second = runs["zero-shot"][0]["noto"], runs["linear probe"][0]["noto"]
    pair = {"a": {0: {"noto": first}}, "b": {0: {"noto": second}}}
    (found,) = differences(pair, "b", ["noto"], [])
    only_first, only_second = (first.correct & ~second.correct).sum(), (~first.correct & second.correct).sum()
    assert found.estimate.p_value == pytest.approx(mid_p(int(only_first), int(only_second)), abs=0.1)


def test_changed_answers_are_counted_and_named():
    of = split("noto", 200)
    before, after = scores(of, 0.5, 1), scores(of, 0.6, 2)
    changes = changed_answers("noto", before, after, CLASSES, limit=8)
    gained = (~before.correct & after.correct).sum()
    lost = (before.correct & ~after.correct).sum()
    assert (changes.wrong_to_right, changes.right_to_wrong) == (gained, lost)
    assert changes.wrong_to_right - changes.right_to_wrong == round(200 * (after.top1 - before.top1))
    assert len(changes.gained) == 8 and len(changes.lost) == min(8, lost)
    for picture in changes.gained:
        assert picture.truth == picture.after == CLASSES[of.examples[picture.index].label] != picture.before
        assert picture.identity == f"thing {picture.index}"
        assert picture.confidence_after == after.confidences[picture.index]
    for picture in changes.lost:
        assert picture.truth == picture.before != picture.after
    per_class = [picture.truth for picture in changes.gained]
    assert max(map(per_class.count, per_class)) <= 2
    assert changed_answers("noto", before, before, CLASSES).gained == ()


def test_one_class_may_fill_all_places_when_there_is_no_other():
    of = split("noto", 40)
    of = replace(of, examples=tuple(replace(example, label=0) for example in of.examples))
    changes = changed_answers("noto", scores(of, 0.2, 1), scores(of, 0.9, 2), CLASSES, limit=8)
    assert len(changes.gained) == 8


def test_domains_are_described(runs):
    found = describe_domains(runs["zero-shot"][0], "twemoji", corruptions=["noto"])
    assert [domain.kind for domain in found] == ["in-distribution", "corruption", *["shifted"] * 4]
    assert found[0].n == 120 and found[0].classes == 8
    assert found[0].digest == runs["zero-shot"][0]["twemoji"].split.digest
    with pytest.raises(TetherError, match="in-distribution split 'x'"):
        describe_domains(runs["zero-shot"][0], "x")


def test_runs_on_different_data_are_not_compared(runs):
    other = demo_runs(seeds=1, n=100)["linear probe"]
    with pytest.raises(TetherError, match="same splits"):
        summarise("mixed", {0: runs["linear probe"][0], 1: other[0]}, SHIFTED)
    with pytest.raises(TetherError, match="same splits"):
        differences({"a": runs["linear probe"], "b": other}, "a", ["noto"], [])
    with pytest.raises(TetherError, match="same splits"):
        changed_answers("noto", other[0]["noto"], runs["linear probe"][0]["noto"], CLASSES)
    with pytest.raises(TetherError, match="at least one seed"):
        summarise("none", {}, SHIFTED)
    with pytest.raises(TetherError, match="not among the methods"):
        differences(runs, "x", ["noto"], [])


def test_a_metric_that_one_seed_lacks_is_left_out(runs):
    class Partly(SplitScores):
        def values(self):
            return {**super().values(), "top5": None}

    of = runs["R-Adapter"][0]["noto"]
    partly = Partly(split=of.split, classes=of.classes, **of.tensors())
    measure = summarise("new", {0: {"noto": of}, 1: {"noto": partly}}, []).measures["noto"]
    assert measure.values["top5"] == () and len(measure.values["macro_f1"]) == 2


def test_what_methods_are_told_apart_by_is_a_share_of_which_more_is_better():
    for options in ({"higher_is_better": False}, {"share": False}):
        metric = Metric(name="rank", title="median rank", **options)
        with pytest.raises(TetherError, match="first metric of Ranks is 'median rank'"):
            type("Ranks", (SplitScores,), {"metrics": (metric,)})


def test_other_classes_are_no_shift():
    names = ("face smiling", "robot")
    whole = scores(split("noto", 8), 0.5, 0)
    of = replace(split("robots", 8), examples=split("robots", 8).examples[:2], class_names=names)
    other = SplitScores(
        split=of,
        classes=2,
        predictions=torch.tensor([1, 1]),
        ranks=torch.tensor([1, 0]),
        confidences=torch.ones(2),
    )
    home, robots = describe_domains({"robots": other, "noto": whole}, "noto")
    assert (home.kind, robots.kind, robots.classes) == ("in-distribution", "other classes", 2)
    right = replace(other, predictions=torch.tensor([0, 1]), ranks=torch.tensor([0, 0]))
    (picture,) = changed_answers("robots", other, right, CLASSES).gained
    assert (picture.truth, picture.before, picture.after) == ("face smiling", "robot", "face smiling")
    assert other.numbers()["class_names"] == list(names) and "class_names" not in whole.numbers()
