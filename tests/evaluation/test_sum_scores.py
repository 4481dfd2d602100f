"""Metrics that are ratios of sums, by the example of mean IoU: everything against loops over pictures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tether.errors import TetherError
from tether.evaluation.alpha import choose_alpha
from tether.evaluation.classification import evaluate
from tether.evaluation.scores import Sweep
from tether.evaluation.scoring import Metric
from tether.evaluation.significance import bootstrap
from tether.evaluation.sum_scores import SumScores
from tether.evaluation.summary import MEAN_OF_SHIFTED, differences, summarise

CLASSES = 4


class IoUScores(SumScores):
    """Rows are intersections and unions of each class; of the last class nothing is ever seen."""

    metrics = (
        Metric(name="miou", title="mean IoU"),
        *(Metric(name=f"iou_{label}", title=f"IoU of class {label}") for label in range(CLASSES)),
    )

    @staticmethod
    def values_of(sums):
        intersections, unions = sums.chunk(2, -1)
        iou = intersections / unions
        return torch.cat([iou.nanmean(-1, keepdim=True), iou], -1)


def miou(rows):
    """The slow way: of a list of rows, class by class."""
    ious = []
    for label in range(CLASSES):
        union = math.fsum(row[CLASSES + label] for row in rows)
        if union:
            ious.append(math.fsum(row[label] for row in rows) / union)
    return math.fsum(ious) / len(ious)


def slow_bootstrap(domains, identities, statistic, draws, seeds=1):
    """Values of `statistic(domain, pictures, seed)` over what is drawn, the draws being those of `bootstrap`."""
    names = list(dict.fromkeys(name for of in identities.values() for name in of))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(names), (draws, len(names)), generator=generator).tolist()
    chosen = torch.randint(seeds, (draws, seeds), generator=generator).tolist()
    samples = []
    for drawn, runs in zip(picks, chosen, strict=True):
        values = []
        for domain in domains:
            shown = identities[domain]
            pictures = [i for pick in drawn for i, name in enumerate(shown) if name == names[pick]]
            values += [statistic(domain, pictures, run) for run in runs]
        samples.append(sum(values) / len(values))
    return samples


@pytest.fixture
def make_scores(make_split):
    """`make_scores(domain, seed)`: scores on twelve pictures, two of each thing."""
    splits = {}

    def make(domain, seed):
        if domain not in splits:
            split = make_split(domain, 12)
            examples = (replace(e, identity=f"thing {i // 2}") for i, e in enumerate(split.examples))
            splits[domain] = replace(split, examples=tuple(examples))
        generator = torch.Generator().manual_seed(seed + 100 * len(domain))
        unions = torch.randint(0, 50, (12, CLASSES), generator=generator).double()
        unions[:, -1] = 0
        intersections = (unions * torch.rand(12, CLASSES, generator=generator)).floor()
        return IoUScores(split=splits[domain], rows=torch.cat([intersections, unions], 1))

    return make


def test_the_value_is_the_mean_of_ratios_of_sums(make_scores):
    scores = make_scores("street", 0)
    rows = scores.rows.tolist()
    assert scores.value == pytest.approx(miou(rows), abs=1e-12)
    assert abs(scores.value - sum(miou([row]) for row in rows) / 12) > 0.001  # it is no mean over pictures
    values = scores.values()
    assert values["miou"] == scores.value and values[f"iou_{CLASSES - 1}"] is None
    assert values["iou_1"] == pytest.approx(
        sum(row[1] for row in rows) / sum(row[1 + CLASSES] for row in rows)
    )
    assert scores.numbers()["miou"] == scores.value


def test_parts_are_picked_and_pooled(make_scores):
    scores = make_scores("street", 0)
    parts = [scores.picked(range(5)), scores.picked(range(5, 12))]
    assert parts[0].value == pytest.approx(miou(scores.rows.tolist()[:5]))
    whole = IoUScores.pooled(parts)
    assert whole.value == scores.value and whole.split == scores.split
    again = IoUScores(split=scores.split, **scores.tensors())
    assert again.values() == scores.values()


def test_the_interval_is_of_sums_over_drawn_identities(make_scores):
    scores = make_scores("street", 0)
    rows = scores.rows.tolist()
    samples = slow_bootstrap(
        ["street"],
        {"street": scores.identities},
        lambda domain, pictures, run: miou([rows[i] for i in pictures]),
        2000,
    )
    low, high = np.quantile(samples, [0.025, 0.975])
    assert (scores.interval.low, scores.interval.high) == (pytest.approx(low), pytest.approx(high))
    assert low < scores.value < high


@pytest.mark.parametrize("reference_seeds", [(0, 1), (5, 6, 7)])
def test_differences_are_of_values_over_the_same_pictures(make_scores, reference_seeds):
    domains = ["street", "rain"]
    first = {seed: {domain: make_scores(domain, seed) for domain in domains} for seed in (0, 1)}
    second = {
        seed: {domain: make_scores(domain, 50 + seed) for domain in domains} for seed in reference_seeds
    }
    found = differences({"new": first, "old": second}, "old", ["street"], domains, draws=300)
    by_where = {one.where: one.estimate for one in found}
    identities = {domain: first[0][domain].identities for domain in domains}

    def difference(domain, pictures, run):
        def value(scores):
            rows = scores[domain].rows.tolist()
            return miou([rows[i] for i in pictures])

        paired = [second[run]] if set(reference_seeds) == {0, 1} else second.values()
        return value(first[run]) - sum(map(value, paired)) / len(paired)

    for where, members in (("street", ["street"]), (MEAN_OF_SHIFTED, domains)):
        of = {domain: identities[domain] for domain in members}
        samples = slow_bootstrap(members, of, difference, 300, seeds=2)
        low, high = np.quantile(samples, [0.025, 0.975])
        value = np.mean([difference(domain, range(12), run) for domain in members for run in (0, 1)])
        estimate = by_where[where]
        assert estimate.value == pytest.approx(value, abs=1e-12)
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
        opposite = sum(sample >= 0 for sample in samples), sum(sample <= 0 for sample in samples)
        assert estimate.p_value == pytest.approx(min(1, 2 * (min(opposite) + 1) / 301))


def test_a_row_of_the_table_has_it_for_every_seed(make_scores):
    runs = {seed: {domain: make_scores(domain, seed) for domain in ("street", "rain")} for seed in (0, 1)}
    method = summarise("new", runs, ["street", "rain"])
    assert method.measures["rain"].values["miou"] == tuple(runs[seed]["rain"].value for seed in (0, 1))
    assert method.measures["rain"].values[f"iou_{CLASSES - 1}"] == ()
    level = sum(scores.value for own in runs.values() for scores in own.values()) / 4
    assert method.shifted_mean.value == pytest.approx(level)
    assert method.shifted_mean.low < level < method.shifted_mean.high


def test_what_a_picture_adds_is_told_by_leaving_it_out(make_scores):
    scores = make_scores("street", 0)
    rows = scores.rows.tolist()
    assert scores.primary.mean().item() == pytest.approx(scores.value, abs=1e-12)
    pseudo = [12 * scores.value - 11 * miou(rows[:i] + rows[i + 1 :]) for i in range(12)]
    shift = scores.value - sum(pseudo) / 12
    assert scores.primary.tolist() == pytest.approx([number + shift for number in pseudo])


def test_alpha_is_chosen_by_it(make_scores):
    good = make_scores("street", 0)
    unions = good.rows[:, CLASSES:]
    bad = replace(good, rows=torch.cat([0.2 * good.rows[:, :CLASSES], unions], 1))
    shift = replace(good.split, alteration="simulated:hue:0")
    scores = [{"validation": one, "hue": replace(one, split=shift)} for one in (bad, good)]
    choice = choose_alpha(Sweep((0.0, 1.0), tuple(scores)), "validation", ["hue"])
    assert choice.alpha == 1.0 and not choice.curve[0].allowed
    assert choice.curve[0].loss == pytest.approx(good.value - bad.value)


class Reader:
    """As if the features' signs were a picture of six pixels, and the truth were the label's bits."""

    def __call__(self, features):
        return features

    def scorer(self, split):
        return Scorer(split)


class Scorer:
    def __init__(self, split):
        self.split = split
        self.truth = torch.tensor([[e.label >> bit & 1 for bit in range(6)] for e in split.examples])

    def rows(self, output, index):
        answer, truth = (output > 0).long(), self.truth[index]
        masks = [(answer == label, truth == label) for label in range(CLASSES)]
        parts = [(a & t).sum(1) for a, t in masks] + [(a | t).sum(1) for a, t in masks]
        return torch.stack(parts, 1).double()

    def scores(self, rows):
        return IoUScores(split=self.split, rows=rows)


def test_an_evaluation_gathers_rows_however_it_is_batched(model, make_split):
    split = make_split("street", 11)
    whole = evaluate(model, {"street": split}, Reader(), batch_size=11)["street"]
    parts = evaluate(model, {"street": split}, Reader(), batch_size=4)["street"]
    assert torch.equal(whole.rows, parts.rows) and whole.rows[:, CLASSES:].sum() >= 6 * 11
    assert whole.value == pytest.approx(miou(whole.rows.tolist())) and 0 < whole.value < 1


def test_a_metric_without_a_value_is_no_number(make_scores):
    scores = make_scores("street", 0)
    empty = replace(scores, rows=torch.zeros_like(scores.rows))
    assert empty.values()["miou"] is None
    with pytest.raises(TetherError, match="no value on these pictures"):
        bootstrap({"": [empty.statistic]}, {"": empty.identities}, draws=10)
