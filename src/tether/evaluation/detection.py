"""Average precision of detected boxes and masks, as COCO measures it, with what is kept of each picture.

    detections, objects ─▶ a row per picture: of each detection its score, class, and whether it is right
                        ─▶ AP of any pictures, each counted as often as it is drawn

The rules are those of pycocotools: 100 detections per picture, the surest first; each takes the object of its class
that it overlaps most, an object only once, if they overlap (IoU) by a threshold; precision, made monotone, is averaged
over 101 recalls, over thresholds 0.50, 0.55 … 0.95 (AP; AP50 and AP75 are of one), and over the classes that occur.
Small are objects below 32² pixels, large those above 96². Neither right nor wrong is what lies on a crowd, on an object
of another size, or on one that PASCAL VOC calls difficult, on that and on a crowd however often.

AP is no sum over pictures. It is computed again from the rows for every draw of a bootstrap, and for the jackknife
values that stand for single pictures (see `tether.evaluation.sum_scores.pseudo_values`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether.data.dense import DenseSplit
from tether.data.targets import Objects
from tether.errors import TetherError
from tether.evaluation.detections import Detections
from tether.evaluation.encoder import WithAnswers
from tether.evaluation.scoring import Metric
from tether.evaluation.significance import Statistic
from tether.evaluation.sum_scores import RowScores, pseudo_values

MOST = 100
"""Detections per picture that count."""
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))  # torch.linspace differs in last bits, which decide
AREAS = {"": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Smallest and largest area of what counts."""
RIGHT, WRONG, NEITHER = 0, 1, 2
Pair = tuple[Detections, Objects]
"""What was found in a picture, and what is there."""
Size = tuple[int, int]
"""Height and width."""
AT_ONCE = 4_000_000
"""Numbers of one array while draws are evaluated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionScores(RowScores):
    """Detections in all pictures of one split, matched with its objects; `BoxScores` and `MaskScores` say of what.

    Attributes:
        rows: what `picture_row` made of each picture, in the split's order.
        class_names: of the labels.
    """

    kinds: ClassVar[tuple[str, ...]]
    untuned: ClassVar[str] = "the tower as it was, under the trained head"

    split: DenseSplit
    rows: Float[Tensor, "n k"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.split), row_length(len(self.class_names), len(self.kinds)))
        if tuple(self.rows.shape) != expected:
            raise TetherError(
                f"Split {self.split.name!r} with {len(self.class_names)} classes has rows of {expected}, but these are "
                f"{tuple(self.rows.shape)}."
            )

    @property
    def statistic(self) -> Statistic:
        """Of the pictures' numbers of draws: a picture's row is 1 at its own place."""
        return Statistic(torch.eye(self.n, dtype=torch.float64), self._primary_of)

    @cached_property
    def value(self) -> float:
        return self.primary_of_all.item()

    @cached_property
    def primary_of_all(self) -> Float[Tensor, ""]:
        return self._primary_of(torch.ones(self.n, dtype=torch.float64))

    @cached_property
    def primary(self) -> Float[Tensor, " n"]:
        """Of the first metric, see `pseudo_values`."""
        without = self._primary_of(1 - torch.eye(self.n, dtype=torch.float64))
        return pseudo_values(self.primary_of_all, without)

    @property
    def competing(self) -> int:
        return len(self.class_names)

    def values(self) -> dict[str, float | None]:
        once = torch.ones(self.n, dtype=torch.float64)
        values: dict[str, float | None] = {}
        for kind in self.kinds:
            for area in AREAS:
                by_threshold = self._average_precision(kind, area, once).nanmean(-1)  # over classes
                if not area:
                    values |= {
                        f"{kind}_ap50": by_threshold[0].item(),
                        f"{kind}_ap75": by_threshold[5].item(),
                    }
                values[f"{kind}_ap{area and '_'}{area}"] = by_threshold.mean().item()
        return {
            metric.name: None if values[metric.name] != values[metric.name] else values[metric.name]
            for metric in self.metrics
        }

    def by_class(self) -> dict[str, float | None]:
        """AP of each class by its name, of what the first metric is of; None of those that do not occur."""
        once = torch.ones(self.n, dtype=torch.float64)
        values = self._average_precision(self.kinds[0], "", once).mean(0).tolist()
        return {name: None if one != one else one for name, one in zip(self.class_names, values, strict=True)}

    def numbers(self) -> dict[str, object]:
        return {**super().numbers(), "by_class": self.by_class()}

    def _primary_of(self, draws: Float[Tensor, "*d n"]) -> Float[Tensor, "*d"]:
        """The first metric of pictures that are counted as often as they were drawn."""
        return self._average_precision(self.kinds[0], "", draws).nanmean(-1).mean(-1)

    def _average_precision(
        self, kind: str, area: str, draws: Float[Tensor, "*d n"]
    ) -> Float[Tensor, "*d ious classes"]:
        """NaN for classes of which nothing was drawn."""
        flat, answers, area_index = draws.reshape(-1, self.n), self._answers, list(AREAS).index(area)
        status = answers.status[:, self.kinds.index(kind), area_index]
        result = flat.new_empty(len(flat), len(IOUS), len(self.class_names))
        for label in range(len(self.class_names)):
            wanted = flat @ self._counts[:, label, area_index]
            here = answers.labels == label
            for iou in range(len(IOUS)):
                sums = _up_to_each_right(status[here, iou], answers.pictures[here], self.n)
                result[:, iou, label] = _area_under_curve(flat, *sums, wanted)
        return result.reshape(*draws.shape[:-1], *result.shape[1:])

    @cached_property
    def _counts(self) -> Float[Tensor, "n classes areas"]:
        """Objects that are to be found."""
        tail = self.rows[:, -len(self.class_names) * len(AREAS) :]
        return tail.double().unflatten(1, (len(self.class_names), len(AREAS)))

    @cached_property
    def _answers(self) -> "_Answers":
        """All detections, the surest first; of equal scores in the order of the pictures."""
        head = self.rows[:, : -len(self.class_names) * len(AREAS)].unflatten(1, (MOST, -1))
        pictures, places = (head[..., 1] >= 0).nonzero(as_tuple=True)
        found = head[pictures, places]
        order = found[:, 0].argsort(descending=True, stable=True)
        found, pictures = found[order], pictures[order]
        codes = found[:, 2:].long().unflatten(1, (len(self.kinds), len(AREAS)))
        powers = 3 ** torch.arange(len(IOUS))
        return _Answers(found[:, 1].long(), pictures, (codes[..., None] // powers % 3).to(torch.int8))


@dataclass(frozen=True, eq=False)
class _Answers:
    labels: Int[Tensor, " m"]
    pictures: Int[Tensor, " m"]
    status: Int[Tensor, "m kinds areas ious"]


def _metrics(kind: str, word: str) -> tuple[Metric, ...]:
    names = {"ap": "", "ap50": " at IoU 0.50", "ap75": " at IoU 0.75"}
    names |= {f"ap_{area}": f" of {area} objects" for area in AREAS if area}
    return tuple(
        Metric(name=f"{kind}_{name}", title=f"average precision of {word}{rest}")
        for name, rest in names.items()
    )


class BoxScores(DetectionScores):
    """Average precision of boxes."""

    kinds = ("box",)
    metrics = _metrics("box", "boxes")


class MaskScores(DetectionScores):
    """Average precision of masks, and of the boxes around them."""

    kinds = ("mask", "box")
    metrics = _metrics("mask", "masks") + _metrics("box", "boxes")


@dataclass(frozen=True, eq=False)
class DetectionReader:
    """What is found in pictures, and what is there.

    Args:
        detect: a detector, called with pixels, the pictures' sizes, and what each fills of the input.
        class_names: of the labels.
        masks: whether masks are scored too, and first.
        encoder: how pictures are put through the model.
    """

    detect: Callable[[Tensor, Sequence[Size], Sequence[Size]], list[Detections]]
    class_names: tuple[str, ...]
    masks: bool
    encoder: WithAnswers

    def __call__(self, batch: Mapping[str, Any]) -> list[Pair]:
        """Of each picture, in its own pixels, on the CPU."""
        found = self.detect(batch["pixels"], batch["size"], batch["content"])
        return [(one.cpu(), target.objects) for one, target in zip(found, batch["target"], strict=True)]

    def scorer(self, split: DenseSplit) -> "DetectionScorer":
        return DetectionScorer(split, self.class_names, masks=self.masks)


class DetectionScorer:
    """The rules of one split; a `tether.evaluation.scoring.Scorer` of detections and objects.

    Args:
        split: the pictures.
        class_names: of the labels.
        masks: whether masks are scored too, and first.

    Example:

        scorer = DetectionScorer(split, benchmark.class_names, masks=True)
        found = detector.predict(batch["pixels"], batch["size"], batch["content"])
        objects = [dataset.pair(i)[1].objects for i in batch["index"].tolist()]
        rows = scorer.rows(list(zip(found, objects)), batch["index"])
        print(scorer.scores(rows).values())  # of a split of one batch
    """

    def __init__(self, split: DenseSplit, class_names: Sequence[str], *, masks: bool = False) -> None:
        self.split, self.class_names = split, tuple(class_names)
        self._scores: type[DetectionScores] = MaskScores if masks else BoxScores

    def rows(self, output: list[Pair], index: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """For each picture of a batch its row, on the CPU.

        Raises:
            TetherError: a detection has a label that is no class, a score that is no number, or lacks a mask; the
                message names the picture.
        """
        kinds, classes = self._scores.kinds, len(self.class_names)
        rows = []
        for number, (found, objects) in zip(index.tolist(), output, strict=True):
            try:
                rows.append(picture_row(found, objects, classes, kinds))
            except TetherError as error:
                raise TetherError(f"{self.split.examples[number].image}: {error}") from error
        return torch.stack(rows)

    def scores(self, rows: Float[Tensor, "n k"]) -> DetectionScores:
        """From the rows of all pictures of the split in order."""
        return self._scores(split=self.split, rows=rows, class_names=self.class_names)


def row_length(classes: int, kinds: int) -> int:
    """Numbers in a picture's row."""
    return MOST * (2 + kinds * len(AREAS)) + classes * len(AREAS)


def picture_row(
    detections: Detections, objects: Objects, classes: int, kinds: Sequence[str] = ("box",)
) -> Float[Tensor, " k"]:
    """What is kept of a picture: all that average precision is made of.

    Args:
        detections: in pixels of the picture; of more than 100 the surest.
        objects: of the picture.
        classes: number of classes.
        kinds: what is matched, "box" or "mask".

    Returns:
        For each of 100 places score, label and, of each kind and size of object, at each threshold whether the
        detection is right, wrong or neither, as the digits of a number in base 3; the label is −1 where there is none.
        Then for each class the objects of each size that are to be found.

    Raises:
        TetherError: a label is no class, a score is no number, or masks are missing or of another size.
    """
    found = detections.best(MOST).cpu()
    _check(found, objects, classes, kinds)
    labels, scores = found.labels.numpy(), found.scores.numpy()
    ignored = _ignored(objects)
    counts = np.zeros((classes, len(AREAS)))
    for index, label in enumerate(objects.labels):
        counts[label] += ~ignored[:, index]
    places = np.full((MOST, 2 + len(kinds) * len(AREAS)), -1.0)
    places[: len(found), 0], places[: len(found), 1] = scores, labels
    for number, kind in enumerate(kinds):
        overlaps, areas = (_mask_overlaps if kind == "mask" else _box_overlaps)(found, objects)
        outside = np.stack([(areas < low) | (areas > high) for low, high in AREAS.values()])
        status = np.empty((len(AREAS), len(IOUS), len(found)), np.int64)
        for label in np.unique(labels):
            of, among = labels == label, objects.labels == label
            again = (objects.crowd | objects.difficult)[among]
            status[..., of] = _matched(overlaps[of][:, among], ignored[:, among], again, outside[:, of])
        codes = (status * (3 ** np.arange(len(IOUS)))[:, None]).sum(1).T
        start = 2 + number * len(AREAS)
        places[: len(found), start : start + len(AREAS)] = codes
    return torch.from_numpy(np.concatenate([places.ravel(), counts.ravel()])).float()


def average_precision(
    pairs: Iterable[tuple[Detections, Objects]], class_names: Sequence[str], split: DenseSplit, *, masks: bool
) -> DetectionScores:
    """Scores of detections and objects of all pictures of a split in order, at hand."""
    kind: type[DetectionScores] = MaskScores if masks else BoxScores
    rows = [picture_row(found, objects, len(class_names), kind.kinds) for found, objects in pairs]
    return kind(split=split, rows=torch.stack(rows), class_names=tuple(class_names))


def _check(found: Detections, objects: Objects, classes: int, kinds: Sequence[str]) -> None:
    labels = found.labels
    if len(found) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise TetherError(
            f"Detections have labels up to {int(labels.max())}, and there are {classes} classes."
        )
    if not bool(found.scores.isfinite().all() and found.boxes.isfinite().all()):
        raise TetherError(
            "A detection has a score or a box that is not a number (NaN or infinity): the weights are probably broken. "
            "Look at the training loss, and lower the learning rate."
        )
    if "mask" not in kinds:
        return
    if found.masks is None or objects.masks is None:
        raise TetherError("Masks are to be scored, but the detections or the objects have boxes alone.")
    if found.masks.shape[1:] != objects.masks.shape[1:]:
        raise TetherError(
            f"Masks of detections have {tuple(found.masks.shape[1:])} pixels, those of objects "
            f"{objects.masks.shape[1:]}; give predict the sizes of the pictures."
        )


def _ignored(objects: Objects) -> Bool[np.ndarray, "areas n"]:
    """Objects that need not be found, when objects of a size are looked for."""
    other = [(objects.areas < low) | (objects.areas > high) for low, high in AREAS.values()]
    return np.stack(other) | objects.crowd | objects.difficult


def _box_overlaps(
    found: Detections, objects: Objects
) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, " d"]]:
    """IoU of boxes, on crowds the share of the detection inside; and the detections' areas."""
    one, other = found.boxes.double().numpy(), objects.boxes.astype(np.float64)
    sides = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(
        one[:, None, :2], other[None, :, :2]
    )
    common = sides.clip(min=0).prod(-1)
    areas = (one[:, 2:] - one[:, :2]).prod(-1)
    return _overlaps(common, areas, (other[:, 2:] - other[:, :2]).prod(-1), objects.crowd), areas


def _mask_overlaps(
    found: Detections, objects: Objects
) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, " d"]]:
    """The same of masks."""
    one = found.masks.flatten(1).float()
    other = torch.from_numpy(objects.masks).flatten(1).float()
    common, areas = (one @ other.T).double().numpy(), one.sum(1).double().numpy()
    return _overlaps(common, areas, other.sum(1).double().numpy(), objects.crowd), areas


def _overlaps(common: np.ndarray, found: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    union = np.where(crowd, found[:, None], found[:, None] + objects - common)
    return common / np.maximum(union, 1e-12)


def _matched(
    overlaps: Float[np.ndarray, "d n"],
    ignored: Bool[np.ndarray, "areas n"],
    again: Bool[np.ndarray, " n"],
    outside: Bool[np.ndarray, "areas d"],
) -> Int[np.ndarray, "areas ious d"]:
    """Whether detections of one class, the surest first, are right, wrong or neither.

    Args:
        overlaps: with the objects of the class.
        ignored: objects that need not be found.
        again: those that any number of detections may take.
        outside: detections of another size.
    """
    status = np.where(outside[:, None], NEITHER, WRONG) + np.zeros((1, len(IOUS), 1), np.int64)
    if not overlaps.shape[1]:
        return status
    taken = np.zeros((len(AREAS), len(IOUS), overlaps.shape[1]), bool)
    needed = ~ignored[:, None]
    for number, row in enumerate(overlaps):
        free = (row >= IOUS[:, None]) & ~(taken & ~again)
        first = free & needed  # what needs to be found goes before what need not
        choice = np.where(first.any(-1, keepdims=True), first, free)
        # the last of equal ones, as pycocotools takes it
        best = row.size - 1 - np.where(choice, row, -1.0)[..., ::-1].argmax(-1)
        some = choice.any(-1)
        right = np.take_along_axis(np.broadcast_to(needed, free.shape), best[..., None], -1)[..., 0]
        status[..., number] = np.where(some, np.where(right, RIGHT, NEITHER), status[..., number])
        area, iou = some.nonzero()
        taken[area, iou, best[area, iou]] = True
    return status


def _up_to_each_right(
    status: Int[Tensor, " m"], pictures: Int[Tensor, " m"], n: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Of each picture the right detections, and all that count, down to each of the k right ones.

    Between them precision only falls, so that what is said there is all that average precision needs.

    Args:
        status: of the detections of a class at one threshold, the surest first.
        pictures: where they were found.
        n: number of pictures.
    """
    right = (status == RIGHT).nonzero().flatten()
    counted = (status != NEITHER).nonzero().flatten()
    next_right = torch.searchsorted(right, counted)
    counted, next_right = counted[next_right < len(right)], next_right[next_right < len(right)]
    ones = torch.ones(len(counted), dtype=torch.float64)
    every = torch.zeros(n, len(right), dtype=torch.float64)
    every.index_put_((pictures[counted], next_right), ones, accumulate=True)
    found = torch.zeros_like(every)
    found[pictures[right], torch.arange(len(right))] = 1
    return found.cumsum(1), every.cumsum(1)


def _area_under_curve(
    draws: Float[Tensor, "d n"],
    found: Float[Tensor, "n k"],
    every: Float[Tensor, "n k"],
    wanted: Float[Tensor, " d"],
) -> Float[Tensor, " d"]:
    """Precision, monotone from the right, averaged over recalls.

    Args:
        draws: how often each picture is counted.
        found, every: see `_up_to_each_right`.
        wanted: number of objects that are to be found.
    """
    parts = []
    step = max(1, AT_ONCE // (found.shape[1] + len(RECALLS)))
    for some, objects in zip(draws.split(step), wanted.split(step), strict=True):
        right = some @ found
        precision = right / (some @ every).clamp(min=1)
        monotone = precision.flip(1).cummax(1).values.flip(1) if found.shape[1] else precision
        recall = right / objects.clamp(min=1)[:, None]
        first = torch.searchsorted(recall, RECALLS.expand(len(some), -1).contiguous())
        beyond = monotone.new_zeros(len(some), 1)
        parts.append(torch.cat([monotone, beyond], 1).gather(1, first).mean(1))
    return torch.where(wanted > 0, torch.cat(parts), torch.nan)
