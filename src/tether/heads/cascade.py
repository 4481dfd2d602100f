"""Cascade Mask R-CNN: box heads that follow each other, each trained on boxes that fit better than the last one's.

Cai and Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection" (CVPR 2018), built from torchvision's
parts; what the Mona paper uses on COCO. Stage t with threshold u_t takes the boxes that stage t − 1 has moved, and
calls those of them objects that overlap one by u_t or more:

    b_t = b_{t−1} moved by f_t          f_t moves all classes alike, in units that get finer from stage to stage
    loss = Σ_t λ_t (L_class(h_t; u_t) + L_box(f_t; u_t)) + L_mask, λ = 1, 1/2, 1/4

When detecting, the class logits are the mean of all stages', and the boxes are the last one's. One mask head, trained
on the last stage's boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.ops import clip_boxes_to_image

from tether.config import method
from tether.heads.detection import Levels, Size
from tether.heads.detection_torchvision import MaskRCNNConfig, require_stages

UNITS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""By which each stage's moves of centre and size are multiplied; the paper's normalisation by standard deviations."""


@method("cascade_mask_rcnn")
@dataclass(frozen=True, kw_only=True)
class CascadeMaskRCNNConfig(MaskRCNNConfig):
    """Cascade Mask R-CNN; without masks it is Cascade R-CNN.

    Raises:
        TetherError: a number out of its range.
    """

    ious: tuple[float, ...] = (0.5, 0.6, 0.7)
    """u: how far each stage's boxes must overlap an object to be called one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_stages(self.ious)

    def host(self, levels: Levels, classes: int) -> FasterRCNN:
        host = super().host(levels, classes)
        first = host.roi_heads
        stages = [
            RoIHeads(
                first.box_roi_pool,
                TwoMLPHead(self.channels * 7 * 7, self.box_width),
                SharedMoves(self.box_width, classes + 1),
                iou,
                iou,
                first.fg_bg_sampler.batch_size_per_image,
                first.fg_bg_sampler.positive_fraction,
                UNITS[min(number, len(UNITS) - 1)],
                first.score_thresh,
                first.nms_thresh,
                first.detections_per_img,
            )
            for number, iou in enumerate(self.ious)
        ]
        masks = {name: getattr(first, name) for name in ("mask_roi_pool", "mask_head", "mask_predictor")}
        host.roi_heads = CascadeHeads(stages, **(masks if self.masks else {}))
        return host


class SharedMoves(nn.Module):
    """Class logits, and moves of a box that are the same for all classes, in the form that torchvision's losses take.

    Args:
        width: of what goes in.
        classes: with the background.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.class_logits, self.moves = nn.Linear(width, classes), nn.Linear(width, 4)
        self.classes = classes

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.class_logits(features), self.moves(features).repeat(1, self.classes)


class CascadeHeads(nn.Module):
    """In place of torchvision's `RoIHeads`: one after the other.

    Args:
        stages: box heads.
        mask_roi_pool, mask_head, mask_predictor: torchvision's; None finds boxes alone.
    """

    def __init__(
        self,
        stages: Sequence[RoIHeads],
        mask_roi_pool: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.mask_roi_pool, self.mask_head, self.mask_predictor = mask_roi_pool, mask_head, mask_predictor

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[Size],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections without targets, losses with them."""
        if targets is None:
            return self._detect(features, proposals, shapes), {}
        return [], self._losses(features, proposals, shapes, targets)

    def _losses(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        shapes: list[Size],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages):
            boxes, matched, labels, wanted = stage.select_training_samples(list(boxes), targets)
            logits, moves = _scores(stage, features, boxes, shapes)
            of_class, of_box = fastrcnn_loss(logits, moves, labels, wanted)
            losses[f"loss_classifier_{number + 1}"] = of_class / 2**number
            losses[f"loss_box_reg_{number + 1}"] = of_box / 2**number
            if number < len(self.stages) - 1:
                boxes = _moved(stage, moves.detach(), boxes, shapes)
        if self.mask_head is not None:
            positive = [one > 0 for one in labels]
            inside = [one[where] for one, where in zip(boxes, positive, strict=True)]
            losses["loss_mask"] = maskrcnn_loss(
                self._mask_logits(features, inside, shapes),
                inside,
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [one[where] for one, where in zip(matched, positive, strict=True)],
            )
        return losses

    def _detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Size]
    ) -> list[dict[str, Tensor]]:
        of_stages = []
        for stage in self.stages:
            start = boxes
            logits, moves = _scores(stage, features, boxes, shapes)
            of_stages.append(logits)
            boxes = _moved(stage, moves, boxes, shapes)
        mean = torch.stack(of_stages).mean(0)
        found = self.stages[-1].postprocess_detections(mean, moves, start, shapes)
        result = [
            {"boxes": box, "scores": score, "labels": label} for box, score, label in zip(*found, strict=True)
        ]
        if self.mask_head is not None:
            logits = self._mask_logits(features, [one["boxes"] for one in result], shapes)
            for one, masks in zip(
                result, maskrcnn_inference(logits, [one["labels"] for one in result]), strict=True
            ):
                one["masks"] = masks
        return result

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Size]) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, shapes)))


def _scores(
    stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[Size]
) -> tuple[Tensor, Tensor]:
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, boxes, shapes)))


def _moved(stage: RoIHeads, moves: Tensor, boxes: list[Tensor], shapes: list[Size]) -> list[Tensor]:
    """The boxes where a stage puts them, cut at the edges."""
    moved = stage.box_coder.decode(moves[:, :4], boxes)[:, 0].split([len(one) for one in boxes])
    return [clip_boxes_to_image(one, shape) for one, shape in zip(moved, shapes, strict=True)]
