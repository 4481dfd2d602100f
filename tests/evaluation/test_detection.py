"""Average precision: against faster-coco-eval, and against loops that follow pycocotools line by line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tether.data.dense import DenseExample, DenseSplit
from tether.data.records import ImageRef
from tether.data.targets import Boxes, Objects
from tether.errors import TetherError
from tether.evaluation.detection import (
    AREAS,
    IOUS,
    BoxScores,
    DetectionScorer,
    MaskScores,
    average_precision,
    picture_row,
)
from tether.evaluation.detections import Detections

CLASSES = ("a", "b", "c")
SIZE = 140


def drawn(boxes):
    """Masks that are rectangles with a corner cut off."""
    masks = np.zeros((len(boxes), SIZE, SIZE), bool)
    for mask, (left, top, right, bottom) in zip(masks, np.round(boxes).astype(int), strict=True):
        mask[top:bottom, left:right] = True
        mask[top : (top + bottom) // 2, left : (left + right) // 2] = False
    return masks


def world(seed, pictures=12, crowds=True, difficult=False):
    """Detections that are objects moved a little, some of another class, and objects of all sizes."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(pictures):
        n = random.integers(0, 6)
        sides = random.choice([12.0, 50.0, 110.0], (n, 1)) * random.uniform(0.8, 1.2, (n, 2))
        start = random.uniform(0, 1, (n, 2)) * (SIZE - sides)
        boxes = np.concatenate([start, start + sides], 1).astype(np.float32)
        labels = random.integers(0, len(CLASSES), n)
        objects = Objects(
            boxes=boxes,
            labels=labels,
            masks=drawn(boxes),
            crowd=(random.random(n) < 0.2) & crowds,
            difficult=(random.random(n) < 0.2) & difficult,
            areas=drawn(boxes).sum((1, 2)).astype(np.float32),
        )
        source = random.integers(0, max(n, 1), random.integers(0, 14) if n else 0)
        moved = boxes[source] + random.normal(0, 0.06, (len(source), 4)) * np.tile(sides[source], 2)
        moved = np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 2)], 1).clip(0, SIZE)
        moved = moved.astype(np.float32)
        others = random.integers(0, len(CLASSES), len(source))
        found = Detections(
            torch.from_numpy(moved),
            torch.from_numpy(np.where(random.random(len(source)) < 0.8, labels[source] if n else 0, others)),
            torch.from_numpy(random.random(len(source)).astype(np.float32)),
            torch.from_numpy(drawn(moved)),
        )
        pairs.append((found, objects))
    return pairs


def a_split(pictures, per_identity=1):
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool))
    examples = (
        DenseExample(ImageRef("/pictures", f"{i}.png"), nothing, identity=f"thing {i // per_identity}")
        for i in range(pictures)
    )
    return DenseSplit("test", "photo", tuple(examples))


def scored(pairs, masks=True):
    return average_precision(pairs, CLASSES, a_split(len(pairs)), masks=masks)


def slow_ap(pairs, kind, area="", ious=IOUS):
    """AP as pycocotools computes it, in loops; a picture that occurs twice counts twice."""
    low, high = AREAS[area]
    of_classes = []
    for label in range(len(CLASSES)):
        of_ious = []
        for iou in ious:
            answers, wanted = [], 0
            for found, objects in pairs:
                mine = [i for i in range(len(objects)) if objects.labels[i] == label]
                skip = {
                    i: objects.crowd[i] or objects.difficult[i] or not low <= objects.areas[i] <= high
                    for i in mine
                }
                mine.sort(key=lambda i: skip[i])
                wanted += sum(not skip[i] for i in mine)
                order = sorted(range(len(found)), key=lambda d: -found.scores[d].item())
                taken = set()
                for d in (d for d in order[:100] if found.labels[d] == label):
                    best, match = iou, None
                    for i in mine:
                        if i in taken and not (objects.crowd[i] or objects.difficult[i]):
                            continue
                        if match is not None and not skip[match] and skip[i]:
                            break
                        overlap, size = overlaps(found, d, objects, i, kind)
                        if overlap >= best:
                            best, match = overlap, i
                    if match is not None:
                        taken.add(match)
                        state = "skipped" if skip[match] else "right"
                    else:
                        size = size_of(found, d, kind)
                        state = "wrong" if low <= size <= high else "skipped"
                    answers.append((found.scores[d].item(), state))
            if not wanted:
                continue
            answers.sort(key=lambda answer: -answer[0])
            right, total, points = 0, 0, []
            for _, state in answers:
                if state != "skipped":
                    right, total = right + (state == "right"), total + 1
                    points.append((right / wanted, right / total))
            precision = [
                max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)
            ]
            of_ious.append(sum(precision) / 101)
        if of_ious:
            of_classes.append(sum(of_ious) / len(of_ious))
    return sum(of_classes) / len(of_classes)


def size_of(found, d, kind):
    if kind == "mask":
        return int(found.masks[d].sum())
    left, top, right, bottom = found.boxes[d].double().tolist()
    return (right - left) * (bottom - top)


def overlaps(found, d, objects, i, kind):
    size = size_of(found, d, kind)
    if kind == "mask":
        common = int((found.masks[d].numpy() & objects.masks[i]).sum())
        other = int(objects.masks[i].sum())
    else:
        (l1, t1, r1, b1), (l2, t2, r2, b2) = found.boxes[d].double().tolist(), objects.boxes[i].tolist()
        common = max(0.0, min(r1, r2) - max(l1, l2)) * max(0.0, min(b1, b2) - max(t1, t2))
        other = (r2 - l2) * (b2 - t2)
    return common / (size if objects.crowd[i] else size + other - common), size


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_faster_coco_eval_computes(seed):
    from torchmetrics.detection import MeanAveragePrecision

    pairs = world(seed, pictures=20)
    ours = scored(pairs).values()
    for kind, name in (("mask", "segm"), ("box", "bbox")):
        metric = MeanAveragePrecision(
            iou_type=name,
            backend="faster_coco_eval",
            # torchmetrics' own are float32, with which a recall of exactly 0.3 does not reach 0.3
            iou_thresholds=IOUS.tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
        )
        for found, objects in pairs:
            prediction = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
            truth = {
                "boxes": torch.from_numpy(objects.boxes),
                "labels": torch.from_numpy(objects.labels),
                "iscrowd": torch.from_numpy(objects.crowd).int(),
                "area": torch.from_numpy(objects.areas),
            }
            masks = {"masks": found.masks}, {"masks": torch.from_numpy(objects.masks)}
            metric.update([prediction | masks[0]], [truth | masks[1]])
        theirs = metric.compute()
        for mine, other in {
            "ap": "map",
            "ap50": "map_50",
            "ap75": "map_75",
            "ap_small": "map_small",
            "ap_medium": "map_medium",
            "ap_large": "map_large",
        }.items():
            assert ours[f"{kind}_{mine}"] == pytest.approx(theirs[other].item(), abs=1e-6), (kind, mine)


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_it_is_what_loops_compute(kind):
    pairs = world(3, pictures=8, difficult=True)
    values = scored(pairs).values()
    assert values[f"{kind}_ap50"] == pytest.approx(slow_ap(pairs, kind, ious=IOUS[:1]), abs=1e-9)
    assert values[f"{kind}_ap75"] == pytest.approx(slow_ap(pairs, kind, ious=IOUS[5:6]), abs=1e-9)
    assert values[f"{kind}_ap_medium"] == pytest.approx(slow_ap(pairs, kind, "medium"), abs=1e-9)


def test_drawing_a_picture_twice_counts_it_twice():
    pairs = world(4, pictures=6)
    scores = scored(pairs, masks=False)
    draws = torch.tensor([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 0], [0, 1, 0, 0, 5, 0]], dtype=torch.float64)
    values = scores.statistic.value(draws)
    for draw, value in zip(draws.tolist(), values.tolist(), strict=True):
        repeated = [pair for pair, count in zip(pairs, draw, strict=True) for _ in range(int(count))]
        assert value == pytest.approx(slow_ap(repeated, "box"), abs=1e-9)
    assert values[0].item() == pytest.approx(scores.value) == pytest.approx(scores.values()["box_ap"])
    assert scores.primary.mean().item() == pytest.approx(scores.value)
    assert scores.interval.low < scores.value < scores.interval.high


def objects_of(boxes, **flags):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    no = np.zeros(n, bool)
    masks = drawn(boxes)
    return Objects(
        **(
            {"boxes": boxes, "labels": np.zeros(n, int), "masks": masks, "crowd": no, "difficult": no}
            | {"areas": (boxes[:, 2:] - boxes[:, :2]).prod(1)}
            | flags
        )
    )


def found_at(boxes, scores, labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Detections(boxes, labels, torch.tensor(scores), torch.from_numpy(drawn(boxes.numpy())))


def test_difficult_objects_and_crowds_are_neither_to_be_found_nor_wrong_to_find():
    one, other = [10, 10, 50, 50], [60, 60, 120, 120]
    for flag in ("crowd", "difficult"):
        objects = objects_of([one, other], **{flag: np.array([False, True])})
        often = found_at([other, other, one], [0.9, 0.8, 0.7])
        assert scored([(often, objects)]).values()["box_ap"] == pytest.approx(1)
        wrong = found_at([[80, 0, 130, 30], one], [0.9, 0.7])
        assert scored([(wrong, objects)]).values()["box_ap"] == pytest.approx(0.5)


def test_what_does_not_occur_has_no_value():
    scores = scored([(found_at([[0, 0, 40, 40]], [0.5]), objects_of([[0, 0, 40, 40]]))])
    assert scores.values()["box_ap_large"] is None and scores.values()["box_ap_small"] is None
    assert scores.by_class() == {"a": pytest.approx(1), "b": None, "c": None}
    nothing = scored([(found_at([], []), objects_of([[0, 0, 40, 40]]))])
    assert nothing.values()["mask_ap"] == 0


def test_more_than_100_detections_count_as_the_surest_100():
    boxes = [[0, 0, 40, 40]] + [[60, 60, 100, 100]] * 120
    objects = objects_of([[0, 0, 40, 40]])
    last = found_at(boxes, [0.1] + [0.5] * 120)
    first = found_at(boxes, [0.9] + [0.5] * 120)
    assert scored([(last, objects)]).value == 0
    assert scored([(first, objects)]).value == pytest.approx(1)


def test_scores_are_made_again_from_their_tensors_and_taken_apart():
    pairs = world(5, pictures=6)
    scores = scored(pairs)
    again = MaskScores(split=scores.split, class_names=CLASSES, **scores.tensors())
    assert again.values() == scores.values()
    assert again.numbers()["mask_ap"] == scores.value and again.competing == 3
    assert scores.picked([0, 2, 5]).values() == scored([pairs[i] for i in (0, 2, 5)]).values()
    halves = [scores.picked([0, 1, 2]), scores.picked([3, 4, 5])]
    assert MaskScores.pooled(halves).values() == scores.values()
    with pytest.raises(TetherError, match="3 classes has rows of"):
        BoxScores(split=scores.split, class_names=CLASSES, **scores.tensors())


def test_a_scorer_makes_rows_of_batches():
    pairs = world(6, pictures=5)
    scorer = DetectionScorer(a_split(5), CLASSES, masks=True)
    parts = [scorer.rows([pairs[i] for i in some], torch.tensor(some)) for some in ([3, 1], [0, 2, 4])]
    rows = torch.cat(parts)[[2, 1, 3, 0, 4]]
    assert scorer.scores(rows).values() == scored(pairs).values()


def test_pictures_of_one_identity_are_drawn_together():
    pairs = world(7, pictures=8)
    alone = scored(pairs, masks=False)
    together = replace(alone, split=a_split(8, per_identity=4))
    assert together.interval != alone.interval


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (found_at([[0, 0, 4, 4]], [0.5], [3]), "labels up to 3, and there are 3 classes"),
        (found_at([[0, 0, 4, 4]], [float("nan")]), "not a number"),
        (Detections(torch.ones(1, 4), torch.zeros(1).long(), torch.ones(1)), "boxes alone"),
        (
            Detections(torch.ones(1, 4), torch.zeros(1).long(), torch.ones(1), torch.ones(1, 3, 4).bool()),
            "give predict the sizes",
        ),
    ],
)
def test_detections_that_cannot_be_scored_are_refused(found, message):
    with pytest.raises(TetherError, match=message):
        picture_row(found, objects_of([[0, 0, 40, 40]]), 3, ("mask", "box"))
