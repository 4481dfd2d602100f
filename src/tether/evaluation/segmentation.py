"""How well the pixels of a split are told apart: IoU, accuracies, and the rules by which pixels are counted.

For every picture, at the size it was read in, and every class: the pixels that are of it and are answered so
(intersection), those that are of it, and those that are answered so. Pixels to be ignored count nowhere. All metrics
are functions of sums of these over pictures, as in PASCAL VOC (Everingham et al. 2010, section 4.3); so classes that
hardly occur weigh as much as others, and a picture has no IoU of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.data.dense import DenseSplit
from tether.data.targets import IGNORE
from tether.errors import TetherError
from tether.evaluation.encoder import FeatureMaps
from tether.evaluation.scoring import Metric
from tether.evaluation.sum_scores import SumScores

Pixels = Int[Tensor, "h w"]
Pair = tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]]
"""Answer and truth of one picture; pictures of a batch differ in size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationScores(SumScores):
    """Rows are, class by class: intersections, pixels of the class, pixels answered so.

    The metrics, in their order: IoU averaged over the classes that occur in truth or answers; the share of right pixels
    of each class, averaged over the classes that occur; the share of right pixels.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="miou", title="mean IoU"),
        Metric(name="mean_accuracy", title="mean class accuracy"),
        Metric(name="pixel_accuracy", title="pixel accuracy"),
    )

    untuned: ClassVar[str] = "the tower as it was, under the trained head"

    @staticmethod
    def values_of(sums: Float[Tensor, "*d k"]) -> Float[Tensor, "*d 3"]:
        iou = class_iou(sums)
        right, true, _ = sums.chunk(3, -1)
        accuracy = right / true  # NaN of a class that does not occur
        whole = right.sum(-1) / true.sum(-1)
        return torch.stack([iou.nanmean(-1), accuracy.nanmean(-1), whole], -1)

    @property
    def iou(self) -> Float[Tensor, " classes"]:
        """Of every class; NaN where it occurs neither in truth nor in answers."""
        return class_iou(self.sums)

    @property
    def competing(self) -> int:
        return self.rows.shape[1] // 3

    def tensors(self) -> dict[str, Tensor]:
        """Counts of pixels are whole numbers: half the size."""
        return {"rows": self.rows.int()}


def class_iou(sums: Float[Tensor, "*d k"]) -> Float[Tensor, "*d classes"]:
    """Intersection over union of each class, from sums of rows; NaN where it does not occur."""
    right, true, answered = sums.chunk(3, -1)
    return right / (true + answered - right)


def pixel_counts(answer: Pixels, truth: Pixels, classes: int) -> Float[Tensor, " k"]:
    """The row of one picture, see `SegmentationScores`.

    Args:
        answer, truth: a class for every pixel; of the truth also `IGNORE`.
    """
    judged = truth != IGNORE
    answer, truth = answer[judged].long(), truth[judged].long()
    parts = (truth[answer == truth], truth, answer)
    return torch.cat([part.bincount(minlength=classes) for part in parts]).double()


@dataclass(frozen=True, eq=False)
class SegmentationReader:
    """What is answered for pixels, by a head on feature maps, and what is true of them.

    Args:
        head: logits [b, classes, h, w] of feature maps.
        decode: from a picture's logits, the (height, width) of the input, of the part that the picture fills and of the
            picture to the class of every pixel of the picture.
        classes: that are told apart.
        encoder: how pictures are put through the model.
    """

    head: Callable[[Sequence[Tensor]], Tensor]
    decode: Callable[[Tensor, tuple[int, int], tuple[int, int], tuple[int, int]], Pixels]
    classes: int
    encoder: FeatureMaps

    def __call__(self, batch: Mapping[str, Any]) -> list[Pair]:
        """Of each picture, at its own size, the answer and the truth, on the CPU.

        Raises:
            TetherError: the logits are not numbers.
        """
        logits = self.head(batch["maps"])
        if not bool(logits.isfinite().all()):
            raise TetherError(
                "The model's answers are not numbers (NaN or infinity). Its weights are probably broken: look at the "
                "training loss, and lower the learning rate."
            )
        input_size = batch["pixels"].shape[-2:]
        return [
            (
                self.decode(one, tuple(input_size), content, size).cpu(),
                torch.from_numpy(target.semantic.astype(np.int64)),
            )
            for one, content, size, target in zip(
                logits, batch["content"], batch["size"], batch["target"], strict=True
            )
        ]

    def scorer(self, split: DenseSplit) -> "SegmentationScorer":
        return SegmentationScorer(split, self.classes)


@dataclass(frozen=True, eq=False)
class SegmentationScorer:
    """Counts pixels of a split's pictures."""

    split: DenseSplit
    classes: int

    def rows(self, output: list[Pair], index: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Raises:
        TetherError: a truth has a class that is not told apart.
        """
        for number, (_, truth) in zip(index.tolist(), output, strict=True):
            if int(truth.max()) >= self.classes:
                raise TetherError(
                    f"The mask of {self.split.examples[number].image} has class {int(truth.max())}, and there are "
                    f"{self.classes}: `tether data check` lists all such pictures."
                )
        return torch.stack([pixel_counts(answer, truth, self.classes) for answer, truth in output])

    def scores(self, rows: Float[Tensor, "n k"]) -> SegmentationScores:
        return SegmentationScores(split=self.split, rows=rows)
