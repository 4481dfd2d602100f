"""Semantic segmentation: a class for every pixel, by UPerNet on the feature maps of an image tower.

Trained as published for Swin (Liu et al., ICCV 2021, section A2.3), which Mona follows: cross-entropy over the pixels
that have a class, and 0.4 times that of an auxiliary head. Judged on whole pictures, at the size they were read in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tether.config import method
from tether.data.records import PictureBenchmark, PictureSplit
from tether.data.targets import IGNORE
from tether.errors import TetherError
from tether.evaluation.drawing import with_classes
from tether.evaluation.scoring import Progress
from tether.evaluation.segmentation import SegmentationReader, SegmentationScores
from tether.heads.detection import seeded
from tether.heads.segmentation import SegmentationHead, classes_of_pixels
from tether.models import Model
from tether.objectives.cross_entropy import CrossEntropyConfig
from tether.recipe import Recipe
from tether.tasks.dense import DenseConfig, DenseTask, widths_of_maps


@method("segmentation")
@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(DenseConfig):
    """The class of every pixel; judged by mean IoU. The defaults are the published ones for ADE20K.

    Args:
        hidden: width of the head.
        pool_scales: cells a side of its pooled maps.
        auxiliary: weight of the auxiliary head's loss; 0 is without one.
        auxiliary_hidden: its width.

    Raises:
        TetherError: a width or scale below 1, or a negative weight.
    """

    hidden: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary: float = 0.4
    auxiliary_hidden: int = 256

    def __post_init__(self) -> None:
        if min(self.hidden, self.auxiliary_hidden, *self.pool_scales) < 1 or not self.pool_scales:
            raise TetherError(
                "task.hidden, auxiliary_hidden and each of pool_scales are whole numbers from 1."
            )
        if not self.auxiliary >= 0:
            raise TetherError(f"task.auxiliary is a weight of at least 0, found {self.auxiliary}.")

    def make(
        self, recipe: Recipe, model: Model, benchmark: Any, *, progress: Progress | None = None
    ) -> "Segmentation":
        return Segmentation(recipe, model, benchmark, progress)

    def scores(
        self, benchmark: PictureBenchmark, split: PictureSplit, tensors: Mapping[str, Tensor]
    ) -> SegmentationScores:
        return SegmentationScores(split=split, rows=tensors["rows"].double())


class Segmentation(DenseTask):
    """Pictures with a class for every pixel, the background one of them where the data has one."""

    answers: ClassVar = "semantic"
    own_objective = CrossEntropyConfig
    head_module: SegmentationHead

    def options_of_head(self) -> dict[str, Any]:
        task = self.recipe.task
        return {
            "classes": len(self.class_names_of_answers),
            "channels": list(widths_of_maps(self.model)),
            "strides": list(self.model.strides),
            "hidden": task.hidden,
            "pool_scales": list(task.pool_scales),
            "auxiliary": task.auxiliary,
            "auxiliary_hidden": task.auxiliary_hidden,
        }

    @staticmethod
    def make_head(model: Model, options: Mapping[str, Any], *, seed: int) -> nn.Module:
        with seeded(seed, torch.device("cpu")):
            return SegmentationHead(**options)

    def objective(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        truth = batch["semantic"]
        maps = self.model.feature_maps(batch["pixels"])
        loss, logits = self.head_module.loss(maps, truth, smoothing=self.recipe.objective.smoothing)
        coarse = F.interpolate(truth[:, None].float(), size=logits.shape[-2:], mode="nearest")[:, 0]
        judged = coarse != IGNORE
        right = (logits.argmax(1) == coarse) & judged
        return loss, {"pixel_accuracy": right.sum() / judged.sum().clamp(min=1)}, {}

    def reader_of(self, head: Callable[..., Any]) -> SegmentationReader:
        return SegmentationReader(head, classes_of_pixels, len(self.class_names_of_answers), self.encoder)

    def draw(self, picture: Image.Image, output: Any) -> tuple[Image.Image, Image.Image, set[int]]:
        answer, truth = (labels.numpy() for labels in output)
        background = {len(self.benchmark.class_names)}
        seen = {int(label) for labels in (answer, truth) for label in set(labels.ravel().tolist())}
        drawings = (with_classes(picture, labels, background) for labels in (truth, answer))
        return (*drawings, seen - background - {IGNORE})
