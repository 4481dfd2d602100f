"""Detection and instance segmentation: objects with their boxes, or masks, by a detector of a host library.

The detector is a head of `tether.heads.detection` on the model's own module, in which the adapter is: losses, matching
and post-processing are the library's. Judged by COCO's average precision, at the size pictures were read in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from tether import _distributed
from tether.config import build, made, method, method_of, plain
from tether.data.records import PictureBenchmark, PictureSplit
from tether.data.seeds import derived_seed
from tether.errors import TetherError
from tether.evaluation.detection import BoxScores, DetectionReader, DetectionScores, MaskScores, Pair
from tether.evaluation.drawing import with_objects
from tether.evaluation.encoder import WithAnswers
from tether.evaluation.scoring import Progress
from tether.heads.detection import Detector, DetectorConfig
from tether.models import Model
from tether.models.modes import in_evaluation_mode
from tether.objectives.head import HeadLossConfig
from tether.recipe import Recipe
from tether.tasks.dense import DenseConfig, DenseTask

SHOWN = 0.3
"""Detections that score less are not drawn."""


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(DenseConfig):
    """What detection and instances share."""

    finds_masks: ClassVar[bool]
    score_type: ClassVar[type[DetectionScores]]

    head: DetectorConfig

    def make(
        self, recipe: Recipe, model: Model, benchmark: Any, *, progress: Progress | None = None
    ) -> "ObjectTask":
        kind = Instances if self.finds_masks else Detection
        return kind(recipe, model, benchmark, progress)

    def scores(
        self, benchmark: PictureBenchmark, split: PictureSplit, tensors: Mapping[str, Tensor]
    ) -> DetectionScores:
        return self.score_type(split=split, rows=tensors["rows"], class_names=benchmark.class_names)


@method("detection")
@dataclass(frozen=True, kw_only=True)
class DetectionConfig(ObjectsConfig):
    """Boxes around objects; judged by average precision of boxes.

    Args:
        head: of what detector, such as `{method: retinanet}`, `{method: mask_rcnn, masks: false}` or
            `{method: rt_detr_v2}`.

    Raises:
        TetherError: the head finds masks.
    """

    finds_masks: ClassVar[bool] = False
    score_type: ClassVar[type[DetectionScores]] = BoxScores

    head: DetectorConfig = field(default_factory=lambda: made(DetectorConfig, "retinanet"))

    def __post_init__(self) -> None:
        if self.head.finds_masks:
            raise TetherError(
                f"The head {method_of(type(self.head))} finds masks as it is set, and the task detection is of boxes. "
                "Use task.method=instances, or for mask_rcnn and cascade_mask_rcnn task.head.masks=false."
            )


@method("instances")
@dataclass(frozen=True, kw_only=True)
class InstancesConfig(ObjectsConfig):
    """Masks of objects; judged by average precision of masks, and by that of boxes beside it.

    Args:
        head: of what detector: mask_rcnn, cascade_mask_rcnn or mask2former.

    Raises:
        TetherError: the head finds boxes alone.
    """

    finds_masks: ClassVar[bool] = True
    score_type: ClassVar[type[DetectionScores]] = MaskScores

    head: DetectorConfig = field(default_factory=lambda: made(DetectorConfig, "mask_rcnn"))

    def __post_init__(self) -> None:
        if not self.head.finds_masks:
            raise TetherError(
                f"The head {method_of(type(self.head))} finds boxes alone as it is set, and the task instances is of "
                "masks. Use task.head.method=mask_rcnn, cascade_mask_rcnn or mask2former, or task.method=detection."
            )


class ObjectTask(DenseTask):
    """Pictures with objects. `head_module` is the whole detector, of which the model's module is a part."""

    own_objective = HeadLossConfig
    encoding = WithAnswers
    head_module: Detector
    _step = 0

    def options_of_head(self) -> dict[str, Any]:
        return {"classes": len(self.class_names_of_answers), "head": plain(self.recipe.task.head)}

    @staticmethod
    def make_head(model: Model, options: Mapping[str, Any], *, seed: int) -> Detector:
        return build(DetectorConfig, options["head"], "head").build(model, options["classes"], seed=seed)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        return self.head_module.head_parameters()

    def head_state(self) -> dict[str, Tensor]:
        return self.head_module.head_state_dict()

    def set_head_mode(self, *, training: bool) -> None:
        self.head_module.train_head(training)

    def begin_step(self, step: int, batch: Mapping[str, Any]) -> None:
        super().begin_step(step, batch)
        self._step = step

    def held_out_loss(self, batch: Mapping[str, Any], step: int) -> Tensor:
        """As of every task, and without a trace in the head's running statistics."""
        self._step = step
        with in_evaluation_mode(self.head_module):
            return super().held_out_loss(batch, step)

    def objective(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The detector's loss; proposals, points and noise in it are drawn by the run's seed and the step.

        To be logged are its terms but those of layers in between, which end in their number.
        """
        seed = derived_seed(self.recipe.training.seed, "loss", self._step, _distributed.rank())
        loss, terms = self.head_module.loss(batch["pixels"], batch["objects"], seed=seed)
        return loss, {name: term for name, term in terms.items() if not name[-1].isdigit()}, {}

    def reader_of(self, head: Callable[..., Any]) -> DetectionReader:
        masks = self.recipe.task.finds_masks
        return DetectionReader(head, self.class_names_of_answers, masks, self.encoder)

    def draw(self, picture: Image.Image, output: Pair) -> tuple[Image.Image, Image.Image, set[int]]:
        found, objects = output
        sure = found.best(int((found.scores >= SHOWN).sum()))
        labels = sure.labels.numpy()[::-1]  # the surest on top
        boxes = sure.boxes.numpy().astype(np.float32)[::-1]
        with_masks = self.recipe.task.finds_masks
        drawings = (
            with_objects(picture, objects.boxes, objects.labels, objects.masks if with_masks else None),
            with_objects(picture, boxes, labels, sure.masks.numpy()[::-1] if with_masks else None),
        )
        return (*drawings, {*labels.tolist(), *objects.labels.tolist()})


class Detection(ObjectTask):
    """Pictures with objects that have boxes."""

    answers: ClassVar = "boxes"


class Instances(ObjectTask):
    """Pictures with objects that have masks."""

    answers: ClassVar = "masks"
