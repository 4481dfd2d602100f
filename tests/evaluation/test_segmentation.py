"""Metrics of segmentation: counted picture by picture against loops over pixels and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tether.data import ImageRef
from tether.data.dense import DenseExample, DenseSplit
from tether.data.targets import IGNORE, DenseTarget
from tether.errors import TetherError
from tether.evaluation.alpha import choose_alpha
from tether.evaluation.encoder import FeatureMaps
from tether.evaluation.scores import Sweep
from tether.evaluation.segmentation import (
    SegmentationReader,
    SegmentationScorer,
    SegmentationScores,
    pixel_counts,
)

CLASSES = 5  # the last one is in no picture


class Nothing:
    key = "nothing"

    def read(self, height, width):
        raise NotImplementedError


@pytest.fixture(scope="module")
def split():
    examples = (
        DenseExample(ImageRef("/none", f"{i}.png"), Nothing(), identity=f"scene {i // 2}") for i in range(6)
    )
    return DenseSplit("test", "light", tuple(examples))


@pytest.fixture(scope="module")
def pairs():
    """Answers and truths of six pictures of different sizes, right on about half of the pixels."""
    chance = np.random.default_rng(0)
    made = []
    for number in range(6):
        size = (4 + number, 7)
        truth = chance.integers(0, CLASSES - 1, size)
        answer = np.where(chance.random(size) < 0.5, truth, chance.integers(0, CLASSES - 1, size))
        truth[chance.random(size) < 0.2] = IGNORE
        made.append((torch.from_numpy(answer), torch.from_numpy(truth)))
    return made


@pytest.fixture(scope="module")
def scores(split, pairs):
    scorer = SegmentationScorer(split, CLASSES)
    rows = torch.cat([scorer.rows(pairs[:4], torch.arange(4)), scorer.rows(pairs[4:], torch.arange(4, 6))])
    return scorer.scores(rows)


def judged(pairs):
    return [
        (int(a), int(t))
        for answer, truth in pairs
        for a, t in zip(answer.flatten(), truth.flatten(), strict=True)
        if t != IGNORE
    ]


def slow(pairs):
    """IoU, class accuracy and pixel accuracy, one pixel after the other."""
    ious, accuracies, pixels = [], [], judged(pairs)
    for label in range(CLASSES):
        both = sum(a == t == label for a, t in pixels)
        true, answered = sum(t == label for _, t in pixels), sum(a == label for a, _ in pixels)
        if true + answered:
            ious.append(both / (true + answered - both))
        if true:
            accuracies.append(both / true)
    return [
        math.fsum(ious) / len(ious),
        math.fsum(accuracies) / len(accuracies),
        sum(a == t for a, t in pixels) / len(pixels),
    ]


def test_metrics_are_those_of_a_loop_over_pixels(scores, pairs):
    assert list(scores.values().values()) == pytest.approx(slow(pairs), abs=1e-12)
    assert scores.value == scores.values()["miou"] and scores.competing == CLASSES
    assert scores.primary.mean().item() == pytest.approx(scores.value)
    assert scores.interval.low < scores.value < scores.interval.high


def test_metrics_are_those_of_torchmetrics(scores, pairs):
    answers, truths = (torch.tensor(column) for column in zip(*judged(pairs), strict=True))
    iou = MulticlassJaccardIndex(CLASSES, average="macro")(answers, truths)
    accuracy = MulticlassAccuracy(CLASSES, average="macro")(answers, truths)
    micro = MulticlassAccuracy(CLASSES, average="micro")(answers, truths)
    assert list(scores.values().values()) == pytest.approx(
        [iou.item(), accuracy.item(), micro.item()], abs=1e-6
    )


def test_a_class_that_is_nowhere_does_not_count_and_one_that_is_only_answered_does():
    answer, truth = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, IGNORE]])
    row = pixel_counts(answer, truth, 3)
    assert row.tolist() == [1, 0, 0, 2, 0, 0, 1, 1, 0]
    assert SegmentationScores.values_of(row).tolist() == [(1 / 2 + 0) / 2, 1 / 2, 1 / 2]


def test_what_is_saved_makes_the_same_scores(scores, split):
    again = SegmentationScores(split=split, rows=scores.tensors()["rows"].double())
    assert torch.equal(again.rows, scores.rows) and again.values() == scores.values()


def test_alpha_0_is_called_what_it_is(scores):
    sweep = Sweep((0.0, 1.0), ({"validation": scores}, {"validation": scores}))
    choice = choose_alpha(sweep, "validation", rule="in distribution")
    assert choice.alpha == 0 and "That is the tower as it was, under the trained head" in choice.reason


def test_pictures_can_be_left_out(scores, pairs):
    assert list(scores.picked([1, 4]).values().values()) == pytest.approx(slow([pairs[1], pairs[4]]))


def test_a_class_that_is_not_told_apart_is_refused_by_its_picture(split):
    truth = torch.tensor([[0, CLASSES]])
    with pytest.raises(
        TetherError, match=r"mask of /none/2.png has class 5, and there are 5: `tether data check`"
    ):
        SegmentationScorer(split, CLASSES).rows([(truth * 0, truth)], torch.tensor([2]))


def reader(logits):
    def decode(one, input_size, content, size):
        assert (input_size, content) == ((8, 8), (6, 8))
        return one.argmax(0)[: size[0], : size[1]]

    return SegmentationReader(lambda maps: logits, decode, CLASSES, FeatureMaps())


def batch():
    target = DenseTarget(semantic=np.array([[0, 1], [IGNORE, 1]], np.int16))
    return {
        "maps": [],
        "pixels": torch.zeros(1, 3, 8, 8),
        "content": [(6, 8)],
        "size": [(2, 2)],
        "target": [target],
    }


def test_a_reader_gives_answer_and_truth_at_the_pictures_size():
    logits = torch.zeros(1, CLASSES, 8, 8)
    logits[:, 1] = 1
    ((answer, truth),) = reader(logits)(batch())
    assert answer.tolist() == [[1, 1], [1, 1]] and truth.tolist() == [[0, 1], [IGNORE, 1]]


def test_answers_that_are_not_numbers_are_refused():
    with pytest.raises(TetherError, match=r"not numbers .* lower the learning rate"):
        reader(torch.full((1, CLASSES, 8, 8), math.nan))(batch())
